"""What a server refuses, and what becomes of the page when it is gone, behind a made-up engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from server.config import ServerConfig
from tests.browser.made_streams import answer_with, chunks, stream_of
from tests.browser.watched_page import Watched, watched
from tests.server.live_server import Live, listening

KEY = "sk-alice-0123456789"


@contextmanager
def listening_apart(config: ServerConfig) -> Iterator[tuple[str, Callable[[], None]]]:
    """Serve in a thread of its own; gives the address, and what makes it hang up."""
    ready = threading.Event()
    found: list[tuple[asyncio.AbstractEventLoop, asyncio.Event, Live]] = []

    async def serve() -> None:
        async with listening(config) as live:
            over = asyncio.Event()
            found.append((asyncio.get_running_loop(), over, live))
            ready.set()
            await over.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(30)
    loop, over, live = found[0]

    def end() -> None:
        if thread.is_alive():
            loop.call_soon_threadsafe(over.set)
            thread.join(30)

    try:
        yield f"http://127.0.0.1:{live.port}", end
    finally:
        end()


@contextmanager
def page_at(browser: Any, config: ServerConfig) -> Iterator[tuple[Watched, Callable[[], None]]]:
    """Open the page of a server with such settings."""
    with listening_apart(config) as (url, end), watched(browser, url) as at:
        yield at, end


def test_a_key_is_asked_for_and_kept_for_the_tab_alone(browser: Any) -> None:
    with page_at(browser, ServerConfig(api_key=(KEY,))) as (at, _):
        page = at.open()
        page.wait_for_selector("dialog #api-key")
        assert "API key" in page.inner_text("#api-key-why")
        page.fill("#api-key", "sk-wrong-0123456789")
        page.press("#api-key", "Enter")
        page.wait_for_selector("text=Incorrect API key provided.")
        page.fill("#api-key", KEY)
        page.press("#api-key", "Enter")
        page.wait_for_selector("#model:has-text('tiny')")
        at.ask("hi")
        assert at.answer().locator(".error-box").count() == 0
        assert KEY not in page.evaluate("JSON.stringify(localStorage)")
        assert KEY in page.evaluate("JSON.stringify(sessionStorage)")
        assert KEY not in page.url
        page.reload()
        page.wait_for_selector("#model:has-text('tiny')")
        assert page.locator("dialog").count() == 0
        at.forgive("401")


def test_who_gives_no_key_is_told_what_the_server_said(browser: Any) -> None:
    with page_at(browser, ServerConfig(api_key=(KEY,))) as (at, _):
        page = at.open()
        page.click("dialog >> text=Cancel")
        at.ask("hi")
        page.click("dialog >> text=Cancel")
        told = at.answer().locator(".error-box").inner_text()
        assert "401" in told
        assert "You did not provide an API key" in told
        at.forgive("401")


def test_who_asks_too_often_is_told_when_to_ask_again(browser: Any) -> None:
    with page_at(browser, ServerConfig(max_requests_per_minute=2)) as (at, _):
        page = at.open()
        page.wait_for_selector("#model:has-text('tiny')")
        for text in ("one", "two"):
            at.ask(text)
            answer = at.answer()
        told = answer.locator(".error-box").inner_text()
        assert "429" in told
        assert "The server says: in" in told
        assert answer.locator(".error-box button").is_disabled()
        at.forgive("429")


def test_a_server_that_is_gone_is_told_of_and_asked_again(browser: Any) -> None:
    with page_at(browser, ServerConfig()) as (at, end):
        page = at.open()
        at.ask("one")
        at.answer()
        end()
        at.ask("two")
        answer = at.answer()
        assert "cannot be reached" in answer.locator(".error-box").inner_text()
        assert answer.locator(".error-box button").is_enabled()
        at.forgive("ERR_CONNECTION")
        assert page.locator(".message.user").count() == 2


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        ("", "connection ended before the answer"),
        ('data: {"error":{"message":"The engine died.","code":"engine_dead"}}\n\n', "The engine"),
    ],
)
def test_an_answer_that_breaks_off_keeps_what_came(browser: Any, tail: str, words: str) -> None:
    with page_at(browser, ServerConfig()) as (at, _):
        page = at.open()
        begun = stream_of(chunks(["Once", " upon"])[:2], is_whole=False)
        answer_with(page, begun + tail)
        at.ask("hi")
        answer = at.answer()
        assert "Once" in answer.locator(".markdown").inner_text()
        assert words in answer.locator(".error-box").inner_text()


def test_what_is_too_much_is_told_with_its_limit(browser: Any) -> None:
    with page_at(browser, ServerConfig()) as (at, _):
        page = at.open()
        page.click("text=Settings")
        page.fill("#set-maxTokens", "99999999")
        page.locator("#set-maxTokens").blur()
        at.ask("hi")
        assert "maximum context length is" in at.answer().locator(".error-box").inner_text()
        at.forgive("400")
