"""A page under watch: what its console says, what its policy stops, and where its requests go."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.server_process import wait_for

# Tells of what the policy stopped, also where the console does not.
_HEAR_POLICY = """
globalThis.__stopped = [];
document.addEventListener("securitypolicyviolation", (event) => {
  globalThis.__stopped.push(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}`);
});
"""
# Other processes may share the machine; nothing waits longer than it must.
PATIENCE_S = 90
LAPTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}


class Watched:
    """A page, and what happened on it.

    Attributes:
        page: playwright's.
        url: the server's.
        complaints: errors and warnings of the console, and exceptions that nobody caught.
        requests: addresses that were asked for.
        asked: bodies of chat requests, as they were sent.
    """

    def __init__(self, page: Any, url: str) -> None:
        self.page = page
        self.url = url
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.asked: list[dict[str, Any]] = []
        page.set_default_timeout(PATIENCE_S * 1000)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(f"pageerror: {error}"))
        page.on("request", self._note)

    def _hear(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(f"{message.type}: {message.text}")

    def _note(self, request: Any) -> None:
        self.requests.append(request.url)
        if request.method == "POST":
            self.asked.append(json.loads(request.post_data))

    def open(self, view: str = "chat") -> Any:
        """Go to a view."""
        self.page.goto(f"{self.url}/#/{view}")
        self.page.wait_for_selector("#composer" if view == "chat" else f".{view}-view")
        return self.page

    def ask(self, text: str) -> None:
        """Send a message as one who types."""
        self.page.fill("#composer", text)
        self.page.press("#composer", "Enter")

    def until(self, expression: str) -> None:
        """Wait until something is so on the page, whose policy forbids playwright's own way."""
        wait_for(lambda: bool(self.page.evaluate(expression)), PATIENCE_S, expression)

    def answer(self) -> Any:
        """Wait until the last answer is over, and give its element."""
        self.page.wait_for_selector("[aria-label='Send']")
        last = self.page.locator(".message.assistant").last
        last.locator(".took").wait_for(state="attached")
        return last

    def forgive(self, *parts: str) -> None:
        """Drop complaints that a test brought about: a browser logs every refusal of a server."""
        self.complaints = [
            told for told in self.complaints if not any(part in told for part in parts)
        ]

    def check(self) -> None:
        """Fail where anything complained, or was asked of another host."""
        stopped = self.page.evaluate("globalThis.__stopped")
        assert not stopped
        assert not self.complaints
        strangers = [url for url in self.requests if not url.startswith((self.url, "data:"))]
        assert not strangers


@contextmanager
def watched(
    browser: Any, url: str, viewport: dict[str, int] | None = None, **options: Any
) -> Iterator[Watched]:
    """Open a page in a profile of its own; it is checked when the block ends well."""
    context = browser.new_context(viewport=viewport or LAPTOP, **options)
    context.add_init_script(_HEAR_POLICY)
    page = Watched(context.new_page(), url)
    try:
        yield page
        page.check()
    finally:
        context.close()
