"""OpenTelemetry traces: one span per request, built from the event log when the request ends.

    llm_request  |──────────────────────────────────────|     from arrival to end, with the numbers as attributes
      queue      |────────|
      prefill             |─────────|
      decode                        |───────────────────|

Attribute names follow OpenTelemetry's GenAI conventions and vLLM. The library is an extra, `pip install octavo[otel]`,
imported only if traces are on. Its own thread sends spans; the engine's thread creates one set per request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from octavo.errors import ConfigError
from octavo.observe.event_log import EventLog
from octavo.observe.events import Event, Refused
from octavo.observe.lives import RequestLife, RequestLives
from octavo.observe.logging import LOGGER

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter

INSTRUMENTATION = "octavo"
#: seconds to send the last spans when the engine closes
CLOSE_S = 1.5
#: headers of the W3C trace context, with which a client makes our span a child of its own
TRACE_HEADERS = ("traceparent", "tracestate")


class RequestTracer:
    """Follows a log and creates a span for every request that ends. clock: the events' clock. Call `close` to send the
    remaining spans."""

    def __init__(
        self, log: EventLog, exporter: SpanExporter, *, model_name: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence; arguments of `create` would override them
        is_named = "service.name" in OTELResourceDetector().detect().attributes
        resource = Resource.create({} if is_named else {"service.name": INSTRUMENTATION})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._exporter = exporter
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(INSTRUMENTATION)
        self._propagator = TraceContextTextMapPropagator()
        self._model_name = model_name
        self._epoch_ns = time.time_ns() - round(clock() * 1e9)  # the engine clock's zero
        self._lives = RequestLives()
        self._parents: dict[str, Context] = {}
        log.listen(self.follow)

    def link(self, request_id: str, headers: Mapping[str, str]) -> None:
        """Make the request's span a child of its client's, by the client's TRACE_HEADERS. Call it right before the
        request goes to the engine."""
        self._parents[request_id] = self._propagator.extract(headers)

    def follow(self, event: Event) -> None:
        life = self._lives.follow(event)
        if life is not None and life.num_live == 0:
            self._tell(life)
        elif type(event) is Refused:
            self._parents.pop(event.request_id, None)

    def close(self) -> None:
        """Send the remaining spans and stop. Wait CLOSE_S at most: the library would retry a silent collector for up to
        30 s."""
        closing = threading.Thread(target=self._provider.shutdown, name="octavo-close-traces", daemon=True)
        closing.start()
        closing.join(CLOSE_S)
        if closing.is_alive():
            LOGGER.warning("traces: the collector did not accept the last spans within %g s; they are dropped", CLOSE_S)
            self._exporter.shutdown()  # ends the pause between two retries

    def _tell(self, life: RequestLife) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        span = self._tracer.start_span(
            "llm_request",
            context=self._parents.pop(life.request_id, None),
            kind=SpanKind.SERVER,
            attributes=self._attributes(life),
            start_time=self._at(life.arrival),
        )
        if any(end.reason == "error" for end in life.ends):
            span.set_status(Status(StatusCode.ERROR, "a sequence ended with an error"))
        inside = set_span_in_context(span)
        moments = (("queue", life.arrival), ("prefill", life.start), ("decode", life.first_token), ("", life.end))
        known = [(name, moment) for name, moment in moments if moment is not None]
        for (name, begin), (_, end) in pairwise(known):
            child = self._tracer.start_span(name, context=inside, start_time=self._at(begin))
            child.end(self._at(end))
        span.end(self._at(life.end))

    def _attributes(self, life: RequestLife) -> dict[str, Any]:
        """The span's attributes, without those of phases that the request did not reach."""
        attributes = {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.response.model": self._model_name,
            "gen_ai.request.id": life.request_id,
            "gen_ai.request.n": life.num_sequences,
            "gen_ai.request.max_tokens": life.max_tokens,
            "gen_ai.request.temperature": life.temperature,
            "gen_ai.request.top_p": life.top_p,
            "gen_ai.usage.prompt_tokens": life.num_prompt_tokens,
            "gen_ai.usage.completion_tokens": life.num_output_tokens,
            "gen_ai.usage.cached_tokens": life.num_cached_tokens,
            "gen_ai.response.finish_reasons": [end.reason for end in life.ends],
            "gen_ai.latency.time_in_queue": life.queue_s,
            "gen_ai.latency.time_in_model_prefill": life.prefill_s,
            "gen_ai.latency.time_to_first_token": life.ttft_s,
            "gen_ai.latency.time_in_model_decode": life.decode_s,
            "gen_ai.latency.time_in_model_inference": life.inference_s,
            "gen_ai.latency.e2e": life.e2e_s,
            "octavo.num_preemptions": life.num_preemptions,
        }
        return {name: value for name, value in attributes.items() if value is not None}

    def _at(self, moment: float) -> int:
        """An engine time in nanoseconds since 1970."""
        return self._epoch_ns + round(moment * 1e9)


def open_tracer(
    endpoint: str, log: EventLog, *, model_name: str, clock: Callable[[], float] = time.monotonic
) -> RequestTracer:
    """A tracer that sends OTLP over HTTP to a collector. Raises ConfigError for a bad URL or without the extra."""
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigError(
            f"otlp_traces_endpoint is {endpoint!r}, allowed is an http or https URL such as "
            "http://localhost:4318/v1/traces"
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as missing:
        raise ConfigError(
            f"otlp_traces_endpoint is {endpoint!r}, which needs OpenTelemetry, and {missing.name} is not installed: "
            "pip install 'octavo[otel]', or leave otlp_traces_endpoint out"
        ) from missing
    return RequestTracer(log, OTLPSpanExporter(endpoint=endpoint), model_name=model_name, clock=clock)
