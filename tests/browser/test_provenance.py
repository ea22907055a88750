"""The token view tells what the stream told: token by token, pass by pass."""

from __future__ import annotations

import json
from typing import Any

from tests.browser.made_streams import CHATS, answer_with, chunks, stream_of
from tests.browser.watched_page import Watched

DOG = "Tell me a story about a dog."
SHADES = """() => [...document.querySelectorAll(".tokens .token")].map((span) => ({
  index: Number(span.dataset.index), text: span.textContent,
  shade: span.className.replace("token by-", "").replace(" chosen", ""),
  survival: span.style.getPropertyValue("--survival"),
}))"""


def kept_stream(page: Any) -> list[dict[str, Any]]:
    """Let chats through to the server, and keep what they are answered with."""
    passes: list[dict[str, Any]] = []

    def keep(route: Any) -> None:
        response = route.fetch()
        for line in response.text().splitlines():
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                passes.extend(chunk.get("provenance", {}).get("passes", []))
        route.fulfill(response=response)

    page.route(CHATS, keep)
    return passes


def expected_text(token: dict[str, Any]) -> str:
    """Give how a token's text is shown."""
    if not token["text"]:
        return "⊣" if token["cut"] else "▯"
    return str(token["text"]).replace("\n", "⏎\n").replace("\t", "⇥\t")


def test_every_token_has_the_shade_that_the_stream_says(at: Watched) -> None:
    page = at.open()
    passes = kept_stream(page)
    at.ask(DOG)
    at.answer().locator(".view-switch").click()
    page.wait_for_selector(".tokens .token")
    shown = page.evaluate(SHADES)
    tokens = [token for one in passes for token in one["tokens"]]
    assert len(shown) == len(tokens) > 20
    origins = set()
    for index, (seen, token) in enumerate(zip(shown, tokens, strict=True)):
        assert seen["index"] == index
        assert seen["text"] == expected_text(token)
        is_draft = token["origin"] == "draft"
        assert seen["shade"] == (token["drafter"] if is_draft else token["origin"])
        survival = token["survival"] if is_draft else None
        assert seen["survival"] == ("" if survival is None else str(survival))
        origins.add(token["origin"])
    assert origins == {"draft", "target"}


def test_the_card_of_a_token_says_what_is_known_of_it(at: Watched) -> None:
    page = at.open()
    passes = kept_stream(page)
    at.ask(DOG)
    at.answer().locator(".view-switch").click()
    tokens = [token for one in passes for token in one["tokens"]]
    for origin, title in (
        ("draft", "Accepted draft of the draft model"),
        ("target", "The target's"),
    ):
        index = next(i for i, token in enumerate(tokens) if token["origin"] == origin)
        page.locator(".tokens .token").nth(index).hover()
        card = page.locator(".token-card").inner_text()
        assert title in card
        assert f"id {tokens[index]['id']}" in card
        assert f"{tokens[index]['logprob']:.3f}" in card
        assert f"token {index + 1}, pass" in card
        assert page.locator(".token-card .alternatives li").count() == len(tokens[index]["top"]) > 0
    page.mouse.move(2, 2)
    page.locator(".token-card").wait_for(state="detached")


def test_the_strip_has_every_pass(at: Watched) -> None:
    page = at.open()
    passes = kept_stream(page)
    at.ask(DOG)
    answer = at.answer()
    answer.locator(".view-switch").click()
    page.wait_for_selector(".pass")
    page.mouse.move(2, 2)
    proposed = sum(one["proposed"] for one in passes)
    accepted = sum(one["accepted"] for one in passes)
    told = answer.locator(".strip-told").inner_text()
    assert f"in {len(passes)} passes" in told
    assert f"{accepted} of {proposed} drafts accepted" in told
    for index, one in enumerate(passes[:20]):
        cells = page.locator(f".pass[data-index='{index}']")
        assert cells.locator(".rejected").count() == one["proposed"] - one["accepted"]
        assert cells.locator(".cell:not(.rejected)").count() == len(one["tokens"])
    index = next(i for i, one in enumerate(passes[:20]) if one["accepted"] < one["proposed"])
    page.locator(f".pass[data-index='{index}']").hover()
    told = answer.locator(".strip-told").inner_text()
    rejected = passes[index]["proposed"] - passes[index]["accepted"]
    assert f"{rejected} rejected" in told
    lost = answer.locator(".strip-told del").all_inner_texts()
    assert lost == [one["text"] for one in passes[index]["draft"][passes[index]["accepted"] :]]


def test_tokens_can_be_read_with_the_keyboard(at: Watched) -> None:
    page = at.open()
    at.ask(DOG)
    at.answer()
    page.keyboard.press("Alt+t")
    page.wait_for_selector(".tokens .token")
    page.locator(".tokens").focus()
    for index, key in enumerate(("Home", "ArrowRight", "ArrowRight")):
        page.keyboard.press(key)
        assert page.locator(".token.chosen").get_attribute("data-index") == str(index)
        assert f"token {index + 1}, pass" in page.locator(".token-card").inner_text()
    page.keyboard.press("Escape")
    assert page.locator(".token-card").count() == 0


def test_shades_differ_by_more_than_colour(at: Watched) -> None:
    page = at.open()
    answer_with(page, stream_of(chunks(["one", " two", " three"])))
    at.ask("Count.")
    at.answer().locator(".view-switch").click()
    page.wait_for_selector(".tokens .token")
    styles = page.evaluate(
        """() => ["draft_model", "ngram", "suffix", "grammar", "target"].map((shade) => {
          const span = document.querySelector(".tokens .token");
          span.className = `token by-${shade}`;
          return getComputedStyle(span).textDecorationStyle;
        })"""
    )
    assert len(set(styles)) == len(styles)


def test_where_tokens_came_from_outlives_a_reload(at: Watched) -> None:
    page = at.open()
    at.ask(DOG)
    at.answer().locator(".view-switch").click()
    page.wait_for_selector(".tokens .token")
    before = page.evaluate(SHADES)
    page.reload()
    page.wait_for_selector(".message.assistant .view-switch")
    page.click(".message.assistant .view-switch")
    page.wait_for_selector(".tokens .token")
    assert page.evaluate(SHADES) == before


def test_what_a_server_does_not_tell_is_not_shown(at: Watched) -> None:
    page = at.open()
    answer_with(page, stream_of(chunks(["Hello", "."], traced=False)))
    at.ask("Hi")
    answer = at.answer()
    assert answer.locator(".view-switch").count() == 0
    page.keyboard.press("Alt+t")
    assert answer.locator(".markdown").inner_text() == "Hello."
