"""The live board in a browser, over statistics that a test makes up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.statistics_stub import StatisticsStub, sample, statistics_stub
from tests.browser.test_page import AXE, findings, needs_axe
from tests.server_process import wait_for

playwright_api = pytest.importorskip("playwright.sync_api")
expect = playwright_api.expect

BUSY: dict[str, Any] = {
    "tokens_per_second": 12345.6,
    "prompt_tokens_per_second": 20.0,
    "tokens_per_target_pass": 2.31,
    "draft_tokens_per_pass": 3.0,
    "acceptance_rate": 0.442,
    "by_position": [{"proposed": 80, "accepted": 64}, {"proposed": 40, "accepted": 10}],
    "by_drafter": {"draft_model": {"proposed": 90, "accepted": 70}},
    "estimated_speedup": 1.7,
    "requests_running": 3,
    "requests_waiting": 2,
    "kv_blocks_used": 16,
    "prefix_hit_rate": 0.5,
    "tokens_per_step": 12.5,
    "ttft_ms": {"p50": 1234.0, "p90": 2345.0, "p99": 34567.0},
    "itl_ms": {"p50": 12.3, "p90": 23.4, "p99": 345.6},
    "preemptions": 1,
}


@pytest.fixture
def stub() -> Iterator[StatisticsStub]:
    with statistics_stub() as server:
        yield server


@pytest.fixture
def board(page: Any, stub: StatisticsStub) -> Any:
    """The board with one sample, in a browser whose time can be wound on."""
    page.clock.install()
    open_board(page, stub)
    return page


def open_board(page: Any, stub: StatisticsStub) -> None:
    page.goto(f"{stub.url}/#/board")
    wait_for(lambda: stub.num_listeners == 1, 30, "the board does not listen")
    stub.send(sample(0))
    expect(status(page)).to_have_text("Live")


def status(page: Any) -> Any:
    return page.locator(".board [role=status]")


def values(page: Any, measure: str) -> Any:
    return page.locator(f"[data-measure={measure}] .board-values")


def hide(page: Any, is_hidden: bool) -> None:
    state = "hidden" if is_hidden else "visible"
    page.evaluate(
        "state => { Object.defineProperty(document, 'visibilityState',"
        " { value: state, configurable: true });"
        " document.dispatchEvent(new Event('visibilitychange')) }",
        state,
    )


def test_every_number_has_its_unit(board: Any, stub: StatisticsStub) -> None:
    stub.send(sample(1, **BUSY, price_per_hour=2.0, cost_per_million_tokens=4.5))
    for measure, text in {
        "tokens_per_second": "12,346tokens/s",
        "tokens_per_target_pass": "2.31tokens/pass",
        "draft_tokens_per_pass": "3.00drafts/pass",
        "acceptance_rate": "44.2%",
        "estimated_speedup": "1.70×",
        "requests": "running3waiting2",
        "tokens_per_step": "12.5tokens/step",
        "kv_usage": "25.0%",
        "prefix_hit_rate": "50.0%",
        "ttft_ms": "p501.23p902.35p9934.6s",
        "itl_ms": "p5012.3p9023.4p99346ms",
        "prompt_tokens_per_second": "20.0tokens/s",
        "preemptions_per_minute": "1in a minute",
        "cost_per_million_tokens": "4.50per 1M tokens",
    }.items():
        expect(values(board, measure)).to_have_text(text)


def test_what_has_not_happened_has_no_number(board: Any) -> None:
    expect(values(board, "tokens_per_target_pass")).to_have_text("–")
    expect(values(board, "ttft_ms")).to_have_text("p50–p90–p99–")
    expect(board.locator("[data-measure=acceptance_rate] .board-foot")).to_have_text(
        "no drafts yet"
    )


def test_cost_is_shown_only_where_there_is_a_price(board: Any, stub: StatisticsStub) -> None:
    cost = board.locator("[data-measure=cost_per_million_tokens]")
    expect(cost).to_be_hidden()
    stub.send(sample(1, price_per_hour=2.0))
    expect(cost).to_be_visible()


def test_lines_and_ranges_grow_with_the_events(board: Any, stub: StatisticsStub) -> None:
    stub.send(*(sample(second, tokens_per_second=10.0 * second) for second in range(1, 5)))
    lead = board.locator("[data-measure=tokens_per_second]")
    expect(lead.locator(".board-foot")).to_have_text("10.0 – 40.0 tokens/s")
    expect(lead.locator(".board-line")).to_have_attribute("d", re.compile(r"^M[^M]*(L[^L]*){3}$"))


def test_lines_are_broken_where_nothing_was_heard(board: Any, stub: StatisticsStub) -> None:
    stub.send(*(sample(s, tokens_per_second=5.0) for s in (1, 2, 60, 61)))
    line = board.locator("[data-measure=tokens_per_second] .board-line")
    expect(line).to_have_attribute("d", re.compile(r"^M[^M]*M[^M]*$"))


def test_drafts_are_added_up_over_the_time_shown(board: Any, stub: StatisticsStub) -> None:
    stub.send(sample(1, **BUSY), sample(2, **BUSY), sample(200, **BUSY))
    rows = board.locator(".board-bars tbody tr")
    expect(rows).to_have_text(["119224080.0%", "23012025.0%", "draft model21027077.8%"])
    board.get_by_text("2 min", exact=True).click()
    expect(rows).to_have_text(["1648080.0%", "2104025.0%", "draft model709077.8%"])


def test_idle_is_said_and_drawn(board: Any, stub: StatisticsStub) -> None:
    expect(board.get_by_text("Nothing is running.")).to_be_visible()
    stub.send(sample(1, **BUSY))
    expect(board.get_by_text("Nothing is running.")).to_have_count(0)
    stub.send(sample(2), sample(3))
    expect(board.get_by_text("Nothing is running.")).to_be_visible()
    expect(values(board, "tokens_per_second")).to_have_text("0tokens/s")


def test_an_engine_that_starts_anew_is_told(board: Any, stub: StatisticsStub) -> None:
    stub.send(sample(1, status="restarting"))
    expect(board.get_by_text("The engine is starting anew.")).to_be_visible()


def test_pointer_and_keys_look_at_one_moment_in_all_charts(
    board: Any, stub: StatisticsStub
) -> None:
    stub.send(sample(1, **BUSY), sample(2), sample(3), sample(4, requests_waiting=1))
    expect(values(board, "requests")).to_have_text("running0waiting1")
    board.locator("[data-measure=tokens_per_second] .board-plot").focus()
    for _ in range(3):
        board.keyboard.press("ArrowLeft")
    expect(values(board, "requests")).to_have_text("running3waiting2")
    expect(values(board, "estimated_speedup")).to_have_text("1.70×")
    expect(board.locator(".board-moment")).to_have_text(re.compile(r"^at \d\d:\d\d:\d\d$"))
    assert "12,346 tokens/s at" in board.locator(":focus").get_attribute("aria-valuetext")
    board.keyboard.press("ArrowDown")
    assert "at" in board.locator(":focus").get_attribute("aria-valuetext")
    board.keyboard.press("Escape")
    expect(values(board, "requests")).to_have_text("running0waiting1")
    board.locator("[data-measure=itl_ms] .board-plot").hover(position={"x": 2, "y": 20})
    expect(values(board, "requests")).to_have_text("running0waiting0")
    expect(board.locator(".board-moment")).to_have_text(re.compile("^at"))
    board.mouse.move(1, 1)
    expect(board.locator(".board-moment")).to_have_text("")


def test_all_values_can_be_read_as_a_table(board: Any, stub: StatisticsStub) -> None:
    stub.send(sample(1, **BUSY))
    board.get_by_text("All values as a table").click()
    rows = board.locator(".board-table tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("12,346 tokens/s")
    expect(rows.first).to_contain_text("34.6 s")


def test_a_lost_connection_is_told_and_regained(board: Any, stub: StatisticsStub) -> None:
    stub.is_down = True
    stub.drop()
    expect(status(board)).to_have_text(re.compile(r"No connection since \d\d:\d\d:\d\d: "))
    since = re.findall(r"\d\d:\d\d:\d\d", status(board).inner_text())
    board.clock.fast_forward(20_000)
    expect(status(board)).to_have_text(re.compile(f"since {since[0]}: The server is away"))
    stub.is_down = False
    stub.history = [sample(1), sample(2, **BUSY)]
    board.clock.fast_forward(20_000)
    wait_for(lambda: stub.num_listeners == 1, 30, "the board has not come back")
    expect(status(board)).to_have_text("Live")
    expect(values(board, "requests")).to_have_text("running3waiting2")


def test_drafts_of_the_time_without_a_connection_are_not_lost(
    board: Any, stub: StatisticsStub
) -> None:
    stub.send(sample(1, **BUSY))
    rows = board.locator(".board-bars tbody tr")
    expect(rows).to_have_text(["1648080.0%", "2104025.0%", "draft model709077.8%"])
    stub.drop()
    for name, label, proposed, accepted in (
        ("num_{}_tokens_per_pos", 'position="0"', 10, 6),
        ("drafter_{}_tokens", 'drafter="ngram"', 10, 6),
    ):
        for kind, number in (("draft", proposed), ("accepted", accepted)):
            stub.totals[f"outdraft:spec_decode_{name.format(kind)}_total{{{label}}}"] = number
    board.clock.fast_forward(20_000)
    wait_for(lambda: stub.num_listeners == 1, 30, "the board has not come back")
    stub.send(sample(20))
    expect(rows).to_have_text(
        ["1709077.8%", "2104025.0%", "draft model709077.8%", "n-gram61060.0%"]
    )


def test_a_silent_server_is_a_lost_one(board: Any, stub: StatisticsStub) -> None:
    board.clock.fast_forward(16_000)
    expect(status(board)).to_have_text(re.compile("the server has fallen silent"))
    board.get_by_role("button", name="Try now").click()
    wait_for(lambda: stub.num_connections == 2, 30, "the board has not come back")


def test_the_admin_key_is_asked_for_and_kept_in_the_tab(page: Any, stub: StatisticsStub) -> None:
    stub.key = "sk-admin"
    page.goto(f"{stub.url}/#/board")
    page.get_by_label("Admin key").fill("sk-wrong")
    page.get_by_role("button", name="Show the board").click()
    expect(page.get_by_role("alert")).to_have_text(re.compile("refused: .*needs an admin key"))
    assert page.locator(".board-grid").is_hidden()
    page.get_by_label("Admin key").fill("sk-admin")
    page.keyboard.press("Enter")
    expect(page.locator(".board-grid")).to_be_visible()
    page.reload()
    wait_for(lambda: stub.num_connections == 2, 30, "the key is forgotten")
    assert page.evaluate("Object.keys(localStorage)") == []
    assert "sk-admin" not in page.content()


@pytest.mark.parametrize("way", ["another tab", "another view"])
def test_a_board_that_nobody_sees_rests_and_catches_up(
    board: Any, stub: StatisticsStub, way: str
) -> None:
    def look(is_away: bool) -> None:
        if way == "another tab":
            hide(board, is_away)
        else:
            board.goto(f"{stub.url}/#/{'chat' if is_away else 'board'}")
            board.locator(".chat-view > *").first.wait_for(state="attached")

    look(is_away=True)
    stub.send(sample(1))
    board.clock.fast_forward(10_000)
    assert stub.num_listeners == 1
    board.locator(".board").wait_for(state="attached")
    wait_for(lambda: rests(board, stub), 30, "the board does not rest")
    stub.history = [sample(1), sample(2, **BUSY)]
    look(is_away=False)
    wait_for(lambda: stub.num_listeners == 1, 30, "the board has not come back")
    expect(status(board)).to_have_text("Live")
    expect(values(board, "requests")).to_have_text("running3waiting2")


def rests(page: Any, stub: StatisticsStub) -> bool:
    page.clock.fast_forward(30_000)
    return stub.num_listeners == 0 and "Resting" in status(page).inner_text()


def test_ten_thousand_events_do_not_grow_the_page(board: Any, stub: StatisticsStub) -> None:
    board.get_by_text("10 min", exact=True).click()
    stub.send(*(sample(second, **BUSY) for second in range(1, 1_001)))
    wait_for(lambda: seen(board) > 500, 30, "no lines")
    nodes = board.locator(".board *").count()
    stub.send(*(sample(second, **BUSY) for second in range(1_001, 10_001)))
    last = "running7waiting2"
    stub.send(sample(10_001, **BUSY | {"requests_running": 7}))
    expect(values(board, "requests")).to_have_text(last, timeout=60_000)
    assert seen(board) <= 602
    assert board.locator(".board *").count() == nodes
    size = board.evaluate(
        """async () => {
          const { Samples } = await import("/web/board/samples.js");
          const samples = new Samples();
          for (let time = 1; time <= 10_000; time += 1) {
            const data = JSON.stringify({ time, preemptions: 0, totals: {} });
            samples.take({ event: "statistics", data });
          }
          return [samples.history.size, samples.history.at(0).time, samples.history.last.time];
        }"""
    )
    assert size == [1_200, 8_801, 10_000]


def seen(page: Any) -> int:
    """Count the points of the first line."""
    path = page.locator("[data-measure=tokens_per_second] .board-line").get_attribute("d") or ""
    return len(path.split("L"))


def test_taking_the_board_away_ends_its_connection(page: Any, stub: StatisticsStub) -> None:
    page.goto(f"{stub.url}/#/chat")
    page.locator(".chat-view > *").first.wait_for(state="attached")
    page.evaluate(
        """async () => {
          const { mountBoard } = await import("/web/board/board.js");
          window.unmount = mountBoard(document.getElementById("view"), { apiKey: "sk" });
        }"""
    )
    wait_for(lambda: stub.num_listeners == 1, 30, "the board does not listen")
    page.evaluate("unmount()")
    wait_for(lambda: stub.num_listeners == 0, 30, "the board still listens")
    assert page.locator(".board").count() == 0


@pytest.mark.parametrize("width", [390, 768, 1280, 1920])
def test_nothing_is_cut_or_overflows(page: Any, stub: StatisticsStub, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    open_board(page, stub)
    stub.send(sample(1, **BUSY, price_per_hour=2.0, cost_per_million_tokens=123.4))
    expect(values(page, "requests")).to_have_text("running3waiting2")
    page.get_by_text("All values as a table").click()
    expect(page.locator(".board-table tbody tr")).to_have_count(2)
    wide = page.evaluate(
        """() => [...document.querySelectorAll(
          ".board, .board-panel, .board-values, .board-foot, .board-panel h3, .board-bars table",
        )].filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.outerHTML.slice(0, 200))"""
    )
    assert wide == []
    right = "e => e.getBoundingClientRect().right"
    assert page.locator(".board-numbers").evaluate(right) <= width


@needs_axe
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Any, stub: StatisticsStub, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    open_board(page, stub)
    stub.send(sample(1, **BUSY, price_per_hour=2.0, cost_per_million_tokens=4.5))
    expect(values(page, "requests")).to_have_text("running3waiting2")
    page.get_by_text("All values as a table").click()
    page.evaluate(AXE.read_text(encoding="utf-8"))
    assert not findings(page)
    stub.key = "sk-admin"
    stub.drop()
    page.get_by_label("Admin key").wait_for()
    assert not findings(page)
