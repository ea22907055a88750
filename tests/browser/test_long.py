"""A conversation of 20,000 tokens: it is there as a whole, and only what can be seen is drawn."""

from __future__ import annotations

import logging
from typing import Any

from tests.browser.made_streams import passes_of
from tests.browser.watched_page import Watched

log = logging.getLogger(__name__)
NUM_ANSWERS = 40
WORDS = (" the", " little", " dog", " **ran**", " home", ".", " He", "\n\n", "- item", "\n")
TOKENS = [WORDS[place % len(WORDS)] for place in range(500)]
KEEP = """async ([tokens, passes, count]) => {
  const { write } = await import("/web/chat/database.js");
  const messages = [];
  for (let i = 0; i < count; i += 1) {
    messages.push({ id: `u${i}`, role: "user", content: `Question ${i}` });
    messages.push({ id: `a${i}`, role: "assistant", content: tokens.join(""), hasTrace: true });
    await write("traces", { id: `a${i}`, passes });
  }
  await write("conversations", { id: "c", title: "Long", system: "", updated: 1, messages });
}"""
SCROLL = """async () => {
  const thread = document.querySelector(".thread");
  const gaps = [];
  for (thread.scrollTop = 0; gaps.length < 100; thread.scrollTop += thread.clientHeight / 2) {
    const start = performance.now();
    await new Promise((resolve) => requestAnimationFrame(resolve));
    gaps.push(performance.now() - start);
  }
  gaps.sort((a, b) => a - b);
  return { p50: gaps[50], p95: gaps[95], most: gaps[99] };
}"""


def drawn(page: Any, selector: str) -> int:
    """Count elements."""
    return int(page.evaluate(f"document.querySelectorAll('{selector}').length"))


def test_a_long_conversation_is_drawn_where_it_is_seen(at: Watched) -> None:
    page = at.open()
    page.evaluate(KEEP, [TOKENS, passes_of(TOKENS), NUM_ANSWERS])
    page.reload()
    page.wait_for_selector(f".message.assistant >> nth={NUM_ANSWERS - 1}")
    assert drawn(page, ".markdown strong") == NUM_ANSWERS * len(TOKENS) // len(WORDS)
    log.info("text_frame_ms=%s", page.evaluate(SCROLL))
    page.keyboard.press("Alt+t")
    at.until(f"document.querySelectorAll('.tokens').length === {NUM_ANSWERS}")
    page.wait_for_selector(".tokens .token")
    log.info("tokens_frame_ms=%s", page.evaluate(SCROLL))
    at.until("document.querySelectorAll('.tokens .token').length < 4000")
    length = page.evaluate(
        """[...document.querySelectorAll(".tokens")]
        .reduce((sum, one) => sum + one.textContent.length, 0)"""
    )
    assert length == NUM_ANSWERS * len("".join(TOKENS).replace("\n", "⏎\n"))
