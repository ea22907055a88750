"""Texts that mean harm, or are only very long, are shown as what they are."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.made_streams import answer_with, chunks, stream_of
from tests.browser.watched_page import Watched

MARKUP = [
    "<script>globalThis.__harmed = 1</script>",
    "<img src=x onerror='globalThis.__harmed = 1'>",
    "<div style='position:fixed;inset:0'>over all</div>",
    "<iframe src='javascript:parent.__harmed = 1'></iframe>",
    "<svg><script>globalThis.__harmed = 1</script></svg>",
    "[click](javascript:globalThis.__harmed=1) [data](data:text/html,<script>1</script>)",
    "![picture](https://elsewhere.example/leak.png?secret)",
    "&lt;script&gt;globalThis.__harmed = 1&lt;/script&gt;",
    "| <b>a</b> |\n|---|\n| <script>globalThis.__harmed = 1</script> |",
    "```html\n<script>globalThis.__harmed = 1</script>\n```",
    "```<script>\nx\n```",
    "<a href='//elsewhere.example' target=_top>leave</a>",
]
BROKEN = [
    "```python\ndef f(:\n  'never closed",
    "**bold _both ~~all` none](",
    "| a | b |\n|--|\n| 1 |",
    "[" * 2000 + "]" * 2000,
    "> " * 3000 + "deep",
    "_a_" * 5000,
    "- " * 3000,
    "1. " * 1000 + "\n" * 1000,
    "\\" * 5000,
    "# " * 500,
    "a\u0000b\ufffd\u202ereversed\u2028line",
]


def shown(at: Watched, text: str) -> Any:
    """Let a text be answered, in parts, and give its answer."""
    page = at.open()
    size = max(1, len(text) // 7)
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    answer_with(page, stream_of(chunks(parts)))
    at.ask("Do your worst.")
    return at.answer()


@pytest.mark.parametrize("text", MARKUP)
def test_markup_of_a_model_is_text(at: Watched, text: str) -> None:
    answer = shown(at, text)
    page = at.page
    tags = page.evaluate(
        """() => [...document.querySelectorAll(".markdown *")].map((one) => one.localName)"""
    )
    assert not {"script", "img", "iframe", "style", "form", "object"} & set(tags)
    assert page.locator(".markdown [style], .markdown [onerror]").count() == 0
    for link in page.locator(".markdown a").all():
        assert link.get_attribute("href").startswith("https://")
        assert "noopener" in link.get_attribute("rel")
    answer.locator(".view-switch").click()
    page.wait_for_selector(".tokens .token")
    assert page.evaluate("globalThis.__harmed") is None


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_broken_markdown_is_shown_all_the_same(at: Watched, text: str) -> None:
    answer = shown(at, text)
    assert answer.locator(".markdown").inner_text().strip() or not text.strip("->#1. \n\\")
    assert at.page.evaluate("1 + 1") == 2


def test_what_the_user_writes_is_text_too(at: Watched) -> None:
    page = at.open()
    answer_with(page, stream_of(chunks(["ok"])))
    at.ask(MARKUP[0])
    at.answer()
    assert page.locator(".said").inner_text() == MARKUP[0]
    assert page.locator(".conversations .title").inner_text() == MARKUP[0]
    assert page.evaluate("globalThis.__harmed") is None


def test_markdown_becomes_what_it_means(at: Watched) -> None:
    text = (
        "# Title\n\nSome **bold**, _soft_ and `code` &amp; [a link](https://example.com/).\n\n"
        "- [x] done\n- open\n\n| a | b |\n|--:|:-:|\n| 1 | 2 |\n\n> said\n\n"
        "```python\ndef f(x):\n    return 'text'  # why\n```\n"
    )
    markdown = shown(at, text).locator(".markdown")
    for selector, inner in {
        "h3": "Title", "strong": "bold", "em": "soft", "p code": "code", "td.to-right": "1",
        "blockquote": "said", "a": "a link",
    }.items():  # fmt: skip
        assert markdown.locator(selector).first.inner_text() == inner
    assert "& a link" in markdown.locator("p").first.inner_text()
    markdown.locator(".hl-keyword").first.wait_for()
    assert markdown.locator(".hl-keyword").first.inner_text() == "def"
    assert markdown.locator("pre").inner_text().startswith("def f(x):\n    return 'text'")


def test_what_grows_ends_as_what_is_whole(at: Watched) -> None:
    """Blocks that are made once, while the text grows, are those of the whole text."""
    page = at.open()
    text = "".join(
        f"Part {i} with **bold**\n\n- a\n\n- b {i}\n\n```\ncode {i}\n```\n\n> q\nlazy {i}\n\n"
        for i in range(40)
    )
    alike = page.evaluate(
        """async (text) => {
          const { GrowingMarkdown } = await import("/web/markdown/growing.js");
          const [grown, whole] = [document.createElement("div"), document.createElement("div")];
          document.body.append(grown, whole);
          const growing = new GrowingMarkdown(grown);
          for (let end = 0; end < text.length + 97; end += 97) {
            growing.update(text.slice(0, end));
            await new Promise((resolve) => setTimeout(resolve, 5));
          }
          const last = text.trimEnd().slice(-8);
          while (!grown.textContent.trimEnd().endsWith(last)) {
            await new Promise((resolve) => setTimeout(resolve, 20));
          }
          new GrowingMarkdown(whole).finish(text);
          return grown.textContent === whole.textContent
            && grown.children.length === whole.children.length;
        }""",
        text,
    )
    assert alike


def test_a_very_long_word_and_many_tokens_leave_the_page_alive(at: Watched) -> None:
    page = at.open()
    answer_with(page, stream_of(chunks(["aaaaa"] * 20_000, per_chunk=60)))
    at.ask("Go on.")
    answer = at.answer()
    assert page.evaluate("document.querySelector('.markdown').textContent.length") == 100_000
    answer.locator(".view-switch").click()
    page.wait_for_selector(".tokens .token")
    # Far from what can be seen, tokens are plain text: few elements, and the whole text.
    at.until("document.querySelectorAll('.tokens .token').length < 6000")
    text = page.evaluate("document.querySelector('.tokens').textContent.length")
    assert text == 100_000
    assert page.evaluate("document.querySelectorAll('.pass').length") < 400
    page.evaluate("document.querySelector('.thread').scrollTop = 2000")
    page.wait_for_selector(".tokens .token")
    page.locator(".tokens").focus()
    page.keyboard.press("End")
    page.wait_for_selector(".token.chosen[data-index='19999']")
