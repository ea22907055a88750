"""The board beside `/metrics` of the same server, with a model that drafts."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server_process import RunningServer, running_server, wait_for

playwright_api = pytest.importorskip("playwright.sync_api")
expect = playwright_api.expect

ADMIN_KEY = "sk-admin"
PROMPT = "Tell me a story about a zebra."
_AHEAD = "outdraft:spec_decode_"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    words = ["--threads", "1", "--admin-key", ADMIN_KEY, "--price-per-hour", "2"]
    with running_server(words, tmp_path_factory.mktemp("board") / "log") as running:
        yield running


def ask(server: RunningServer) -> str:
    """Have four stories told, one after the other; gives the last."""
    text = ""
    for seed in range(4):
        body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 60, "seed": seed}
        request = urllib.request.Request(
            f"{server.api}/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            text = json.load(response)["choices"][0]["message"]["content"]
    return text


def metrics(server: RunningServer) -> dict[tuple[str, ...], float]:
    """Read `/metrics`, by name and the labels beside the model's name."""
    request = urllib.request.Request(
        f"{server.url}/metrics", headers={"authorization": f"Bearer {ADMIN_KEY}"}
    )
    with urllib.request.urlopen(request) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    return {
        (s.name, *(value for label, value in s.labels.items() if label != "model_name")): s.value
        for family in families
        for s in family.samples
    }


def open_board(page: Any, server: RunningServer) -> None:
    page.goto(f"{server.url}/#/board")
    page.get_by_label("Admin key").fill(ADMIN_KEY)
    page.keyboard.press("Enter")
    expect(page.locator(".board [role=status]")).to_have_text("Live")


def in_all(page: Any, measure: str) -> float:
    text = page.locator(f"[data-measure={measure}] .board-total").inner_text()
    return float(re.sub(r"\D", "", text) or "nan")


def rows(page: Any, title: str) -> list[tuple[float, float]]:
    """Give a table's accepted and proposed tokens."""
    texts = page.locator(f"section[aria-label='{title}'] tbody tr").evaluate_all(
        "rows => rows.map((row) => [...row.cells].slice(2, 4).map((cell) => cell.textContent))"
    )
    return [tuple(float(text.replace(",", "")) for text in row) for row in texts]


def counted(found: dict[tuple[str, ...], float], accepted: str, drafted: str) -> list[Any]:
    """Give the same of `/metrics`, for each value of a label that has drafts."""
    labels = [key[1] for key, value in found.items() if key[0] == drafted and value]
    return [(found[accepted, label], found[drafted, label]) for label in labels]


def test_numbers_are_those_of_metrics(page: Any, server: RunningServer) -> None:
    open_board(page, server)
    ask(server)
    found = metrics(server)
    for measure, name in {
        "tokens_per_second": "outdraft:generation_tokens_total",
        "prompt_tokens_per_second": "outdraft:prompt_tokens_total",
        "acceptance_rate": f"{_AHEAD}num_accepted_tokens_total",
        "preemptions_per_minute": "outdraft:num_preemptions_total",
    }.items():
        wait_for(lambda m=measure, n=name: in_all(page, m) == found[n,], 30, measure)  # type: ignore[misc]
    positions = counted(
        found,
        f"{_AHEAD}num_accepted_tokens_per_pos_total",
        f"{_AHEAD}num_draft_tokens_per_pos_total",
    )
    drafters = counted(
        found, f"{_AHEAD}drafter_accepted_tokens_total", f"{_AHEAD}drafter_draft_tokens_total"
    )
    assert positions
    assert drafters
    wait_for(lambda: rows(page, "Acceptance by position") == positions, 30, str(positions))
    wait_for(lambda: rows(page, "Acceptance by drafter") == drafters, 30, str(drafters))


def test_board_moves_under_load_and_tells_no_text(page: Any, server: RunningServer) -> None:
    open_board(page, server)
    story = ask(server)
    for measure in ("tokens_per_target_pass", "tokens_per_step", "cost_per_million_tokens"):
        line = page.locator(f"[data-measure={measure}] .board-line")
        expect(line).to_have_attribute("d", re.compile(r"^M"), timeout=30_000)
    expect(page.locator("[data-measure=ttft_ms] .board-values")).to_have_text(
        re.compile(r"^p50[\d.]+p90[\d.]+p99[\d.]+m?s$")
    )
    page.get_by_text("All values as a table").click()
    shown = page.content()
    assert not any(word in shown for word in ("zebra", story[:20]))
