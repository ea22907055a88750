"""A server with a data directory, in this process over a made-up engine, and OpenAI's client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from openai import AsyncOpenAI
from openai.types import Batch

from engine.config import EngineConfig
from server.app import create_app
from server.batches.data_dir import DataDir
from server.batches.service import BatchService, Pace
from server.config import ServerConfig
from server.keys import read_keys
from server.served import make_served
from tests.byte_tokenizer import CHAT_TEMPLATE, byte_tokenizer
from tests.doubles import AnswerFn, FakeCore
from tests.server.harness import MODEL, Api, InlineEngine, saying

CHATS = "/v1/chat/completions"
ENDED = {"completed", "failed", "expired", "cancelled"}
QUICK = Pace(look_s=0.01, retry_s=0.01)


@dataclass(slots=True)
class Batches:
    """A server under test.

    Attributes:
        api: the server.
        service: its files and batches.
        openai: a client of it.
    """

    api: Api
    service: BatchService
    openai: AsyncOpenAI

    def as_caller(self, key: str) -> AsyncOpenAI:
        """Give a client with another key."""
        return self.openai.with_options(api_key=key)

    async def create(self, lines: bytes, **options: Any) -> Batch:
        """Upload lines, and make a batch of them."""
        file = await self.openai.files.create(file=("in.jsonl", lines), purpose="batch")
        return await self.openai.batches.create(
            **{
                "input_file_id": file.id,
                "endpoint": CHATS,
                "completion_window": "24h",
                **options,
            }
        )

    async def until(self, batch_id: str, is_so: Callable[[Batch], bool]) -> Batch:
        """Wait until something is so of a batch."""
        while not is_so(batch := await self.openai.batches.retrieve(batch_id)):
            await asyncio.sleep(0.01)
        return batch

    async def ended(self, batch_id: str) -> Batch:
        """Wait until a batch has ended."""
        return await self.until(batch_id, lambda batch: batch.status in ENDED)

    async def run(self, lines: bytes, **options: Any) -> Batch:
        """Have lines answered, to the end."""
        return await self.ended((await self.create(lines, **options)).id)

    async def lines_of(self, file_id: str | None) -> dict[Any, dict[str, Any]]:
        """Read a file of answers: its lines by their ids, each of which must be there once."""
        assert file_id is not None
        content = await self.openai.files.content(file_id)
        lines = [json.loads(line) for line in content.text.splitlines()]
        found = {line["custom_id"]: line for line in lines}
        assert len(found) == len(lines)
        return found


@asynccontextmanager
async def batching(
    folder: Path,
    answer: AnswerFn | None = None,
    *,
    config: ServerConfig | None = None,
    pace: Pace = QUICK,
    key: str = "none",
    core: FakeCore | None = None,
) -> AsyncIterator[Batches]:
    """Serve until the block ends; what is in the folder outlives it."""
    config = config or ServerConfig()
    settings = EngineConfig()
    engine = InlineEngine(core or FakeCore(settings, answer or saying("hello")))
    served = make_served(engine, settings, name=MODEL)
    data_dir = DataDir(folder)
    keys = read_keys(config, secret=data_dir.secret)
    service = BatchService(data_dir, config, served.metrics, pace)
    await engine.start()
    served.install_tokenizer(byte_tokenizer(CHAT_TEMPLATE))
    app = create_app(served, config, keys, service)
    await service.start(app, keys)
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    try:
        async with (
            httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http,
            AsyncOpenAI(
                api_key=key, base_url="http://localhost/v1", http_client=http, max_retries=0
            ) as client,
        ):
            yield Batches(Api(app, http, engine, served), service, client)  # type: ignore[arg-type]
    finally:
        await service.close()
        await engine.close()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario, with time for disks that are busy."""

    async def bounded() -> None:
        await asyncio.wait_for(scenario(), 240)

    asyncio.run(bounded())


def chat_line(custom_id: str, text: str = "hi", **changes: Any) -> dict[str, Any]:
    """Give a line that asks a chat."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 8}
    return {"custom_id": custom_id, "method": "POST", "url": CHATS, "body": body, **changes}


def jsonl(lines: Iterable[Mapping[str, Any] | bytes]) -> bytes:
    """Write lines."""
    return b"".join(
        (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines
    )


def chats(number: int) -> bytes:
    """Write so many lines, each with its own text."""
    return jsonl(chat_line(f"line-{place}", f"text {place}") for place in range(number))
