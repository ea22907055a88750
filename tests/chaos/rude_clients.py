"""Clients that leave, do not read, or do not finish what they say: nothing of them stays behind."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

from tests.chaos.asks import long_ask
from tests.chaos.findings import Finding
from tests.chaos.raw_client import RawClient
from tests.chaos.sizes import Sizes
from tests.chaos.subject import REPLY_S, Subject, serving
from tests.chaos.traffic import good_company

_AT_ONCE = 48
_CONTEXT_WORDS = 900
_MUCH_SHARE = 0.05
_MUCH_S = 4.0
_DONE = b"data: [DONE]"
WORDS = (
    *("--body-timeout", "1", "--send-timeout", "2", "--max-stream-buffer", "65536"),
    *("--max-num-batched-tokens", "256"),
)
Rude = Callable[[Subject, random.Random, Counter[str]], Awaitable[None]]


def run(finding: Finding, sizes: Sizes, rng: random.Random) -> None:
    """Be rude in every way, beside clients that are not."""
    with serving(WORDS, sizes, rng) as subject:
        asyncio.run(_be_rude(subject, finding))


async def _be_rude(subject: Subject, finding: Finding) -> None:
    await subject.learn()
    sizes = subject.sizes
    plan: list[Rude] = [leave_early] * sizes.disconnects
    plan += [read_slowly] * sizes.slow_readers
    plan += [send_half] * sizes.half_bodies
    plan += [leave_in_prefill] * sizes.prefill_aborts
    subject.rng.shuffle(plan)
    await _all_of(subject, finding, plan[: len(plan) // 10 + 5])
    before = subject.settled()
    await _all_of(subject, finding, plan)
    subject.check(before, finding)


async def _all_of(subject: Subject, finding: Finding, plan: list[Rude]) -> None:
    counts: Counter[str] = Counter()
    seats = asyncio.Semaphore(_AT_ONCE)

    async def one(rude: Rude) -> None:
        async with seats:
            rng = random.Random(subject.rng.randrange(2**31))
            try:
                await asyncio.wait_for(rude(subject, rng, counts), REPLY_S)
            except TimeoutError:
                finding.violations[f"{rude.__name__} hung"] += 1

    async with good_company(subject, finding):
        await asyncio.gather(*map(one, plan))
    finding.numbers |= dict(sorted(counts.items()))


async def leave_early(subject: Subject, rng: random.Random, counts: Counter[str]) -> None:
    """Leave before the first token, in the middle, or behind the last."""
    ask = long_ask(rng, rng.choice((4, 16, 64, 160)))
    client = RawClient(subject.url)
    await client.connect()
    is_stream = rng.random() < 0.8
    content = client.post(ask.path, ask.sent(stream=is_stream))
    moment = rng.choice(("in the head", "at once", "first", "middle", "middle", "last"))
    if moment == "in the head":
        content = content[: rng.randrange(1, 60)]
    await client.send(content)
    if moment == "first":
        await asyncio.sleep(rng.random() * 0.05)
    elif moment == "middle":
        await client.read_until(b"data: ", rng.randrange(1, 2**14))
        for _ in range(rng.randrange(4)):
            await client.read(512)
    elif moment == "last":
        await client.read_until(_DONE if is_stream else b"}")
    client.leave(rudely=rng.random() < 0.5)
    counts[f"left: {moment}"] += 1


async def read_slowly(subject: Subject, rng: random.Random, counts: Counter[str]) -> None:
    """Ask for much, read little of it, then go, or read on to the end."""
    # What the kernel does not keep for one who does not read is more than most answers have.
    is_much = rng.random() < _MUCH_SHARE
    body = long_ask(rng, 300 if is_much else 200).sent(n=8 if is_much else 2, logprobs=20)
    client = RawClient(subject.url, receive_bytes=4096)
    await client.connect()
    await client.send(client.post("/completions", body))
    for _ in range(rng.randrange(1, 6)):
        if not await client.read(256):
            break
        await asyncio.sleep(_MUCH_S if is_much else rng.random())
    if is_much or rng.random() < 0.5:
        told = await client.read_until(_DONE)
        counts["slow: all read" if _DONE in told else "slow: cut off"] += 1
    else:
        counts["slow: left"] += 1
    client.leave(rudely=rng.random() < 0.5)


async def send_half(subject: Subject, rng: random.Random, counts: Counter[str]) -> None:
    """Announce a body, send half of it, then go, or wait to be told."""
    ask = long_ask(rng, 8)
    body = ask.sent()
    client = RawClient(subject.url)
    await client.connect()
    await client.send(client.post(ask.path, body[: rng.randrange(len(body))], len(body)))
    if rng.random() < 0.5:
        told = await client.read_until(b"\r\n\r\n")
        counts["half: told 408" if told.startswith(b"HTTP/1.1 408 ") else "half: not told"] += 1
    else:
        await asyncio.sleep(rng.random() * 0.2)
        counts["half: left"] += 1
    client.leave(rudely=rng.random() < 0.5)


async def leave_in_prefill(subject: Subject, rng: random.Random, counts: Counter[str]) -> None:
    """Leave while a long prompt is computed."""
    ask = long_ask(rng, 8, _CONTEXT_WORDS)
    client = RawClient(subject.url)
    await client.connect()
    await client.send(client.post(ask.path, ask.sent()))
    await asyncio.sleep(rng.random() * 0.2)
    client.leave(rudely=rng.random() < 0.5)
    counts["left: prefill"] += 1
