"""The dashboard for Grafana: well formed, and of nothing but what `/metrics` tells."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.metrics import EngineStats
from tests.conftest import ROOT
from tests.server.harness import Api, run, saying, serving
from tests.server.remembering import IN_MEMORY

DASHBOARD = ROOT / "examples/grafana/outdraft.json"
GIVEN = {"$__rate_interval", "$__range", "$model_name", "$instance", "$datasource"}
# What Prometheus adds.
ADDED = {"instance"}
LABELS = {"abort", "drafter", "finished_reason", "position", "reason", "type"}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return parsed


def panels_of(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries_of(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [target for panel in panels_of(dashboard) for target in panel["targets"]]


async def told(api: Api) -> dict[str, set[str]]:
    """Give every name that a query may use, with its labels."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families((await api.http.get("/metrics")).text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_every_metric_and_label_of_the_dashboard_is_told(dashboard: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with serving(saying("hello"), config=IN_MEMORY) as api:
            await api.chat()
            await api.chat(nonsense=1)
            stats: EngineStats = api.engine.stats
            stats.drafter_failures = {"ngram": 1}
            names = await told(api)
        for query in queries_of(dashboard):
            used = re.findall(r"outdraft:\w+", query["expr"])
            assert used
            assert not set(used) - set(names), query["expr"]
            grouped = {
                label
                for labels in re.findall(r"by \(([^)]*)\)", query["expr"])
                for label in labels.split(", ")
            }
            assert all(grouped <= names[name] for name in used), query["expr"]
            shown = set(re.findall(r"{{(\w+)}}", query["legendFormat"]))
            assert shown == grouped - {"le"}
            chosen = set(re.findall(r"(\w+)=~", query["expr"])) - ADDED
            assert all(chosen <= names[name] for name in used)

    run(scenario)


def test_every_metric_of_the_readme_is_told() -> None:
    async def scenario() -> None:
        async with serving(saying("hello"), config=IN_MEMORY) as api:
            await api.chat()
            text = (await api.http.get("/metrics")).text
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        table = readme.split("with `outdraft:` in front:")[1].split("[`examples/grafana")[0]
        named = set(re.findall(r"`(\w+)`", table)) - LABELS
        assert len(named) > 30
        families = set(re.findall(r"^# TYPE outdraft:(\w+) ", text, re.MULTILINE))
        assert not named - families

    run(scenario)


def test_it_can_be_imported(dashboard: dict[str, Any]) -> None:
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    assert dashboard["uid"] == "outdraft"
    variables = {each["name"]: each["type"] for each in dashboard["templating"]["list"]}
    assert variables == {"datasource": "datasource", "model_name": "query", "instance": "query"}
    sources = [panel["datasource"] for panel in panels_of(dashboard)]
    sources += [query["datasource"] for query in queries_of(dashboard)]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
    for panel in panels_of(dashboard):
        references = [query["refId"] for query in panel["targets"]]
        assert len(references) == len(set(references))
    for query in queries_of(dashboard):
        assert set(re.findall(r"\$\w+", query["expr"])) <= GIVEN
        assert query["expr"].count("(") == query["expr"].count(")")


def test_panels_lie_beside_each_other(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_it_shows_what_an_operator_asks_for(dashboard: dict[str, Any]) -> None:
    shown = " ".join(query["expr"] for query in queries_of(dashboard))
    for name in (
        "generation_tokens_total",
        "time_to_first_token_seconds_bucket",
        "inter_token_latency_seconds_bucket",
        "num_requests_waiting",
        "iteration_requests_bucket",
        "kv_cache_usage_perc",
        "prefix_cache_hits_total",
        "spec_decode_num_accepted_tokens_per_pos_total",
        "spec_decode_drafter_accepted_tokens_total",
        "spec_decode_num_target_passes_total",
        "errors_total",
        "engine_restarts_total",
        "requests_refused_total",
        "response_cache_hits_total",
    ):
        assert f"outdraft:{name}" in shown
