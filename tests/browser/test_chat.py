"""A chat on the page, with the demo pair behind it."""

from __future__ import annotations

import json
import re
import urllib.request
from typing import Any

import pytest

from tests.browser.made_streams import CHATS
from tests.browser.watched_page import PHONE, Watched, watched
from tests.server_process import RunningServer, wait_for

DOG = "Tell me a story about a dog."


def metric(server: RunningServer, name: str) -> float:
    """Read a metric."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
        text = response.read().decode()
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.M)
    assert found, name
    return float(found[1])


def set_field(page: Any, name: str, value: str) -> None:
    """Change a setting as one who types."""
    if page.locator("aside.settings").is_hidden():
        page.click("text=Settings")
    page.fill(f"#set-{name}", value)
    page.locator(f"#set-{name}").blur()


def endless(page: Any) -> None:
    """Let answers go on to the end of the context."""

    def go_on(route: Any) -> None:
        route.continue_(post_data=json.dumps({**route.request.post_data_json, "ignore_eos": True}))

    page.route(CHATS, go_on)


def test_an_answer_streams(at: Watched) -> None:
    page = at.open()
    endless(page)
    set_field(page, "maxTokens", "400")
    page.evaluate(
        """() => {
          globalThis.lengths = new Set();
          new MutationObserver(() => {
            const shown = document.querySelector(".message.assistant .markdown");
            if (shown) lengths.add(shown.textContent.length);
          }).observe(document.body, { childList: true, subtree: true });
        }"""
    )
    at.ask(DOG)
    answer = at.answer()
    assert len(answer.locator(".markdown").inner_text()) > 40
    assert page.evaluate("lengths.size") > 3
    assert re.search(r"\d+ tokens · \d+ tokens/s", answer.locator(".took").inner_text())


def test_the_same_seed_gives_the_same_answer_without_speculation(at: Watched) -> None:
    page = at.open()
    set_field(page, "seed", "7")
    set_field(page, "maxTokens", "50")
    at.ask(DOG)
    said = at.answer().locator(".markdown").inner_text()
    page.select_option("#set-speculation", "off")
    page.click("[aria-label='Answer anew']")
    assert at.answer().locator(".markdown").inner_text() == said
    first, second = (body["speculation"] for body in at.asked)
    assert first == {"report": True}
    assert second == {"enabled": False, "report": True}


def test_settings_become_fields_of_the_request(at: Watched) -> None:
    page = at.open()
    for name, value in {"temperature": "0.3", "topP": "0.9", "maxTokens": "5", "seed": "3"}.items():
        set_field(page, name, value)
    set_field(page, "alternatives", "0")
    page.select_option("#set-speculation", "on")
    set_field(page, "maxDrafts", "2")
    page.fill("#system", "Answer in one word.")
    at.ask(DOG)
    at.answer()
    (body,) = at.asked
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.3, 0.9, 5)
    assert (body["seed"], "logprobs" in body) == (3, False)
    assert body["speculation"] == {"enabled": True, "max_draft_tokens": 2, "report": True}
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert "limit of tokens" in page.locator(".message.assistant").inner_text()


@pytest.mark.parametrize("way", ["click", "Escape"])
def test_stop_frees_the_request(at: Watched, server: RunningServer, way: str) -> None:
    page = at.open()
    endless(page)
    aborted = 'outdraft:request_success_total{finished_reason="abort",model_name="demo"}'
    before = metric(server, aborted)
    at.ask(DOG)
    at.until("document.querySelector('.message.assistant .markdown')?.textContent.length > 20")
    if way == "click":
        page.click("[aria-label='Stop the answer']")
    else:
        page.keyboard.press("Escape")
    wait_for(lambda: metric(server, aborted) == before + 1, 10, "was not aborted")
    running = 'outdraft:num_requests_running{model_name="demo"}'
    wait_for(lambda: metric(server, running) == 0, 10, "still runs")
    answer = at.answer()
    assert "was stopped" in answer.inner_text()
    assert len(answer.locator(".markdown").inner_text()) > 20


def test_an_edited_message_is_asked_anew_from_there(at: Watched) -> None:
    page = at.open()
    set_field(page, "maxTokens", "8")
    for text in (DOG, "And then?"):
        at.ask(text)
        at.answer()
    page.locator(".message.user").first.hover()
    page.locator(".message.user").first.locator("[aria-label='Edit the message']").click()
    page.fill("textarea[aria-label='Edit the message']", "Tell me a story about a cat.")
    page.click("text=Ask again from here")
    at.answer()
    assert page.locator(".message").count() == 2
    assert at.asked[1]["messages"][0]["content"] == DOG
    assert at.asked[2]["messages"] == [{"role": "user", "content": "Tell me a story about a cat."}]


def test_answers_are_copied(browser: Any, server: RunningServer) -> None:
    with watched(browser, server.url, permissions=["clipboard-read", "clipboard-write"]) as at:
        page = at.open()
        at.ask(DOG)
        answer = at.answer()
        answer.locator("[aria-label='Copy the answer']").click()
        at.until("document.getElementById('live').textContent === 'Copied'")
        copied = page.evaluate("navigator.clipboard.readText()")
        shown = answer.locator(".markdown").inner_text()
        assert "".join(copied.split()) == "".join(shown.split())


def test_an_answer_goes_on_while_another_conversation_is_open(at: Watched) -> None:
    page = at.open()
    endless(page)
    set_field(page, "maxTokens", "400")
    at.ask(DOG)
    page.wait_for_selector("[aria-label='Stop the answer']")
    page.click("text=New conversation >> nth=0")
    page.wait_for_selector(".welcome")
    page.wait_for_selector("[aria-label='Send']")
    page.click(".conversations .title")
    assert "400 tokens" in at.answer().locator(".took").inner_text()


def test_a_question_can_be_changed_while_it_is_answered(at: Watched) -> None:
    page = at.open()
    endless(page)
    set_field(page, "maxTokens", "300")
    at.ask(DOG)
    at.until("document.querySelector('.message.assistant .markdown')?.textContent.length > 20")
    page.locator(".message.user").hover()
    page.click("button[aria-label='Edit the message']")
    page.fill("textarea[aria-label='Edit the message']", "Tell me a story about a cat.")
    page.click("text=Ask again from here")
    page.wait_for_selector(".said:has-text('cat')")
    assert "300 tokens" in at.answer().locator(".took").inner_text()
    assert page.locator(".message").count() == 2


def test_what_came_of_an_answer_outlives_the_page(at: Watched) -> None:
    page = at.open()
    page.route(CHATS, lambda route: None)
    at.ask(DOG)
    page.wait_for_selector("[aria-label='Stop the answer']")
    at.until("document.querySelectorAll('.conversations li').length === 1")
    page.reload()
    page.wait_for_selector("text=The answer was interrupted")
    page.unroute(CHATS)
    page.click("[aria-label='Answer anew']")
    assert len(at.answer().locator(".markdown").inner_text()) > 10


def test_everything_fits_on_a_phone(browser: Any, server: RunningServer) -> None:
    for width in (PHONE["width"], 360):
        with watched(browser, server.url, {**PHONE, "width": width}, has_touch=True) as at:
            page = at.open()
            at.ask(DOG)
            at.answer()
            page.keyboard.press("Alt+t")
            page.wait_for_selector(".tokens .token")
            page.locator(".tokens .token").first.tap()
            card = page.locator(".token-card").bounding_box()
            assert card["x"] >= 0
            assert card["x"] + card["width"] <= width
            for view in ("chat", "race"):
                at.open(view)
                assert page.evaluate("document.documentElement.scrollWidth") <= width
            at.open()
            page.click("button[aria-label='Conversations']")
            assert page.locator(".conversations li").count() == 1
            page.keyboard.press("Escape")
            assert page.locator(".sidebar").is_hidden()
