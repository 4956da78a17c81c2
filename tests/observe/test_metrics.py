"""Metrics against logs written by hand, and against an engine that really ran."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from octavo import LLM, SamplingParams
from octavo.config import SchedulerConfig
from octavo.errors import InvalidRequestError
from octavo.messages import StepResult
from octavo.observe.catalog import COUNTERS, GAUGES, HISTOGRAMS
from octavo.observe.event_log import EventLog
from octavo.observe.events import (
    Arrived,
    BlocksCame,
    BlocksFreed,
    BlocksGiven,
    EngineStarted,
    Event,
    Finished,
    FirstToken,
    Forked,
    Preempted,
    PrefixHit,
    Refused,
    Sampled,
    Scheduled,
    Started,
    StepDone,
    Waits,
)
from octavo.observe.exposition import joined
from octavo.observe.metrics import EngineMetrics
from octavo.scheduler.step import NO_TOKEN
from tests.simulate import Simulator, make_request

STARTED = EngineStarted(time=0.0, num_blocks=100, block_size=4, block_bytes=2**20, num_groups=1, max_model_len=40)


class Scrape:
    """The values that Prometheus would read."""

    def __init__(self, recorder: EngineMetrics) -> None:
        self.values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        self.kinds: dict[str, str] = {}
        for family in text_string_to_metric_families(recorder.exposition().decode()):
            self.kinds[family.name] = family.type
            for sample in family.samples:
                labels = dict(sample.labels)
                assert labels.pop("model_name") == "m"
                assert labels.pop("engine") == "0"
                key = sample.name, frozenset(labels.items())
                assert key not in self.values, f"{key} is there twice"
                self.values[key] = sample.value

    def __call__(self, name: str, namespace: str = "octavo", **labels: str) -> float:
        return self.values[f"{namespace}:{name}", frozenset(labels.items())]

    def mean(self, name: str) -> float:
        return self(f"{name}_sum") / self(f"{name}_count")


def follow(*events: Event) -> tuple[EventLog, EngineMetrics]:
    log = EventLog(0)  # keeps no events, but its listeners get them
    log.start(STARTED)
    recorder = EngineMetrics(log, model_name="m")
    write(log, *events)
    return log, recorder


def write(log: EventLog, *events: Event) -> None:
    for event in events:
        log.write(event)


def scrape(*events: Event) -> Scrape:
    return Scrape(follow(*events)[1])


def scheduled(time: float, num_free_blocks: int) -> Scheduled:
    return Scheduled(time, 1, (), (), (), num_waiting=0, num_free_blocks=num_free_blocks)


def step(time: float, *sampled: int, num_tokens: int = 1) -> tuple[Event, ...]:
    return Sampled(time, 1, sampled, len(sampled)), StepDone(time, 1, 0.1, 0.3, 0.2, num_tokens, len(sampled))


ONE_REQUEST = (
    Arrived(1.5, "a", num_prompt_tokens=10, num_sequences=1, arrival_time=1.0, max_tokens=20),
    Started(2.0, 1, "a", row=0),
    PrefixHit(2.0, 1, 8, (7, 8)),
    scheduled(2.0, 97),
    FirstToken(2.5, "a"),
    *step(2.5, 1, num_tokens=2),
    scheduled(2.6, 97),
    *step(3.0, 1),
    scheduled(3.1, 97),
    Finished(4.0, 1, "a", "stop", num_output_tokens=3),
    *step(4.0, 1),
)


def test_one_request_from_its_arrival_to_its_end() -> None:
    seen = scrape(*ONE_REQUEST)
    assert seen.mean("request_queue_time_seconds") == 1.0
    assert seen.mean("request_prefill_time_seconds") == 0.5
    assert seen.mean("time_to_first_token_seconds") == 1.5
    assert seen.mean("request_decode_time_seconds") == 1.5
    assert seen.mean("request_inference_time_seconds") == 2.0
    assert seen.mean("e2e_request_latency_seconds") == 3.0
    assert seen.mean("request_time_per_output_token_seconds") == 0.75
    assert (seen("inter_token_latency_seconds_count"), seen.mean("inter_token_latency_seconds")) == (2, 0.75)
    assert seen.mean("request_params_max_tokens") == 20
    assert seen.mean("request_prefill_kv_computed_tokens") == 2
    assert (seen("prompt_tokens_total"), seen("generation_tokens_total")) == (10, 3)
    assert seen("prompt_tokens_by_source_total", source="local_compute") == 2
    assert seen("prompt_tokens_by_source_total", source="local_cache_hit") == 8
    assert (seen("prefix_cache_queries_total"), seen("prefix_cache_hits_total")) == (10, 8)
    assert seen("request_success_total", finished_reason="stop") == 1
    assert seen("request_success_total", finished_reason="error") == 0
    assert (seen("iteration_tokens_total_count"), seen("iteration_tokens_total_sum")) == (3, 5), "2 + 1, then 1 and 1"
    assert seen("step_seconds_total", part="execute") == pytest.approx(0.9)


def test_every_metric_is_there_under_both_names_with_the_same_value() -> None:
    seen = scrape(*ONE_REQUEST)
    gauges = [name for name in GAUGES if name != "lora_requests_info"]  # there are no adapters
    for kind, names in (("gauge", gauges), ("counter", COUNTERS), ("histogram", HISTOGRAMS)):
        for name in names:
            assert seen.kinds[f"octavo:{name}"] == seen.kinds[f"vllm:{name}"] == kind
    ours = {key: value for key, value in seen.values.items() if key[0].startswith("octavo:")}
    for (name, labels), value in ours.items():
        if not name.endswith("by_reason"):
            assert seen.values[name.replace("octavo:", "vllm:"), labels] == value, name


def test_gauges_follow_sequences_as_they_move() -> None:
    log, recorder = follow(
        Arrived(1.0, "a", 4, 2),
        Arrived(1.0, "b", 4, 1),
        Started(2.0, 1, "a", 0),
        Waits(2.0, "b", "blocks: needs 9, 3 are available"),
        scheduled(2.0, 25),
        Forked(2.0, 1, 2, "a", 1),
    )
    seen = Scrape(recorder)
    assert (seen("num_requests_running"), seen("num_requests_waiting")) == (2, 1)
    assert seen("kv_cache_usage_perc") == 0.75
    assert seen("num_requests_waiting_by_reason", reason="blocks") == 1
    assert seen("num_requests_waiting_by_reason", reason="turn") == 0
    assert seen("num_requests_waiting_by_reason", "vllm", reason="capacity") == 1
    write(log, Preempted(3.0, 2, "a", 4))
    seen = Scrape(recorder)
    assert (seen("num_requests_running"), seen("num_requests_waiting")) == (1, 2)
    assert seen("num_requests_waiting_by_reason", reason="turn") == 1
    write(log, Finished(4.0, 2, "a", "abort", 0), Finished(4.0, 1, "a", "abort", 0), Finished(4.0, 3, "b", "abort", 0))
    seen = Scrape(recorder)
    assert (seen("num_requests_running"), seen("num_requests_waiting")) == (0, 0)
    assert seen("kv_cache_usage_perc") == 0.0
    assert seen("num_requests_waiting_by_reason", reason="blocks") == 0
    assert seen("num_preemptions_total") == 1
    assert seen("request_num_preemptions_sum") == 1


def test_the_blocks_that_sharing_saves() -> None:
    """4 of 100 blocks are in use: two samples hold 2 together and 1 each, and a third request found one of the 2."""
    log, recorder = follow(
        Started(2.0, 1, "a", 0),
        BlocksGiven(2.0, 1, 0, (1, 2)),
        Forked(2.0, 1, 2, "a", 2),
        BlocksGiven(3.0, 1, 0, (3,)),
        BlocksGiven(3.0, 2, 0, (4,)),
        PrefixHit(3.0, 3, 16, (1,)),
        scheduled(3.0, 96),
    )
    assert Scrape(recorder)("kv_cache_sharing_saved_perc") == pytest.approx(1 - 4 / 7)
    write(log, BlocksFreed(4.0, 2, 0, (1, 2, 4), "finished"), BlocksFreed(4.0, 3, 0, (1,), "aborted"))
    write(log, scheduled(4.0, 97))
    assert Scrape(recorder)("kv_cache_sharing_saved_perc") == 0


def test_samples_of_one_request_end_one_by_one_and_the_request_once() -> None:
    seen = scrape(
        Arrived(1.0, "a", 4, 2),
        Started(1.0, 1, "a", 0),
        Forked(1.0, 1, 2, "a", 1),
        FirstToken(2.0, "a"),
        *step(2.0, 1, 2),
        Finished(3.0, 1, "a", "stop", 2),
        *step(3.0, 1, 2),
        Finished(5.0, 2, "a", "length", 3),
        *step(5.0, 2),
    )
    assert seen("request_success_total", finished_reason="stop") == 1
    assert seen("request_success_total", finished_reason="length") == 1
    assert (seen("e2e_request_latency_seconds_count"), seen("e2e_request_latency_seconds_sum")) == (1, 4.0)
    assert seen("request_max_num_generation_tokens_sum") == 3
    assert (seen("request_generation_tokens_count"), seen("request_generation_tokens_sum")) == (2, 5)
    assert seen("inter_token_latency_seconds_sum") == 1 + 1 + 2
    assert seen("request_params_n_sum") == 2


def test_what_a_request_never_reached_is_not_observed() -> None:
    seen = scrape(Arrived(1.0, "a", 4, 1), Finished(3.0, 1, "a", "abort", 0))
    assert seen("e2e_request_latency_seconds_sum") == 2.0
    for name in ("request_queue_time", "request_prefill_time", "request_decode_time", "time_to_first_token"):
        assert seen(f"{name}_seconds_count") == 0


def test_refusals_and_corruption_are_counted() -> None:
    seen = scrape(
        Refused(1.0, "x", "invalid"),
        Refused(1.0, "y", "queue_full"),
        Refused(1.0, "z", "queue_full"),
        Arrived(1.0, "a", 4, 1),
        Started(1.0, 1, "a", 0),
        Finished(2.0, 1, "a", "error", 0, is_corrupted=True),
    )
    assert seen("admission_rejections_total", reason="queue_full") == 2
    assert seen("admission_rejections_total", reason="invalid") == 1
    assert seen("corrupted_requests_total") == 1


def test_blocks_of_other_engines_are_counted() -> None:
    seen = scrape(
        BlocksCame(1.0, "a", "the prefill engine", 32, 4096, 0.25),
        BlocksCame(1.0, "b", "the prefill engine", 0, 0, 30.0, "it is gone"),
        BlocksCame(1.0, "c", "", 0, 0, 0.0, "none is connected"),
    )
    assert [seen("kv_transfer_requests_total", result=one) for one in ("came", "failed", "not_asked")] == [1, 1, 1]
    assert (seen("kv_transfer_tokens_total"), seen("kv_transfer_bytes_total")) == (32, 4096)
    assert (seen("kv_transfer_time_seconds_count"), seen("kv_transfer_time_seconds_sum")) == (1, 0.25)


def test_a_resumed_sequence_asks_the_prefix_cache_for_nothing_new() -> None:
    seen = scrape(
        Arrived(1.0, "a", 8, 1),
        Started(1.0, 1, "a", 0),
        Preempted(2.0, 1, "a", 8),
        Started(3.0, 1, "a", 0),
        PrefixHit(3.0, 1, 4, (1,)),
    )
    assert (seen("prefix_cache_queries_total"), seen("prefix_cache_hits_total")) == (8, 0)


def test_adapters_of_requests_are_labels() -> None:
    log = EventLog(0)
    log.start(replace(STARTED, max_loras=4))
    metrics = EngineMetrics(log, model_name="m")

    def labels() -> tuple[str, str, str]:
        families = {family.name: family for family in text_string_to_metric_families(metrics.exposition().decode())}
        (sample,) = families["vllm:lora_requests_info"].samples
        assert sample.value == pytest.approx(time.time(), abs=60)
        names = "max_lora", "running_lora_adapters", "waiting_lora_adapters"
        return tuple(sample.labels[name] for name in names)  # type: ignore[return-value]

    assert labels() == ("4", "", "")
    arrivals = [Arrived(1.0, str(one), 8, 2, adapter=name) for one, name in enumerate(("sql", "law", "sql", ""))]
    write(log, *arrivals, Started(1.0, 0, "0", 0), Started(1.0, 3, "3", 1))
    assert labels() == ("4", "sql", "law,sql")
    write(log, Forked(2.0, 0, 1, "0", 0), Preempted(2.0, 1, "0", 8))
    write(log, *(Finished(3.0, one, name, "abort", 0) for one, name in ((4, "1"), (6, "2"))))
    assert labels() == ("4", "sql", "sql")
    write(log, Finished(4.0, 0, "0", "length", 2), Finished(4.0, 1, "0", "length", 2))
    assert labels() == ("4", "", "")
    assert "lora_requests_info" not in EngineMetrics(follow()[0], model_name="m").exposition().decode()


def test_labels_are_escaped() -> None:
    log = EventLog(0)
    log.start(replace(STARTED, cache_options=(("cache_dtype", "auto"),)))
    name = 'C:\\models\n"best"'
    text = EngineMetrics(log, model_name=name).exposition().decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    labels = families["vllm:cache_config_info"].samples[0].labels
    assert labels["model_name"] == name
    assert (labels["cache_dtype"], labels["num_gpu_blocks"], labels["block_size"]) == ("auto", "100", "4")


def test_256_sequences_cost_little_and_a_scrape_stops_no_step() -> None:
    """On a quiet machine this takes 7 us a step and 0.5 ms a scrape; the limits allow for a busy one."""
    log, recorder = follow()
    for one in range(256):
        write(log, Arrived(0.0, str(one), 9, 1), Started(0.0, one, str(one), one), FirstToken(0.1, str(one)))
    ids = tuple(range(256))
    begin = time.perf_counter()
    for number in range(1000):
        recorder.record(Scheduled(float(number), number, ids, ids, ids, 0, 50))
        write(log, *step(float(number), *ids, num_tokens=256))
    step_us = (time.perf_counter() - begin) * 1e3
    begin = time.perf_counter()
    for _ in range(5):
        recorder.exposition()
    scrape_ms = (time.perf_counter() - begin) * 1e3 / 5
    assert step_us < 250
    assert scrape_ms < 20


def test_the_scheduler_writes_down_whom_it_refuses_and_whose_logits_were_broken() -> None:
    simulator = Simulator(num_blocks=8, block_size=4)
    simulator.events.start(STARTED)
    recorder = EngineMetrics(simulator.events, model_name="m")
    with pytest.raises(InvalidRequestError):
        simulator.add(make_request("long", [1] * 60))
    simulator.add(make_request("broken", [1, 2, 3]))
    plan = simulator.plan()
    simulator.take(plan, StepResult(plan.step_id, [NO_TOKEN]))
    seen = Scrape(recorder)
    assert seen("admission_rejections_total", reason="invalid") == 1
    assert seen("corrupted_requests_total") == seen("request_success_total", finished_reason="error") == 1
    assert seen("num_requests_running") == seen("num_requests_waiting") == 0


@pytest.mark.parametrize("is_overlapped", [False, True])
def test_an_engine_that_ran(is_overlapped: bool) -> None:
    """Counts equal those of the outputs; times add up. A repeated prompt is found in the prefix cache."""
    llm = LLM("smollm2", max_model_len=128, max_num_seqs=4, num_threads=1, async_scheduling=is_overlapped)
    recorder = EngineMetrics(llm.events, model_name="m")
    params = SamplingParams(temperature=0, max_tokens=6, n=1)
    prompt = "One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen,"
    outputs = [llm.generate(prompt, params, use_tqdm=False)[0] for _ in range(2)]
    outputs += llm.generate("Paper", params.replace(n=3, temperature=1.0), use_tqdm=False)
    seen = Scrape(recorder)
    completions = [one for output in outputs for one in output.outputs]
    num_generated = sum(len(one.token_ids) for one in completions)
    assert seen("generation_tokens_total") == num_generated == seen("request_generation_tokens_sum")
    assert seen("prompt_tokens_total") == sum(len(output.prompt_token_ids or ()) for output in outputs)
    assert seen("prefix_cache_hits_total") == 16
    assert seen("inter_token_latency_seconds_count") == num_generated - len(completions)
    assert seen("iteration_tokens_total_sum") == num_generated + seen("prompt_tokens_total") - 16
    assert seen("time_to_first_token_seconds_count") == seen("e2e_request_latency_seconds_count") == 3
    parts = ("queue", "prefill", "decode")
    total = sum(seen(f"request_{part}_time_seconds_sum") for part in parts)
    assert total == pytest.approx(seen("e2e_request_latency_seconds_sum"))
    assert (seen("num_requests_running"), seen("num_requests_waiting"), seen("kv_cache_usage_perc")) == (0, 0, 0)
    llm.close()


@pytest.mark.parametrize("is_overlapped", [False, True])
def test_sampled_says_who_got_tokens(is_overlapped: bool) -> None:
    """Whatever is preempted, forked, chunked or ended in a step, the log has the same tokens as the updates."""
    config = SchedulerConfig(max_num_batched_tokens=8, max_num_seqs=6, schedule_conservativeness=0)
    simulator = Simulator(num_blocks=14, block_size=4, config=config)
    simulator.add(*(make_request(str(i), list(range(i, i + 5 + i)), n=1 + i % 3, max_tokens=5 + i) for i in range(5)))
    while simulator.scheduler.has_unfinished:
        simulator.step_overlapped(40) if is_overlapped else simulator.step()
    logged = Counter(one for event in simulator.events if isinstance(event, Sampled) for one in event.sequence_ids)
    updated = Counter(u.sequence.sequence_id for u in simulator.updates for _ in u.token_ids)
    assert logged == updated
    assert any(isinstance(event, Preempted) for event in simulator.events), "the pool is small enough to matter"


def test_the_metrics_of_several_engines_are_one_text_with_their_labels() -> None:
    texts = []
    for engine, reason in enumerate(("stop", "length", "stop")):
        log = EventLog(0)
        log.start(STARTED)
        recorder = EngineMetrics(log, model_name="m", engine=str(engine))
        write(log, Arrived(1.0, "a", 5, 1), Finished(2.0, 0, "a", reason, 3 + engine))  # type: ignore[arg-type]
        texts.append(recorder.exposition())
    text = joined(texts).decode()
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names)), "each metric is described once"
    ends = {
        (sample.labels["engine"], sample.labels["finished_reason"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "octavo:request_success_total" and sample.value
    }
    assert ends == {("0", "stop"): 1, ("1", "length"): 1, ("2", "stop"): 1}
    assert sum(len(one.splitlines()) for one in texts) - text.count("\n") == 2 * 2 * len(names)
    assert joined(texts[:1]) == texts[0]
