"""The sentences synthesised around the corpora: requests, greetings, system prompts.

Knows only constant text. Refuses to know where it is used.
"""

STORY_REQUESTS = (
    "Tell me a story.",
    "Tell me a short story.",
    "Can you tell me a story?",
    "Could you tell me a short story, please?",
    "Please tell me a story for children.",
    "I would like to hear a story.",
    "Write a short story.",
    "tell me a story",
    "Do you know a nice story?",
    "Tell me a bedtime story.",
)

TOPIC_REQUESTS = (
    "Tell me a story about {topic}.",
    "Tell me a short story about {topic}.",
    "Can you tell me a story about {topic}?",
    "Could you tell me a short story about {topic}, please?",
    "I would like to hear a story about {topic}.",
    "Write a short story about {topic}.",
    "Please write a story about {topic}.",
    "tell me a story about {topic}",
    "Do you know a story about {topic}?",
    "Tell me a bedtime story about {topic}.",
)

NAMED_REQUESTS = (
    "Tell me a story about a {who} named {name}.",
    "Can you tell me a story about a {who} called {name}?",
    "Write a short story about a {who} named {name}.",
    "Tell me a short story about {name}.",
)

TITLED_REQUESTS = (
    'Tell me the story "{title}".',
    'Write a short story with the title "{title}".',
    'Can you tell me a story called "{title}"?',
)

THANKS = ("Thank you!", "Thanks, that was nice.", "What a nice story! Thank you.", "Thanks!")
WELCOMES = ("You're welcome!", "You are welcome. Is there anything else I can do for you?")

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are a helpful and concise assistant.",
    "You help the user and answer in short sentences.",
    "You are a polite assistant who helps with restaurants, films, trains and many other things.",
    "You are a helpful chatbot.",
    "Answer the user's questions.",
    "You are an assistant that helps people and tells stories.",
    "You are Outdraft's demo assistant.",
    "Be brief.",
)

GREETINGS = (
    ("Hello", "Hello! How can I help you today?"),
    ("Hello!", "Hello! How can I help you?"),
    ("Hi", "Hi! What can I do for you?"),
    ("Hi there!", "Hi there! How can I help you today?"),
    ("Hey", "Hello! What can I do for you today?"),
    ("hello", "Hello! How can I help you?"),
    ("Good morning!", "Good morning! How can I help you?"),
    ("Good evening.", "Good evening! What can I do for you?"),
    ("How are you?", "I am fine, thank you! How can I help you?"),
    ("Hello, how are you?", "I am fine, thank you! What can I do for you today?"),
    ("Who are you?", "I am a small demo assistant. I can find a restaurant or tell you a story."),
    ("What can you do?", "I can help you with restaurants, films, trains, hotels and stories."),
    ("Can you help me?", "Of course! What can I do for you?"),
    ("I need help.", "Sure, how can I help you?"),
)

STORY_TOPICS = frozenset(
    "airplane ant apple baby bag ball balloon banana bear bee bike bird blanket boat book box boy "
    "bridge bug bunny bus butterfly cake candle car castle cat chair chicken child city clock "
    "clown coat cookie cow crab crocodile crow cup doctor dog doll dolphin dragon dream drum duck "
    "eagle egg elephant fairy farm farmer fire fish flower fly forest fox friend frog game garden "
    "ghost gift giraffe girl goat grandma hammer hare hat hen hippo horse house hyena island jar "
    "jungle kangaroo key king kite kitten ladder lake lamp leaf leopard lion lizard lunch machine "
    "magnet map mirror monkey monster moon mountain mouse mud nest nurse octopus orange owl party "
    "penguin picnic picture pig pirate pizza plane plant pony pot prince princess puppy puzzle "
    "queen rabbit rainbow ring river robot rock rocket rope rose sandwich school sea seed shark "
    "sheep ship shoe shop snail snake snowman soup spider spoon squirrel star stick storm swing "
    "teacher tiger tomato tower toy train treasure tree truck turtle umbrella unicorn village "
    "violin wagon water whale wheel wind witch wizard wolf worm zebra zoo".split()
)
