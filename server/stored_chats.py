"""Remembers the chats whose callers asked for it, within bounds: answer, messages, labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec

from server.answers import Event
from server.bounded_store import BoundedStore
from server.errors import NotStoredError
from server.responses.item_page import item_page

MAX_ENTRIES = 10_000
MAX_BYTES = 128 * 2**20

logger = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class StoredChat:
    """A chat that has ended.

    Attributes:
        answer: as it was given, whole.
        messages: what it answers, as they were given.
        metadata: the caller's labels.
    """

    answer: Event
    messages: Sequence[Mapping[str, Any]]
    metadata: Mapping[str, str]

    def as_object(self) -> dict[str, Any]:
        """Give the answer with its labels."""
        return {**self.answer, "metadata": self.metadata}


@dataclass(frozen=True, slots=True, kw_only=True)
class PageQuery:
    """Which part of a list is asked for.

    Attributes:
        limit: entries at most.
        order: `desc` begins with the latest.
        after: id of the entry that the page follows; None = the first page.
    """

    limit: int
    order: Literal["asc", "desc"]
    after: str | None


class ChatStore:
    """The chats that can be asked for by their ids.

    Args:
        max_entries: chats kept at most.
        max_bytes: of what is kept, as it would be sent.
    """

    def __init__(self, *, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        self._chats: BoundedStore[StoredChat] = BoundedStore(
            max_entries=max_entries, max_bytes=max_bytes
        )

    @classmethod
    def of_share(cls, num_shares: int) -> ChatStore:
        """Make one of so many that share the room."""
        return cls(max_entries=max(1, MAX_ENTRIES // num_shares), max_bytes=MAX_BYTES // num_shares)

    def keep(self, chat: StoredChat) -> None:
        """Remember a chat; the oldest ones make room for it."""
        num_bytes = len(_encode(chat.as_object())) + len(_encode(chat.messages))
        chat_id = chat.answer["id"]
        if not self._chats.put(chat_id, chat, num_bytes):
            logger.warning("chat_not_stored id=%s bytes=%d", chat_id, num_bytes)

    def show(self, chat_id: str) -> dict[str, Any]:
        """Give a chat.

        Raises:
            NotStoredError: there is none of that id.
        """
        return self._find(chat_id).as_object()

    def label(self, chat_id: str, metadata: Mapping[str, str]) -> dict[str, Any]:
        """Give a chat other labels, and give it back.

        Raises:
            NotStoredError: there is none of that id.
        """
        chat = replace(self._find(chat_id), metadata=metadata)
        self.keep(chat)
        return chat.as_object()

    def delete(self, chat_id: str) -> None:
        """Forget a chat.

        Raises:
            NotStoredError: there is none of that id.
        """
        self._find(chat_id)
        self._chats.pop(chat_id)

    def page(
        self, query: PageQuery, *, model: str | None, metadata: Mapping[str, str]
    ) -> dict[str, Any]:
        """Give a page of the chats of a model that have these labels.

        Raises:
            InvalidRequestError: there is no chat to go on after.
        """
        chats = [
            chat.as_object()
            for chat in self._chats.values()
            if model in (None, chat.answer["model"])
            and all(chat.metadata.get(key) == value for key, value in metadata.items())
        ]
        return item_page(chats, limit=query.limit, order=query.order, after=query.after)

    def messages(self, chat_id: str, query: PageQuery) -> dict[str, Any]:
        """Give a page of the messages that a chat answers.

        Raises:
            NotStoredError: there is no chat of that id.
            InvalidRequestError: there is no message to go on after.
        """
        messages = [
            _stored_message(message, f"{chat_id}-{place}")
            for place, message in enumerate(self._find(chat_id).messages)
        ]
        return item_page(messages, limit=query.limit, order=query.order, after=query.after)

    def _find(self, chat_id: str) -> StoredChat:
        chat = self._chats.get(chat_id)
        if chat is None:
            raise NotStoredError(
                f"Chat completion with id {chat_id!r} not found; only those that were created "
                "with store are kept, and only the latest.",
                param="completion_id",
                code="not_found",
            )
        return chat


def _stored_message(message: Mapping[str, Any], message_id: str) -> dict[str, Any]:
    """Show a message as OpenAI does: its text, or its parts beside it."""
    content = message.get("content")
    parts = content if isinstance(content, list) else None
    shown = None if parts is not None else content
    return {"id": message_id, "name": None, **message, "content": shown, "content_parts": parts}
