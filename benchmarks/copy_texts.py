"""Requests whose answers repeat most of a text that they carry: edits, renames, summaries.

All texts were written for this file.
"""

from __future__ import annotations

_CART = """\
class Cart:
    def __init__(self, currency):
        self.currency = currency
        self.items = []

    def add(self, name, price, count=1):
        self.items.append((name, price, count))

    def total(self):
        return sum(price * count for name, price, count in self.items)

    def receipt(self):
        lines = [f"{count} x {name}: {price}" for name, price, count in self.items]
        return "\\n".join([*lines, f"total: {self.total()} {self.currency}"])
"""

_PARSER = """\
def read_pairs(path):
    pairs = {}
    with open(path) as file:
        for number, line in enumerate(file, start=1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            key, found, value = line.partition("=")
            if not found:
                raise ValueError(f"line {number} has no '='")
            pairs[key.strip()] = value.strip()
    return pairs
"""

_SETTINGS = """\
{
  "name": "north-office",
  "language": "en",
  "rooms": [
    {"name": "garden", "seats": 6, "projector": false},
    {"name": "harbour", "seats": 12, "projector": true},
    {"name": "attic", "seats": 4, "projector": false}
  ],
  "opening": {"monday": "08:00", "friday": "09:00"},
  "contact": "rooms@example.com"
}
"""

_QUERY = """\
SELECT customers.name, customers.city, COUNT(orders.id) AS num_orders, SUM(orders.amount) AS amount
FROM customers
JOIN orders ON orders.customer_id = customers.id
WHERE customers.city = 'Oakland' AND orders.day >= '2026-01-01'
GROUP BY customers.name, customers.city
ORDER BY amount DESC
LIMIT 20;
"""

_FERRY = (
    "The ferry to the island leaves every morning at eight from the old pier. The crossing takes "
    "fourty minutes when the sea is calm and more then an hour when it is not. Tickets are sold "
    "on board, and children under six travel free. In winter the boat stays in the harbour on "
    "Sundays, so visitors who want to return on Monday should bring a book and a warm coat."
)

_MEETING = (
    "On Tuesday the team met to plan the spring fair. Anna will ask the school for the hall and "
    "the tables. Marek orders paper, paint and forty chairs, and keeps the bills. The music group "
    "plays at noon and again at four. Nobody has found a baker yet, so everyone brings a cake. "
    "The next meeting is on Thursday at six in the library."
)

_RECIPE = (
    "Peel four large potatoes and cut them into thin slices. Put the slices into cold water for "
    "ten minutes, then dry them well. Heat two spoons of butter in a wide pan, lay the slices in "
    "it side by side, and fry them for five minutes on each side. Add salt, pepper and a little "
    "thyme, and serve them while they are hot."
)

_LETTER = (
    "Dear Mrs Lind, thank you for your letter of 3 March. The lamp that you sent back has "
    "arrived, and our workshop has found the loose wire. The repair is free and takes one week. "
    "We will send the lamp to your address in Salem on 14 March. Please write to us if somebody "
    "must be at home to receive it. Kind regards, the workshop."
)

COPY_REQUESTS = (
    f"Rename the attribute `items` to `entries` in this code and write all of it:\n\n{_CART}",
    f"Correct the spelling of this text and change nothing else:\n\n{_FERRY}",
    f"Add a docstring to this function and write all of it again:\n\n{_PARSER}",
    f"Summarise these notes in the words of the notes:\n\n{_MEETING}",
    f"Set the seats of the attic to 5 and write the whole file again:\n\n{_SETTINGS}",
    f"Write this recipe again for eight potatoes and four spoons of butter:\n\n{_RECIPE}",
    f"Change the city to San Jose and write the query again:\n\n{_QUERY}",
    f"Write this letter again, with 5 March for 3 March and 17 March for 14 March:\n\n{_LETTER}",
)
