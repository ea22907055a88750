"""Reads the corpora and turns them into training documents.

Knows where each corpus lies, which records are held out, and how dialogues and stories become
chats. Refuses to know tokens, models and training: a document leaves here as messages or text.
"""

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.held_out import is_held_out, read_jsonl
from engine.training import phrases

CHAT_SHARE_OF_STORIES = 0.65
SYSTEM_SHARE = 0.2
GREETING_SHARE = 0.06
JOIN_SHARE = 0.12
SMALL_TALK_SHARE = 0.06

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Record:
    """One corpus entry.

    Attributes:
        source: Folder name of the corpus.
        id: Identity inside the corpus; decides whether the record is held out.
        messages: The chat turns; empty for a story.
        text: The story; empty for a chat.
        title: Title of the story, where the corpus has one.
        author: Author of the story, where attribution is owed.
    """

    source: str
    id: str
    messages: tuple[Message, ...] = ()
    text: str = ""
    title: str = ""
    author: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """One training document: a chat (messages) or plain text, never both."""

    messages: tuple[Message, ...] = ()
    text: str = ""


def read_dialogues(data_dir: Path) -> list[Record]:
    """Read the task dialogues (`sgd_dialogues`); ids are the corpus' own."""
    rows = read_jsonl(data_dir / "sgd_dialogues" / "dialogues.jsonl.xz")
    return [
        Record("sgd_dialogues", row["id"], messages=tuple(_message(m) for m in row["messages"]))
        for row in rows
    ]


def read_stories(data_dir: Path) -> list[Record]:
    """Read the short stories of `tinystories_sample` and `african_storybook`."""
    tiny = read_jsonl(data_dir / "tinystories_sample" / "stories.jsonl.xz")
    african = read_jsonl(data_dir / "african_storybook" / "stories.jsonl.xz")
    records = [
        Record("tinystories_sample", text_id(row["text"]), text=row["text"].strip()) for row in tiny
    ]
    records += [
        Record(
            "african_storybook",
            row["id"],
            text=row["text"].strip(),
            title=row["title"],
            author=row["author"],
        )
        for row in african
    ]
    return records


def read_small_talk(data_dir: Path) -> list[Record]:
    """Read casual chats (`self_dialogue`); speakers alternate as user and assistant."""
    rows = read_jsonl(data_dir / "self_dialogue" / "dialogues.jsonl.xz")
    return [
        Record("self_dialogue", text_id("\n".join(row["turns"])), messages=_turns(row["turns"]))
        for row in rows
        if len(row["turns"]) >= 4
    ]


def text_id(text: str) -> str:
    """Give a record without an id of its own an identity: a digest of its text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_corpus(data_dir: Path) -> list[Record]:
    """Read every corpus the demo pair is trained on, held-out records included."""
    return [*read_dialogues(data_dir), *read_stories(data_dir), *read_small_talk(data_dir)]


def split(records: list[Record]) -> tuple[list[Record], list[Record]]:
    """Split records into (training, held out) by `is_held_out`."""
    train = [r for r in records if not is_held_out(r.id)]
    return train, [r for r in records if is_held_out(r.id)]


def training_documents(records: list[Record], seed: int) -> list[Document]:
    """Render one epoch: stories as text or chats, dialogues dressed with openings, all shuffled.

    Another seed gives other requests, system prompts and joins over the same records.
    """
    rng = random.Random(seed)
    chats = [r for r in records if r.source == "sgd_dialogues"]
    talk = [r for r in records if r.source == "self_dialogue"]
    num_talk = min(len(talk), int(SMALL_TALK_SHARE * len(chats)))
    bodies = [list(r.messages) for r in [*chats, *rng.sample(talk, num_talk)]]
    texts: list[Document] = []
    for story in (r for r in records if r.text):
        if rng.random() < CHAT_SHARE_OF_STORIES:
            bodies.append(story_chat(story, rng))
        else:
            texts.append(Document(text=story.text))
    rng.shuffle(bodies)
    documents = [*(Document(tuple(_dress(b, rng))) for b in _join(bodies, rng)), *texts]
    rng.shuffle(documents)
    return documents


def plain_document(record: Record) -> Document:
    """Render a record as it stands, without synthesised turns (used for evaluation)."""
    return Document(messages=record.messages, text=record.text)


def story_chat(record: Record, rng: random.Random) -> list[Message]:
    """Wrap a story in a request for it that names a word of the story, sometimes with thanks."""
    messages = [
        {"role": "user", "content": _story_request(record, rng)},
        {"role": "assistant", "content": record.text},
    ]
    if rng.random() < 0.12:
        messages.append({"role": "user", "content": rng.choice(phrases.THANKS)})
        messages.append({"role": "assistant", "content": rng.choice(phrases.WELCOMES)})
    return messages


def _story_request(record: Record, rng: random.Random) -> str:
    if record.title and rng.random() < 0.5:
        return rng.choice(phrases.TITLED_REQUESTS).format(title=record.title)
    named = re.search(r"\b(girl|boy|dog|cat|bird|bear|bunny) named ([A-Z][a-z]+)", record.text)
    if named and rng.random() < 0.25:
        return rng.choice(phrases.NAMED_REQUESTS).format(who=named[1], name=named[2])
    words = re.findall(r"[a-z]+", record.text.lower())
    topics = sorted(phrases.STORY_TOPICS & {w for w in words if words.count(w) >= 2})
    if topics and rng.random() < 0.75:
        topic = rng.choice(topics)
        article = "an" if topic[0] in "aeiou" else "a"
        return rng.choice(phrases.TOPIC_REQUESTS).format(topic=f"{article} {topic}")
    return rng.choice(phrases.STORY_REQUESTS)


def _join(bodies: list[list[Message]], rng: random.Random) -> Iterator[list[Message]]:
    """Sometimes continue a chat with the next one, so long chats change their subject."""
    current: list[Message] = []
    for body in bodies:
        current = [*current, *body]
        if body[-1]["role"] == "assistant" and rng.random() < JOIN_SHARE:
            continue
        yield current
        current = []
    if current:
        yield current


def _dress(messages: list[Message], rng: random.Random) -> list[Message]:
    """Put a greeting exchange and a system prompt before some chats."""
    opening: list[Message] = []
    if rng.random() < SYSTEM_SHARE:
        opening.append({"role": "system", "content": rng.choice(phrases.SYSTEM_PROMPTS)})
    if rng.random() < GREETING_SHARE:
        question, answer = rng.choice(phrases.GREETINGS)
        opening.append({"role": "user", "content": question})
        opening.append({"role": "assistant", "content": answer})
    return [*opening, *messages]


def _message(row: dict[str, str]) -> Message:
    return {"role": row["role"], "content": row["content"].strip()}


def _turns(turns: list[str]) -> tuple[Message, ...]:
    roles = ("user", "assistant")
    kept = turns[: len(turns) // 2 * 2]
    return tuple({"role": roles[i % 2], "content": t.strip()} for i, t in enumerate(kept))
