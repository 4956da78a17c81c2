"""Prometheus metrics, all derived from the event log.

    metrics = EngineMetrics(engine.events, model_name="smollm2")
    ...
    metrics.exposition()      the text of /metrics

The engine's thread writes a few dozen events per step, so counters are plain Python numbers; text is built on request.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from octavo.observe import events
from octavo.observe.catalog import COUNTERS, GAUGES, HISTOGRAMS, NAMESPACES, bounds
from octavo.observe.event_log import EventLog
from octavo.observe.events import Event
from octavo.observe.exposition import Metric, MetricFamily, Sample, TextWriter, metric_values
from octavo.observe.info_labels import cache_info, lora_info
from octavo.observe.lives import RequestLife, RequestLives, SizeCounts, TokenGaps

#: labels that exist from the start, so that their rates are 0 instead of missing
_FIRST_LABELS: dict[str, tuple[str, ...]] = {
    "prompt_tokens_by_source": ("local_compute", "local_cache_hit"),
    "request_success": ("stop", "length", "abort", "error", "repetition"),
    "admission_rejections": ("invalid", "queue_full"),
    "kv_transfer_requests": ("came", "failed", "not_asked"),
    "step_seconds": ("schedule", "execute", "update"),
}
_WAIT_REASONS = ("seats", "adapters", "blocks", "budget", "turn")


class EngineMetrics:
    """Follows a log: the events it still holds, then every new one."""

    def __init__(self, log: EventLog, *, model_name: str, engine: str = "0") -> None:
        assert log.started is not None, "metrics follow an engine that has started"
        self._sizes = log.started
        self._labels = {"model_name": model_name, "engine": engine}
        self._writer = TextWriter(self._labels)
        self._cache_info = cache_info(log.started)
        self._counters: dict[str, Counter[str]] = {
            name: Counter(dict.fromkeys(_FIRST_LABELS.get(name, ("",)), 0)) for name in COUNTERS
        }
        sizes = bounds(self._sizes.max_model_len)
        self._histograms = {name: SizeCounts(values) for name, values in sizes.items()}
        self._gaps = TokenGaps(self._histograms["inter_token_latency_seconds"])
        self._lives = RequestLives()
        self._running: set[int] = set()
        self._adapted: dict[int, RequestLife] = {}  # running sequence with an adapter -> its request
        self.num_waiting = 0
        self._why: dict[str, str] = {}  # waiting request -> reason
        self._num_free_blocks = self._sizes.num_blocks
        self._num_table_entries = self._num_unshared_blocks = 0  # now, and at the last planned step
        self._generated = self._counters["generation_tokens"]
        self._seconds: Counter[str] = self._counters["step_seconds"]
        self._step_tokens = self._histograms["iteration_tokens_total"]
        self._num_step_tokens = 0  # since the last step's end
        self._handlers = self._handler_of_each()
        for event in log:
            self.record(event)
        log.listen(self.record)

    def _handler_of_each(self) -> dict[type[Event], Callable[[Any], None]]:
        return {
            events.Arrived: self._arrived,
            events.Refused: self._refused,
            events.Waits: self._waits,
            events.Started: self._started,
            events.PrefixHit: self._prefix_hit,
            events.BlocksCame: self._blocks_came,
            events.BlocksGiven: self._blocks_given,
            events.BlocksFreed: self._blocks_freed,
            events.Scheduled: self._scheduled,
            events.Forked: self._forked,
            events.Unforked: self._unforked,
            events.Preempted: self._preempted,
            events.FirstToken: self._first_token,
            events.Finished: self._finished,
            events.Sampled: self._sampled,
            events.StepDone: self._step_done,
        }

    def record(self, event: Event) -> None:
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def exposition(self) -> bytes:
        """All metrics as Prometheus text, from any thread."""
        return "".join([self._writer.write(space, self.families(space)) for space in NAMESPACES]).encode()

    def values(self, namespace: str = "vllm") -> list[Metric]:
        """All metrics as Python values."""
        return metric_values(namespace, self._labels, self.families(namespace))

    # For the summary line

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def kv_cache_usage(self) -> float:
        """At the last planned step; 0 if no sequence runs."""
        return 1 - self._num_free_blocks / self._sizes.num_blocks if self._running else 0.0

    @property
    def sharing_saved(self) -> float:
        """Share of blocks that sharing saved at the last planned step; 0 if no sequence runs."""
        num_used = self._sizes.num_blocks - self._num_free_blocks
        return 1 - num_used / self._num_unshared_blocks if self._running and self._num_unshared_blocks else 0.0

    def count(self, name: str) -> float:
        """A counter, summed over its labels."""
        return self._counters[name].total()

    # Event handlers

    def _arrived(self, event: events.Arrived) -> None:
        self._lives.follow(event)
        self.num_waiting += 1

    def _refused(self, event: events.Refused) -> None:
        self._counters["admission_rejections"][event.why] += 1

    def _waits(self, event: events.Waits) -> None:
        self._why[event.request_id] = event.why.partition(":")[0]

    def _started(self, event: events.Started) -> None:
        life = self._lives.follow(event)
        self._running.add(event.sequence_id)
        self.num_waiting -= 1
        self._why.pop(event.request_id, None)
        self._note_adapter(event.sequence_id, life)
        if life is not None and life.num_preemptions == 0 and self._sizes.enable_prefix_caching:
            self._counters["prefix_cache_queries"][""] += life.num_prompt_tokens

    def _blocks_came(self, event: events.BlocksCame) -> None:
        result = "came" if not event.why else "failed" if event.peer else "not_asked"
        self._counters["kv_transfer_requests"][result] += 1
        self._counters["kv_transfer_tokens"][""] += event.num_tokens
        self._counters["kv_transfer_bytes"][""] += event.num_bytes
        self._observe("kv_transfer_time_seconds", None if event.why else event.seconds)

    def _blocks_given(self, event: events.BlocksGiven) -> None:
        self._num_table_entries += len(event.block_ids)

    def _blocks_freed(self, event: events.BlocksFreed) -> None:
        self._num_table_entries -= len(event.block_ids)

    def _prefix_hit(self, event: events.PrefixHit) -> None:
        self._num_table_entries += len(event.block_ids)
        if self._lives.follow(event) is not None:
            self._counters["prefix_cache_hits"][""] += event.num_tokens

    def _scheduled(self, event: events.Scheduled) -> None:
        self._num_free_blocks = event.num_free_blocks
        self._num_unshared_blocks = self._num_table_entries

    def _forked(self, event: events.Forked) -> None:
        self._num_table_entries += event.num_shared_blocks
        self._note_adapter(event.sequence_id, self._lives.follow(event))
        self._running.add(event.sequence_id)

    def _note_adapter(self, sequence_id: int, life: RequestLife | None) -> None:
        if life is not None and life.adapter:
            self._adapted[sequence_id] = life

    def _unforked(self, event: events.Unforked) -> None:
        self._lives.follow(event)
        self._running.discard(event.sequence_id)
        self._adapted.pop(event.sequence_id, None)

    def _preempted(self, event: events.Preempted) -> None:
        self._lives.follow(event)
        self._running.discard(event.sequence_id)
        self._adapted.pop(event.sequence_id, None)
        self.num_waiting += 1
        self._counters["num_preemptions"][""] += 1

    def _first_token(self, event: events.FirstToken) -> None:
        life = self._lives.follow(event)
        if life is None:
            return
        counters, num_cached = self._counters, life.num_cached_tokens
        counters["prompt_tokens"][""] += life.num_prompt_tokens
        counters["prompt_tokens_cached"][""] += num_cached
        counters["prompt_tokens_by_source"]["local_compute"] += life.num_prompt_tokens - num_cached
        counters["prompt_tokens_by_source"]["local_cache_hit"] += num_cached
        self._num_step_tokens += life.num_prompt_tokens - num_cached
        self._observe("time_to_first_token_seconds", life.ttft_s)

    def _finished(self, event: events.Finished) -> None:
        life = self._lives.follow(event)
        if event.sequence_id in self._running:
            self._running.remove(event.sequence_id)
        else:
            self.num_waiting -= 1
        self._adapted.pop(event.sequence_id, None)
        self._gaps.ended(event.sequence_id)
        self._counters["request_success"][event.reason] += 1
        self._counters["corrupted_requests"][""] += event.is_corrupted
        self._histograms["request_generation_tokens"].observe(event.num_output_tokens)
        if life is None:
            return
        if life.first_token is not None and event.num_output_tokens > 1:
            tpot = (event.time - life.first_token) / (event.num_output_tokens - 1)
            self._observe("request_time_per_output_token_seconds", tpot)
        if life.num_live == 0:
            self._why.pop(event.request_id, None)
            self._life_ended(life)

    def _life_ended(self, life: RequestLife) -> None:
        self._observe("e2e_request_latency_seconds", life.e2e_s)
        self._observe("request_queue_time_seconds", life.queue_s)
        self._observe("request_inference_time_seconds", life.inference_s)
        self._observe("request_prefill_time_seconds", life.prefill_s)
        self._observe("request_decode_time_seconds", life.decode_s)
        self._observe("request_prompt_tokens", life.num_prompt_tokens)
        self._observe("request_max_num_generation_tokens", max(end.num_output_tokens for end in life.ends))
        self._observe("request_params_n", life.num_sequences)
        self._observe("request_params_max_tokens", life.max_tokens)
        self._observe("request_num_preemptions", life.num_preemptions)
        if life.first_token is not None:
            self._observe("request_prefill_kv_computed_tokens", life.num_prompt_tokens - life.num_cached_tokens)

    def _sampled(self, event: events.Sampled) -> None:
        self._gaps.step(event.sequence_ids, event.time)
        self._generated[""] += event.num_tokens
        self._num_step_tokens += event.num_tokens
        self._counters["forced_tokens"][""] += event.num_forced

    def _step_done(self, event: events.StepDone) -> None:
        if self._num_step_tokens:
            self._step_tokens.observe(self._num_step_tokens)
            self._num_step_tokens = 0
        seconds: dict[str, Any] = self._seconds
        seconds["schedule"] += event.schedule_s
        seconds["execute"] += event.execute_s
        seconds["update"] += event.update_s

    def _observe(self, name: str, value: float | None) -> None:
        """Observe a value; None, for a phase that the request did not reach, is skipped."""
        if value is not None:
            self._histograms[name].observe(value)

    # Output

    def families(self, namespace: str) -> Iterator[MetricFamily]:
        """All metrics now. The namespaces differ only in their names of reasons to wait."""
        yield from self._gauges(namespace)
        for name, (meaning, label_names) in COUNTERS.items():
            label = "".join(label_names)
            counted = list(self._counters[name].items())
            samples: list[Sample] = [("_total", ((label, text),) if label else (), value) for text, value in counted]
            yield MetricFamily(name, "counter", meaning, samples)
        for name, (meaning, _) in HISTOGRAMS.items():
            yield MetricFamily(name, "histogram", meaning, self._histograms[name].samples())

    def _gauges(self, namespace: str) -> Iterator[MetricFamily]:
        by_reason = self._waiting_by_reason(namespace)
        samples: dict[str, list[Sample]] = {
            "num_requests_running": [("", (), self.num_running)],
            "num_requests_waiting": [("", (), self.num_waiting)],
            "num_requests_waiting_by_reason": [("", (("reason", why),), number) for why, number in by_reason.items()],
            "kv_cache_usage_perc": [("", (), self.kv_cache_usage)],
            "kv_cache_sharing_saved_perc": [("", (), self.sharing_saved)],
            "cache_config_info": [("", self._cache_info, 1)],
        }
        if max_loras := self._sizes.max_loras:
            labels = lora_info(max_loras, list(self._lives.live.values()), list(self._adapted.values()))
            samples["lora_requests_info"] = [("", labels, time.time())]
        for name, meaning in GAUGES.items():
            if name in samples:
                yield MetricFamily(name, "gauge", meaning, samples[name])

    def _waiting_by_reason(self, namespace: str) -> dict[str, int]:
        """vLLM has two reasons: capacity, which covers all of ours, and deferred, which we never have. A sequence that
        no step has passed over yet, or that was preempted, waits for its turn."""
        num_waiting = self.num_waiting
        if namespace == "vllm":
            return {"capacity": num_waiting, "deferred": 0}
        reasons = Counter(list(self._why.values()))
        reasons["turn"] += num_waiting - reasons.total()
        return {reason: reasons[reason] for reason in _WAIT_REASONS}
