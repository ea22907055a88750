"""What tests of the response cache share: a core that never says the same twice, and readers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx

from engine.config import EngineConfig, ModelConfig
from engine.request import Request
from server.config import ServerConfig
from tests.byte_tokenizer import byte_tokenizer
from tests.doubles import EOS, FakeCore
from tests.server.harness import MODEL, USER, Api

HEADER = "x-outdraft-cache"
IN_MEMORY = ServerConfig(response_cache=True, response_cache_path="memory")
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
# The smallest body of each wire whose answer can be repeated.
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": USER, "temperature": 0, "max_tokens": 12},
    COMPLETIONS: {"prompt": "abc", "temperature": 0, "max_tokens": 12},
    MESSAGES: {"messages": USER, "temperature": 0, "max_tokens": 12},
    RESPONSES: {"input": "hi", "temperature": 0, "max_output_tokens": 12},
}
ROOMY = EngineConfig(model=ModelConfig(max_model_len=4096))
_IDS = re.compile(r"\b(chatcmpl|cmpl|call|toolu|resp|msg|fc|rs)[-_][0-9A-Za-z]{16,}")
_TIMES = re.compile(r'"(created|created_at|completed_at)":\d+(\.\d+)?')


class NewWordsCore(FakeCore):
    """Answers every request with words of its own: a number that grows with each, and an end."""

    def __init__(self, config: EngineConfig = ROOMY, words: str = "answer {} – ok") -> None:
        super().__init__(config, self._token)
        self.num_requests = 0
        self._words = words
        self._texts: dict[str, list[int]] = {}

    def add_request(self, request: Request) -> None:
        self.num_requests += 1
        text = self._words.format(self.num_requests)
        self._texts[request.request_id] = [*byte_tokenizer().encode(text), EOS]
        super().add_request(request)

    def _token(self, request: Request, position: int) -> int:
        text = self._texts[request.request_id]
        return text[min(position, len(text) - 1)]


def on_disk(path: Path, **settings: Any) -> ServerConfig:
    """Give the settings of a server whose cache is in a file."""
    return ServerConfig(response_cache=True, response_cache_path=str(path), **settings)


async def ask(api: Api, path: str, *, headers: Any = None, **changes: Any) -> httpx.Response:
    """Ask what a wire's smallest body asks, or something else."""
    body = {"model": MODEL, **BODIES[path], **changes}
    return await api.http.post(path, json=body, headers=headers)


def outcome(response: httpx.Response) -> str | None:
    """Give what an answer says of the cache."""
    assert response.status_code == 200, response.text
    return response.headers.get(HEADER)


def same(response: httpx.Response) -> str:
    """Give an answer's body without what is fresh in every answer: ids and times."""
    return _TIMES.sub(r'"\1":0', _IDS.sub(r"\1", response.text))
