"""What each caller may have: buckets, accounts, the headers that tell of them, and refusals."""

from __future__ import annotations

import asyncio
import contextlib
import time

import httpx
import openai
import pytest

from server.config import ServerConfig
from server.rate_limits import MAX_ACCOUNTS, Account, Accounts, Bucket, CallerLimits, duration
from server.refusals import RateLimitedError
from tests.server.harness import MODEL, USER, Api, error_of, run, saying, serving
from tests.server.live_server import listening

KEY, OTHER, ADMIN = "sk-alice-0123456789", "sk-bob-0123456789", "sk-admin-0123456789"


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that accounts go by."""
    clock = Clock()
    monkeypatch.setattr("server.rate_limits.time", clock)
    return clock


async def refusals(api: Api, reason: str) -> float:
    """Give how many calls were refused for a reason."""
    text = (await api.http.get("/metrics", headers={"x-api-key": ADMIN})).text
    name = f'outdraft:requests_refused_total{{model_name="tiny",reason="{reason}"}} '
    return float(text.split(name)[1].split("\n")[0])


def test_a_bucket_fills_evenly_up_to_its_limit() -> None:
    bucket = Bucket(60, now=0.0)
    bucket.spend(60, 0.0)
    assert bucket.left(0.0) == 0
    assert bucket.left(10.0) == pytest.approx(10)
    assert bucket.wait_s(25, 10.0) == pytest.approx(15)
    assert bucket.left(1e6) == 60
    bucket.spend(90, 1e6)
    assert bucket.left(1e6) == -30
    assert bucket.wait_s(1, 1e6) == pytest.approx(31)


def test_requests_beyond_the_limit_wait_for_their_share_of_a_minute(clock: Clock) -> None:
    account = Account(CallerLimits(requests_per_minute=2))
    account.take_request()
    account.take_request()
    with pytest.raises(RateLimitedError, match=r"2 requests per minute.*30\.0s") as caught:
        account.take_request()
    assert caught.value.headers == {"retry-after": "30", "retry-after-ms": "30000"}
    clock.now += 30
    account.take_request()
    with pytest.raises(RateLimitedError):
        account.take_request()


def test_tokens_of_answers_are_a_debt_that_the_next_call_waits_for(clock: Clock) -> None:
    account = Account(CallerLimits(tokens_per_minute=60))
    account.check(10)
    account.spend_tokens(10)
    account.spend_tokens(80)
    with pytest.raises(RateLimitedError, match="60 tokens per minute; this prompt has 5") as caught:
        account.check(5)
    assert caught.value.kind == "tokens"
    assert caught.value.headers["retry-after"] == "35"
    clock.now += 35
    account.check(5)


def test_a_prompt_beyond_a_minutes_tokens_waits_for_a_full_bucket(clock: Clock) -> None:
    account = Account(CallerLimits(tokens_per_minute=60))
    account.check(1000)
    account.spend_tokens(1)
    with pytest.raises(RateLimitedError):
        account.check(1000)


def test_headers_tell_what_is_left_and_when_all_of_it_will_be(clock: Clock) -> None:
    account = Account(CallerLimits(requests_per_minute=6, tokens_per_minute=600))
    account.take_request()
    account.spend_tokens(900)
    assert account.headers() == {
        "x-ratelimit-limit-requests": "6",
        "x-ratelimit-remaining-requests": "5",
        "x-ratelimit-reset-requests": "10s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "1m30s",
    }
    assert Account(CallerLimits()).headers() == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.35, "350ms"), (1, "1s"), (1.5, "1.5s"), (60, "1m0s"), (366.25, "6m6.25s")],
)
def test_times_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_accounts_of_many_addresses_take_no_more_room(clock: Clock) -> None:
    accounts = Accounts(CallerLimits(requests_per_minute=1))
    accounts.of("address:busy").take_request()
    for index in range(MAX_ACCOUNTS + 50):
        accounts.of(f"address:{index}")
    assert len(accounts) == MAX_ACCOUNTS
    # Whoever has spent something is not forgotten before those who have not.
    with pytest.raises(RateLimitedError):
        accounts.of("address:busy").take_request()


def test_calls_beyond_the_limit_are_refused_for_each_key_apart() -> None:
    config = ServerConfig(api_key=(KEY, OTHER), admin_key=(ADMIN,), max_requests_per_minute=2)

    async def scenario() -> None:
        async with serving(saying("a"), config=config) as api:
            body = {"model": MODEL, "messages": USER}

            async def ask(key: str):  # type: ignore[no-untyped-def]
                headers = {"x-api-key": key}
                return await api.http.post("/v1/chat/completions", json=body, headers=headers)

            first = await ask(KEY)
            assert first.status_code == 200
            assert first.headers["x-ratelimit-limit-requests"] == "2"
            assert first.headers["x-ratelimit-remaining-requests"] == "1"
            assert "x-ratelimit-limit-tokens" not in first.headers
            assert (await ask(KEY)).status_code == 200
            response = await ask(KEY)
            error = error_of(response, 429)
            assert (error["code"], error["type"]) == ("rate_limit_exceeded", "requests")
            assert 1 <= int(response.headers["retry-after"]) <= 30
            assert response.headers["x-ratelimit-remaining-requests"] == "0"
            assert (await ask(OTHER)).status_code == 200
            message = {"model": MODEL, "messages": USER, "max_tokens": 1}
            refused = await api.http.post("/v1/messages", json=message, headers={"x-api-key": KEY})
            assert refused.status_code == 429
            assert refused.json()["error"]["type"] == "rate_limit_error"
            for _ in range(5):
                assert (await ask(ADMIN)).status_code == 200
                assert (await api.http.get("/health")).status_code == 200
            assert await refusals(api, "rate_limited") == 2

    run(scenario)


def test_without_keys_each_address_has_its_own_limit() -> None:
    config = ServerConfig(max_requests_per_minute=1)

    async def scenario() -> None:
        async with serving(config=config) as api:

            async def status_from(host: str) -> int:
                statuses: list[int] = []

                async def keep(message) -> None:  # type: ignore[no-untyped-def]
                    statuses.append(message.get("status"))

                scope = {"type": "http", "method": "GET", "path": "/version", "headers": [],
                         "query_string": b"", "client": (host, 1)}  # fmt: skip
                await api.app(scope, None, keep)  # type: ignore[arg-type]
                return statuses[0]

            assert [await status_from("10.0.0.1") for _ in range(2)] == [200, 429]
            assert await status_from("10.0.0.2") == 200
            # One machine has all addresses of its network.
            assert await status_from("2001:db8::1") == 200
            assert await status_from("2001:db8::2") == 429
            assert await status_from("2001:db8:0:1::1") == 200
            assert await status_from("::ffff:10.0.0.1") == 429

    run(scenario)


@pytest.mark.parametrize("is_trusted", [False, True])
def test_only_trusted_proxies_say_who_calls(is_trusted: bool) -> None:
    trusted = ("127.0.0.1",) if is_trusted else ()
    config = ServerConfig(max_requests_per_minute=1, trusted_proxy=trusted)

    async def scenario() -> None:
        async with listening(config) as live, httpx.AsyncClient() as http:
            statuses = []
            for address in ("10.0.0.1", "10.0.0.2", "10.0.0.2"):
                headers = {"x-forwarded-for": address}
                url = f"http://127.0.0.1:{live.port}/version"
                statuses.append((await http.get(url, headers=headers)).status_code)
            assert statuses == ([200, 200, 429] if is_trusted else [200, 429, 429])

    run(scenario)


def test_tokens_of_prompts_and_answers_are_counted() -> None:
    config = ServerConfig(max_tokens_per_minute=20)

    async def scenario() -> None:
        async with serving(config=config) as api:
            first = await api.complete(prompt="abcd", max_tokens=10, n=2)
            assert first.json()["usage"]["total_tokens"] == 24
            response = await api.complete(prompt="ab", max_tokens=1)
            error = error_of(response, 429)
            assert (error["code"], error["type"]) == ("rate_limit_exceeded", "tokens")
            assert response.headers["x-ratelimit-remaining-tokens"] == "0"
            assert await refusals(api, "rate_limited") == 1

    run(scenario)


@pytest.mark.parametrize("stream", [False, True])
def test_calls_at_once_are_limited_until_they_end_or_leave(stream: bool) -> None:
    config = ServerConfig(max_concurrent_requests=2)

    async def scenario() -> None:
        async with serving(saying("a"), config=config) as api:
            api.engine.is_paused = True
            calls = [asyncio.create_task(api.chat(n=3, stream=stream)) for _ in range(2)]
            while len(api.engine.core._requests) < 6:
                await asyncio.sleep(0)
            error = error_of(await api.chat(), 429)
            assert "2 requests at once" in error["message"]
            calls[0].cancel()
            await asyncio.gather(calls[0], return_exceptions=True)
            api.engine.is_paused = False
            api.engine._work.set()
            assert (await calls[1]).status_code == 200
            for _ in range(3):
                assert (await api.chat(stream=stream)).status_code == 200
            assert api.served.admission.num_begun == api.served.admission.num_waiting == 0

    run(scenario)


def test_the_sdk_knows_the_error_and_waits_as_long_as_it_is_told() -> None:
    config = ServerConfig(max_requests_per_minute=60)

    async def scenario() -> None:
        async with serving(saying("a"), config=config) as api:
            client = openai.AsyncOpenAI(
                base_url="http://localhost/v1", api_key="none", http_client=api.http, max_retries=0
            )
            account = api.served.admission.accounts.of("address:127.0.0.1")
            for _ in range(62):
                with contextlib.suppress(RateLimitedError):
                    account.take_request()
            assert account._requests is not None
            account._requests.spend(2, time.monotonic())
            with pytest.raises(openai.RateLimitError, match="60 requests per minute"):
                await client.models.list()
            patient = client.with_options(max_retries=2)
            assert (await patient.models.list()).data[0].id == MODEL

    run(scenario)
