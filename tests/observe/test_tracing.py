"""Spans of requests, read back from OpenTelemetry's in-memory exporter."""

import builtins
import contextlib
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from octavo.errors import ConfigError
from octavo.observe.event_log import EventLog
from octavo.observe.events import Arrived, Event, Finished, FirstToken, Forked, Preempted, Started
from octavo.observe.tracing import RequestTracer, open_tracer

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ONE_REQUEST = (
    Arrived(1.5, "a", 10, 1, arrival_time=1.0, max_tokens=20, temperature=0.5, top_p=0.9),
    Started(2.0, 1, "a", 0),
    FirstToken(2.5, "a"),
    Preempted(3.0, 1, "a", 11),
    Started(3.5, 1, "a", 0),
    Finished(4.0, 1, "a", "stop", 3),
)


def spans_of(*events: Event, headers: dict[str, str] | None = None) -> dict[str, ReadableSpan]:
    log, exporter = EventLog(0), InMemorySpanExporter()
    tracer = RequestTracer(log, exporter, model_name="m", clock=lambda: 0.0)
    if headers:
        tracer.link("a", headers)
    for event in events:
        log.write(event)
    tracer.close()
    return {span.name: span for span in exporter.get_finished_spans()}


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_one_span_a_request_and_one_a_part_of_it() -> None:
    spans = spans_of(*ONE_REQUEST)
    request = spans["llm_request"]
    assert {name: seconds(span) for name, span in spans.items()} == {
        "llm_request": 3.0,
        "queue": 1.0,
        "prefill": 0.5,
        "decode": 1.5,
    }
    assert request.parent is None
    for name in ("queue", "prefill", "decode"):
        assert spans[name].parent == request.context
    assert dict(request.attributes or {}) == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.response.model": "m",
        "gen_ai.request.id": "a",
        "gen_ai.request.n": 1,
        "gen_ai.request.max_tokens": 20,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.usage.prompt_tokens": 10,
        "gen_ai.usage.completion_tokens": 3,
        "gen_ai.usage.cached_tokens": 0,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.latency.time_in_queue": 1.0,
        "gen_ai.latency.time_in_model_prefill": 0.5,
        "gen_ai.latency.time_to_first_token": 1.5,
        "gen_ai.latency.time_in_model_decode": 1.5,
        "gen_ai.latency.time_in_model_inference": 2.0,
        "gen_ai.latency.e2e": 3.0,
        "octavo.num_preemptions": 1,
    }


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {"service.name": "octavo"}),
        ({"OTEL_SERVICE_NAME": "books"}, {"service.name": "books"}),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=ink,team=a"}, {"service.name": "ink", "team": "a"}),
        (
            {"OTEL_SERVICE_NAME": "books", "OTEL_RESOURCE_ATTRIBUTES": "service.name=ink,team=a"},
            {"service.name": "books", "team": "a"},
        ),
        ({"OTEL_RESOURCE_ATTRIBUTES": "team=a"}, {"service.name": "octavo", "team": "a"}),
    ],
)
def test_the_environment_says_which_service_it_is(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: dict[str, str]
) -> None:
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    attributes = spans_of(*ONE_REQUEST)["llm_request"].resource.attributes
    assert {name: attributes[name] for name in expected} == expected


CLOSING = """
import sys, time
from octavo.observe.event_log import EventLog
from octavo.observe.events import Arrived, Finished
from octavo.observe.tracing import open_tracer
log = EventLog(0)
tracer = open_tracer(sys.argv[1], log, model_name="m")
log.write(Arrived(1.0, "a", 10, 1))
log.write(Finished(2.0, 1, "a", "abort", 0))
print("closes", flush=True)
tracer.close()
"""


@pytest.mark.parametrize("is_listening", [True, False])
def test_a_collector_that_does_not_answer_does_not_delay_the_end(is_listening: bool) -> None:
    with contextlib.ExitStack() as stack:
        collector = stack.enter_context(socket.socket())
        collector.bind(("127.0.0.1", 0))
        if is_listening:
            collector.listen()  # and never accepts
        url = f"http://127.0.0.1:{collector.getsockname()[1]}/v1/traces"
        command = [sys.executable, "-c", CLOSING, url]
        process = stack.enter_context(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "closes\n"
        begin = time.monotonic()
        assert process.wait(30) == 0
        assert time.monotonic() - begin < 4  # 2, on a busy machine


def test_a_span_joins_the_trace_of_its_client() -> None:
    request = spans_of(*ONE_REQUEST, headers={"traceparent": PARENT})["llm_request"]
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == PARENT.split("-")[2]
    assert f"{request.context.trace_id:032x}" == PARENT.split("-")[1]


def test_a_request_with_samples_is_one_span_that_ends_with_the_last() -> None:
    spans = spans_of(
        Arrived(1.0, "a", 10, 2),
        Started(1.0, 1, "a", 0),
        Forked(1.0, 1, 2, "a", 1),
        FirstToken(2.0, "a"),
        Finished(3.0, 1, "a", "stop", 3),
        Finished(5.0, 2, "a", "error", 4),
    )
    request = spans["llm_request"]
    assert seconds(request) == 4.0
    assert (request.attributes or {})["gen_ai.usage.completion_tokens"] == 7
    assert request.status.status_code is StatusCode.ERROR


def test_a_request_that_never_started_has_only_its_queue() -> None:
    spans = spans_of(Arrived(1.0, "a", 10, 1), Finished(3.0, 1, "a", "abort", 0))
    assert set(spans) == {"llm_request", "queue"}
    assert "gen_ai.latency.time_to_first_token" not in (spans["llm_request"].attributes or {})


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.startswith("opentelemetry.exporter"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="opentelemetry")
        return real(name, *rest)

    for name in [name for name in sys.modules if name.startswith("opentelemetry.exporter.otlp.proto.http")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"opentelemetry is not installed: pip install 'octavo\[otel\]'"):
        open_tracer("http://127.0.0.1:4318/v1/traces", EventLog(0), model_name="m")


def test_an_endpoint_that_is_no_url_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'localhost:4318', allowed is an http or https URL"):
        open_tracer("localhost:4318", EventLog(0), model_name="m")


def test_an_engine_sends_its_spans_before_it_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo import LLM, SamplingParams

    exporter = InMemorySpanExporter()

    def open_in_memory(endpoint: str, log: EventLog, **options: Any) -> RequestTracer:
        return RequestTracer(log, exporter, **options)

    monkeypatch.setattr("octavo.engine.assemble.open_tracer", open_in_memory)
    llm = LLM("smollm2", max_model_len=64, num_threads=1, otlp_traces_endpoint="http://127.0.0.1:9/v1/traces")
    llm.generate("Paper", SamplingParams(max_tokens=3, ignore_eos=True), use_tqdm=False)
    llm.close()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"llm_request", "queue", "prefill", "decode"}
    attributes = spans["llm_request"].attributes or {}
    assert attributes["gen_ai.usage.completion_tokens"] == 3
    assert attributes["gen_ai.response.model"] == "smollm2"
    assert time.time_ns() - (spans["llm_request"].end_time or 0) < 60e9


def test_a_bad_endpoint_is_refused_before_a_model_is_looked_for() -> None:
    from octavo import LLM

    with pytest.raises(ConfigError, match="otlp_traces_endpoint is 'nowhere'"):
        LLM("no-such-model", otlp_traces_endpoint="nowhere")
