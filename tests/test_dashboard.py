"""The Grafana dashboard queries only exported metrics, and the page about metrics lists all of them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from octavo.observe.catalog import COUNTERS, GAUGES, HISTOGRAMS, STORED_RESPONSES
from octavo.observe.event_log import EventLog
from octavo.observe.events import EngineStarted
from octavo.observe.metrics import EngineMetrics
from octavo.observe.tracing import RequestTracer

ROOT = Path(__file__).parent.parent
DASHBOARD = ROOT / "examples/grafana-dashboard.json"


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


def queries(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    yield from (one["query"]["query"] for one in dashboard["templating"]["list"] if one["type"] == "query")


def exported() -> dict[str, set[str]]:
    """Sample name -> labels, from an idle engine."""
    log = EventLog(0)
    log.start(EngineStarted(0.0, 10, 16, 1, 1, 128))
    text = EngineMetrics(log, model_name="m").exposition().decode()
    return {
        sample.name: set(sample.labels) for family in text_string_to_metric_families(text) for sample in family.samples
    }


def test_the_dashboard_asks_only_for_what_is_exported(dashboard: dict[str, Any]) -> None:
    known = exported()
    asked = {name for query in queries(dashboard) for name in re.findall(r"\b((?:octavo|vllm):\w+)", query)}
    assert len(asked) >= 20
    assert asked <= set(known), f"not exported: {sorted(asked - set(known))}"


def test_the_dashboard_groups_only_by_labels_that_are_there(dashboard: dict[str, Any]) -> None:
    known = exported()
    for query in queries(dashboard):
        for label, name in re.findall(r"by \((\w+)\) \((?:rate\()?(octavo:\w+)", query):
            assert label in known[name], query


def test_the_dashboard_covers_what_operators_ask(dashboard: dict[str, Any]) -> None:
    text = " ".join(queries(dashboard))
    for name in (
        *("num_requests_running", "num_requests_waiting_by_reason", "kv_cache_usage_perc", "generation_tokens_total"),
        *(
            "prefix_cache_hits_total",
            "num_preemptions_total",
            "request_success_total",
            "request_queue_time_seconds_sum",
        ),
    ):
        assert f"octavo:{name}" in text
    for name in ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"):
        for quantile in ("0.5", "0.9", "0.99"):
            assert f"histogram_quantile({quantile}, sum by (le) (rate(octavo:{name}_bucket" in text


def test_panels_do_not_overlap(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


STORE = (("The store of responses", STORED_RESPONSES),)


def test_every_metric_is_documented() -> None:
    page = (ROOT / "docs/observability.md").read_text(encoding="utf-8")
    for heading, names in (("Gauges", GAUGES), ("Counters", COUNTERS), ("Histograms", HISTOGRAMS), *STORE):
        section = page.split(f"### {heading}\n")[1].split("\n### ")[0]
        assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(names)


def test_every_attribute_of_a_span_is_documented() -> None:
    import inspect

    page = (ROOT / "docs/observability.md").read_text(encoding="utf-8")
    written = set(re.findall(r'"((?:gen_ai|octavo)\.[\w.]+)"', inspect.getsource(RequestTracer)))
    assert set(re.findall(r"`((?:gen_ai|octavo)\.[\w.]+)`", page)) == written
