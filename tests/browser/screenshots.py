"""Takes pictures of the playground with the demo pair behind it: `make screenshots`.

Each is named for its view, its size and its colours; `--only` keeps those whose name has a part.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from tests.browser.conftest import launch
from tests.conftest import ROOT
from tests.server_process import running_server

SIZES = {"phone": (390, 844), "laptop": (1280, 800), "wide": (1920, 1080)}
SCHEMES = ("light", "dark")
STORY = "Tell me a story about a dog who finds a map."
SEED = "8"
WORDS = ["--threads", "1", "--kv-cache-memory", "128MiB"]


def main(words: list[str]) -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=ROOT / "bench-results" / "screenshots")
    parser.add_argument("--only", default="", help="part of a name, such as chat-laptop")
    args = parser.parse_args(words)
    args.to.mkdir(parents=True, exist_ok=True)
    log = Path(tempfile.mkdtemp()) / "log"
    with running_server(WORDS, log) as server, sync_playwright() as started:
        browser = launch(started)
        for size in SIZES:
            for scheme in SCHEMES:
                for view, show in VIEWS.items():
                    name = f"{view}-{size}-{scheme}"
                    if args.only in name:
                        with page_at(browser, server.url, size, scheme) as page:
                            show(page, server.url)
                            page.screenshot(path=args.to / f"{name}.png")
                        print(args.to / f"{name}.png")
        browser.close()


@contextmanager
def page_at(browser: Any, url: str, size: str, scheme: str) -> Iterator[Any]:
    """Open the page."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        has_touch=size == "phone",
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("#composer")
    yield page
    context.close()


def show_welcome(page: Any, _url: str) -> None:
    """The page as it begins."""
    page.wait_for_selector(".welcome")


def show_answer(page: Any, _url: str) -> None:
    """A conversation."""
    ask(page, "I need a table for two in San Jose tonight.", tokens=40)
    ask(page, STORY, tokens=170)


def show_tokens(page: Any, _url: str) -> None:
    """An answer's tokens, and the card of one."""
    ask(page, STORY, tokens=170)
    page.locator(".view-switch").last.click()
    page.wait_for_selector(".tokens .token")
    page.evaluate("document.querySelector('.thread').scrollTop = 0")
    page.locator(".tokens .by-draft_model").nth(12).hover()
    page.wait_for_selector(".token-card")


def show_settings(page: Any, _url: str) -> None:
    """The settings beside an answer."""
    ask(page, STORY, tokens=60)
    page.click("text=Settings")


def show_race(page: Any, url: str) -> None:
    """A race that is over."""
    page.goto(f"{url}/#/race")
    page.wait_for_selector(".race-form")
    page.fill("#race-seed", SEED)
    page.click(".race-form button[type=submit]")
    page.wait_for_selector(".verdict")


VIEWS = {
    "welcome": show_welcome,
    "chat": show_answer,
    "tokens": show_tokens,
    "settings": show_settings,
    "race": show_race,
}


def ask(page: Any, text: str, *, tokens: int) -> None:
    """Ask, and wait for the answer."""
    chosen = {"seed": SEED, "maxTokens": str(tokens), "temperature": "0.7"}
    if page.evaluate("localStorage.getItem('outdraft.settings')") is None:
        page.evaluate(
            "chosen => localStorage.setItem('outdraft.settings', JSON.stringify(chosen))", chosen
        )
        page.reload()
        page.wait_for_selector("#composer")
    page.fill("#composer", text)
    page.press("#composer", "Enter")
    page.wait_for_selector("[aria-label='Send']")
    page.locator(".message.assistant").last.locator(".took").wait_for(state="attached")


if __name__ == "__main__":
    main(sys.argv[1:])
