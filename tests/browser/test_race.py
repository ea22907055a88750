"""The race: both lanes write the same, and the page says so; where they do not, it says that."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.browser.made_streams import CHATS, chunks, stream_of
from tests.browser.watched_page import Watched

# The full form asks more seeds.
NUM_SEEDS = int(os.environ.get("OUTDRAFT_RACE_SEEDS", "3"))
TOKENS = "60"


def race(at: Watched, seed: int, temperature: str, mode: str = "turn") -> Any:
    """Run a race, and give the page when it is over."""
    page = at.open("race")
    page.fill("#race-seed", str(seed))
    page.fill("#race-tokens", TOKENS)
    page.fill("#race-temperature", temperature)
    page.select_option("#race-mode", mode)
    page.click(".race-form button[type=submit]")
    page.wait_for_selector(".verdict, .error-box")
    return page


@pytest.mark.parametrize("seed", range(NUM_SEEDS))
def test_both_write_the_same(at: Watched, seed: int) -> None:
    page = race(at, seed, "0" if seed % 3 == 0 else "0.8")
    assert "Identical" in page.inner_text(".verdict")
    assert "token for token" in page.inner_text(".verdict")
    texts = page.locator(".lane-room").all_inner_texts()
    assert texts[0] == texts[1]
    assert len(texts[0]) > 20
    for body, is_drafted in zip(at.asked[-2:], (False, True), strict=True):
        assert body["seed"] == seed
        assert body["speculation"].get("enabled", True) is is_drafted
    page.locator("[data-lane=drafted] .by-draft_model").first.wait_for(state="attached")
    page.locator("[data-lane=plain] .by-target").first.wait_for(state="attached")
    assert page.locator("[data-lane=plain] .by-draft_model").count() == 0


def test_both_at_once_write_the_same_and_the_page_says_what_times_mean(at: Watched) -> None:
    page = race(at, 11, "0.8", "once")
    told = page.inner_text(".verdict")
    assert "Identical" in told
    assert "Both shared the machine" in told


@pytest.mark.parametrize(
    ("other", "words"),
    [(["one", " TWO"], "They part after 4 characters"), (["one two"], "not their tokens")],
)
def test_other_words_are_called_different(at: Watched, other: list[str], words: str) -> None:
    page = at.open("race")

    def answer(route: Any) -> None:
        is_plain = route.request.post_data_json["speculation"].get("enabled") is False
        body = stream_of(chunks(["one", " two"] if is_plain else other))
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    page.route(CHATS, answer)
    page.click(".race-form button[type=submit]")
    page.wait_for_selector(".verdict")
    assert "Different" in page.inner_text(".verdict")
    assert words in page.inner_text(".verdict")


def test_a_race_can_be_stopped_and_run_again(at: Watched) -> None:
    page = at.open("race")
    page.fill("#race-tokens", "1500")
    page.click(".race-form button[type=submit]")
    page.wait_for_selector(".lane.running")
    page.keyboard.press("Escape")
    page.wait_for_selector("text=The race was stopped")
    race(at, 1, "0")
    assert "Identical" in page.inner_text(".verdict")


def test_what_the_server_refuses_is_told(at: Watched) -> None:
    page = at.open("race")
    page.fill("#race-tokens", "100000")
    page.click(".race-form button[type=submit]")
    # The warm-up asks for less, so it is the race itself that is refused.
    page.wait_for_selector(".error-box")
    assert "400" in page.inner_text(".error-box")
    at.forgive("400")
