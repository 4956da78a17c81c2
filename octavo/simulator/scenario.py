"""A scenario: an engine or several alike, one cost and one trace, with all that a simulation needs in any process.

Scenario ──run──▶ Result            several scenarios run side by side, in a process for each core
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any

from octavo import __version__
from octavo.config import CacheConfig, DataParallelRouting, SchedulerConfig
from octavo.errors import ConfigError
from octavo.observe.event_log import EventLog
from octavo.observe.events import Event
from octavo.observe.flight_log import LogHeader, LogWriter
from octavo.observe.machine import num_cores
from octavo.processes.router import Router
from octavo.simulator.cost_table import EngineSizes, read_cost_table
from octavo.simulator.drive import Driver
from octavo.simulator.engine import SimulatedEngine, SimulatedSizes
from octavo.simulator.fleet import Fleet
from octavo.simulator.generate import TraceRecipe
from octavo.simulator.measured_cost import MeasuredCost
from octavo.simulator.report import Result, result_of
from octavo.simulator.requests import RequestMaker, never_repeated
from octavo.simulator.step_cost import StepCost, described_cost
from octavo.simulator.trace import read_trace

_DEFAULT_SEQS, _DEFAULT_TOKENS = 256, 8192  # vLLM's for a server
_NEW_OBJECTS = 200_000  # between two garbage collections
_FEW_REQUESTS = 2_000  # so many in all start no processes
_FULL = 4096  # events that are written at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """cost: a file of `octavo bench cost`, or numbers. trace: a file of JSON lines, or a recipe. max_model_len: None:
    as measured, or what the blocks hold. num_engines, routing: so many alike, behind a router."""

    cost: str
    trace: str | TraceRecipe
    cache: CacheConfig
    scheduler: SchedulerConfig
    max_model_len: int | None = None
    num_engines: int = 1
    routing: DataParallelRouting = "prefix"

    @property
    def num_requests(self) -> int:
        """Of a recipe; a file is taken for a short one."""
        return self.trace.num_prompts if isinstance(self.trace, TraceRecipe) else 0

    def engines(self) -> list[SimulatedEngine]:
        cost, measured = _cost(self.cost)
        sizes = _sizes(self, measured)
        return [SimulatedEngine(sizes, self.scheduler, cost, EventLog(0)) for _ in range(self.num_engines)]

    def run(self, record: str | None = None) -> Result:
        """record: a file for its events, if it has one engine."""
        engines = self.engines()
        if record is None:
            return self._drive(engines)
        assert self.num_engines == 1, "an event log is one engine's"
        config = {"cache": asdict(self.cache), "scheduler": asdict(self.scheduler)}
        with _recording(record, engines[0].events, config):
            return self._drive(engines)

    def _drive(self, engines: list[SimulatedEngine]) -> Result:
        fleet = Fleet(engines, router_of(engines, self.routing) if len(engines) > 1 else None)
        trace = self.trace.requests() if isinstance(self.trace, TraceRecipe) else read_trace(self.trace)
        with _rare_collections():
            outcome = Driver(fleet, RequestMaker(never_repeated())).run(trace)
        return result_of(outcome, engines[0].sizes.num_blocks - 1, len(engines))


def router_of(engines: Sequence[SimulatedEngine], routing: DataParallelRouting) -> Router:
    """A router that knows these engines as up."""
    router = Router(len(engines), routing)
    for index, engine in enumerate(engines):
        started = engine.events.started
        assert started is not None, "an engine begins with its sizes"
        router.goes_up(index, started.num_slots if started.enable_prefix_caching else 0)
    return router


def run_all(scenarios: Sequence[Scenario], num_processes: int | None = None, record: str | None = None) -> list[Result]:
    """In their order. num_processes: None: one for each core that this process may use, if there is much to do.
    record: a file for the events of a scenario that is the only one."""
    if num_processes is None:
        is_much = sum(scenario.num_requests for scenario in scenarios) > _FEW_REQUESTS
        num_processes = num_cores() if is_much else 1
    if min(num_processes, len(scenarios)) == 1:
        return [scenario.run(record) for scenario in scenarios]
    with ProcessPoolExecutor(num_processes, get_context("spawn")) as pool:
        return list(pool.map(Scenario.run, scenarios))


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Steps make and drop containers by the million, and only ended requests are garbage in circles: looking for these
    seldom saves a fifth of the time."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()  # a trace is large, and nothing of it is garbage
    gc.set_threshold(_NEW_OBJECTS, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def _cost(text: str) -> tuple[StepCost, EngineSizes | None]:
    if "=" in text and not os.path.exists(text):
        return described_cost(text), None
    table = read_cost_table(text)
    return MeasuredCost(table), table.engine


def _sizes(scenario: Scenario, measured: EngineSizes | None) -> SimulatedSizes:
    cache, scheduler = scenario.cache, scenario.scheduler
    num_blocks, block_bytes = _blocks(cache, measured)
    windows = tuple(measured.windows) if measured is not None else (None,)
    max_model_len = _model_len(scenario, measured, (num_blocks - 1) // len(windows) * cache.block_size)
    tokens = scheduler.max_num_batched_tokens or (measured.max_num_batched_tokens if measured else _DEFAULT_TOKENS)
    overlaps = measured.is_asynchronous if measured is not None else True
    return SimulatedSizes(
        num_blocks=num_blocks,
        block_size=cache.block_size,
        block_bytes=block_bytes,
        max_model_len=max_model_len,
        max_num_seqs=scheduler.max_num_seqs or (measured.max_num_seqs if measured else _DEFAULT_SEQS),
        max_num_batched_tokens=tokens if scheduler.enable_chunked_prefill else max(tokens, max_model_len),
        is_overlapped=overlaps if scheduler.async_scheduling is None else scheduler.async_scheduling,
        windows=windows,
        enable_prefix_caching=cache.enable_prefix_caching,
    )


def _model_len(scenario: Scenario, measured: EngineSizes | None, fitting_len: int) -> int:
    """As an engine chooses it: what was asked for must fit, and what was measured is lowered to what fits."""
    if scenario.max_model_len is None:
        return min(measured.max_model_len, fitting_len) if measured is not None else fitting_len
    if scenario.max_model_len > fitting_len:
        raise ConfigError(
            f"max_model_len is {scenario.max_model_len}, but the KV blocks hold {fitting_len} tokens: lower it, or "
            "give more blocks"
        )
    return scenario.max_model_len


def _blocks(cache: CacheConfig, measured: EngineSizes | None) -> tuple[int, int]:
    """How many, with the null block, and the bytes of one; by default as many tokens as the measured engine held."""
    size = cache.block_size
    block_bytes = measured.block_bytes * size // measured.block_size if measured is not None else 0
    if cache.num_gpu_blocks_override is not None:
        return cache.num_gpu_blocks_override, block_bytes
    if measured is None:
        raise ConfigError(
            "a described cost says nothing of memory: give the number of KV blocks with num_gpu_blocks_override"
        )
    if cache.kv_cache_memory_bytes is not None:
        return max(2, cache.kv_cache_memory_bytes // block_bytes), block_bytes
    return max(2, (measured.num_blocks - 1) * measured.block_size // size + 1), block_bytes


@contextmanager
def _recording(path: str, events: EventLog, config: Mapping[str, dict[str, Any]]) -> Iterator[None]:
    """Write all events of an engine that has not run yet, as a real run's are. config: option -> value, by section."""
    assert events.started is not None, "a log begins with the engine's sizes"
    header = LogHeader(
        version=__version__, written_at=time.time(), clock=0.0, started=events.started, config=dict(config)
    )
    pending: list[Event] = [events.started]
    try:
        with open(path, "wb") as file:
            writer = LogWriter(file, header)

            def take(event: Event) -> None:
                pending.append(event)
                if len(pending) >= _FULL:
                    writer.write(pending)
                    pending.clear()

            events.listen(take)
            yield
            writer.write(pending)
    except OSError as error:
        raise ConfigError(f"the event log {path} cannot be written: {error}") from None
