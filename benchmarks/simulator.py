"""The simulator beside a real engine: the same arrivals through both, and how far their latencies are apart.

    python -m benchmarks.simulator smollm2 --rates 1,2,4 --num-prompts 100 --engine num_threads=1 max_num_seqs=32
    python -m benchmarks.simulator examples/configs/qwen3-0.6b --rates 4,16,64 --num-prompts 400 \
        --input-len 512 --output-len 128 --engine load_format=dummy max_model_len=16384

First the costs of steps are measured, as by `octavo bench cost`, unless --cost names a table. Then each rate runs on
the real engine, in this process, and in the simulator.

--clock cpu is for a CPU that others use too, with num_threads=1. It counts the seconds that this process computes, and
skips those in which it has nothing to do. As the others make it slower at some times than at others, costs are then
measured between the steps of each real run, with a model of their own and outside its time.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

from octavo.config import EngineConfig
from octavo.engine.assemble import build_engine, engine_config
from octavo.engine.core import EngineCore
from octavo.executor.executor import Executor, executor_here
from octavo.observe.event_log import EventLog
from octavo.request import Request
from octavo.scheduler.step import SequenceUpdate
from octavo.simulator.cost_table import CostTable, DecodePoint, MeasuredCost, MixedPoint, read_cost_table, spread_of
from octavo.simulator.drive import Driver
from octavo.simulator.engine import SimulatedEngine, SimulatedSizes
from octavo.simulator.fleet import Fleet
from octavo.simulator.generate import TraceRecipe
from octavo.simulator.measure_cost import (
    decode_cells,
    measure_decodes,
    measure_mixed,
    mixed_cells,
    mixed_point,
    sizes_of,
)
from octavo.simulator.measure_host import measure_host
from octavo.simulator.report import METRICS, PERCENTAGES, Result, result_of
from octavo.simulator.requests import RequestMaker, drawn_below, never_repeated
from octavo.simulator.step_timer import Patience, StepTimer
from octavo.worker.task import WorkerTask

Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
_COLUMNS = [(metric, percentage) for metric in METRICS for percentage in PERCENTAGES]
_STEPS_BETWEEN = 16
_WARM_UP = TraceRecipe(dataset="random", num_prompts=8, random_input_len=64, random_output_len=16, seed=1_000)


class RealEngine:
    """A core that runs by a clock. Where that stands still while nothing runs, waiting skips the time. between: what is
    done between steps now and then, outside the engine's time."""

    def __init__(
        self, core: EngineCore, clock: Clock, is_wall: bool, between: Callable[[], None] | None = None
    ) -> None:
        self._core = core
        self._clock = clock
        self._is_wall = is_wall
        self._between = between
        self._num_steps = 0
        self._begin = clock()

    @property
    def now(self) -> float:
        return self._clock() - self._begin

    @property
    def has_unfinished(self) -> bool:
        return self._core.has_unfinished

    @property
    def num_used_blocks(self) -> int:
        return self._core.num_used_blocks

    def add(self, request: Request) -> None:
        self._core.add_request(request)

    def step(self) -> list[SequenceUpdate]:
        self._num_steps += 1
        if self._between is not None and self._num_steps % _STEPS_BETWEEN == 0:
            begin = self._clock()
            self._between()
            self._begin += self._clock() - begin
        return self._core.step()

    def wait_until(self, time_: float) -> None:
        if self._is_wall:
            time.sleep(max(0.0, time_ - self.now))
        else:
            self._begin -= max(0.0, time_ - self.now)


class CellsInTurn:
    """Measures one cell of a cost table at a time."""

    def __init__(self, executor: Executor, clock: Clock) -> None:
        self._executor = executor
        self._clock = clock
        self._timer = StepTimer(executor, Patience(2, 0.05), clock)
        limits = executor.shape.limits
        self._cells: list[tuple[int, ...]] = [*decode_cells(self._timer, limits.max_num_seqs)]
        self._cells += mixed_cells(self._timer, limits.max_num_tokens)
        self._taken: dict[tuple[int, ...], list[float]] = {}
        self._turn = itertools.cycle(self._cells)

    def measure_next(self) -> None:
        cell = next(self._turn)
        seconds = self._timer.decode(*cell) if len(cell) == 2 else self._timer.mixed(*cell)
        self._taken.setdefault(cell, []).append(seconds)

    def take_table(self) -> CostTable:
        """Of what was measured since the last call, at least once for each cell."""
        while len(self._taken) < len(self._cells):
            self.measure_next()
        found = {cell: statistics.median(taken) for cell, taken in self._taken.items()}
        ratios, self._taken, self._timer.ratios = self._timer.ratios, {}, []
        return cost_table(
            self._executor,
            self._clock,
            ratios,
            [DecodePoint(*cell, seconds) for cell, seconds in found.items() if len(cell) == 2],
            [mixed_point(*cell, seconds) for cell, seconds in found.items() if len(cell) == 3],
        )


def main() -> None:
    args = _arguments()
    clock, is_wall = CLOCKS[args.clock], args.clock == "wall"
    options = dict(option.split("=", 1) for option in args.engine)
    config = engine_config(model=args.model, skip_tokenizer_init=True, **options)
    table = read_cost_table(args.cost) if args.cost else measure(config, clock) if is_wall else None
    with engine_of(config) as core, ExitStack() as stack:
        in_turn = None
        if table is None:
            in_turn = CellsInTurn(stack.enter_context(closing(executor_here(WorkerTask.of(config)))), clock)
        first = RequestMaker(drawn_below(args.vocab_size, 1))
        Driver(Fleet([RealEngine(core, clock, is_wall)]), first).run(_WARM_UP.requests())
        print(f"{'rate':>6} {'':>10}" + "".join(f"{f'{one} p{p}':>11}" for one, p in _COLUMNS) + "  out tok/s")
        for number, rate in enumerate(map(float, args.rates.split(","))):
            recipe = _recipe(args, rate, number)
            gc.collect()
            real = RealEngine(core, clock, is_wall, in_turn.measure_next if in_turn else None)
            tokens = RequestMaker(drawn_below(args.vocab_size, number + 2))
            measured = Driver(Fleet([real]), tokens).run(recipe.requests())
            costs = in_turn.take_table() if in_turn else table
            assert costs is not None, "it was read or measured"
            sizes = _sizes(costs, config)
            engine = SimulatedEngine(sizes, config.scheduler, MeasuredCost(costs), EventLog(0))
            simulated = Driver(Fleet([engine]), RequestMaker(never_repeated())).run(recipe.requests())
            print_row(rate, *(result_of(one, sizes.num_blocks - 1) for one in (measured, simulated)))
            if args.save_cost:
                costs.write(args.save_cost)


def measure(config: EngineConfig, clock: Clock) -> CostTable:
    with closing(executor_here(WorkerTask.of(config))) as executor:
        limits, timer = executor.shape.limits, StepTimer(executor, Patience(), clock)
        decode = measure_decodes(timer, limits.max_num_seqs, lambda text: None)
        mixed = measure_mixed(timer, limits.max_num_tokens, lambda text: None)
        return cost_table(executor, clock, timer.ratios, decode, mixed)


def cost_table(
    executor: Executor, clock: Clock, ratios: list[float], decode: list[DecodePoint], mixed: list[MixedPoint]
) -> CostTable:
    day, label, host = time.strftime("%Y-%m-%d"), executor.shape.label, measure_host(executor, clock)
    return CostTable(label, day, {}, sizes_of(executor), *host, decode, mixed, spread=spread_of(ratios))


@contextmanager
def engine_of(config: EngineConfig) -> Iterator[EngineCore]:
    engine = build_engine(config)
    try:
        yield engine.core
    finally:
        engine.close()


def print_row(rate: float, real: Result, simulated: Result) -> None:
    """Milliseconds of both, and how much the simulator is above the engine."""
    for name, result in (("real", real), ("simulated", simulated)):
        cells = "".join(f"{result.times_ms[column] or 0.0:>11.1f}" for column in _COLUMNS)
        print(f"{rate:>6g} {name:>10}{cells}  {result.output_tokens_per_s:,.1f}", flush=True)
    apart = [(simulated.times_ms[one] or 0.0) / (real.times_ms[one] or 1.0) - 1 for one in _COLUMNS]
    print(f"{'':>6} {'apart':>10}" + "".join(f"{one:>+11.1%}" for one in apart), flush=True)


def _sizes(table: CostTable, config: EngineConfig) -> SimulatedSizes:
    sizes = table.engine
    asked = config.scheduler.async_scheduling
    return SimulatedSizes(
        num_blocks=sizes.num_blocks,
        block_size=sizes.block_size,
        max_model_len=sizes.max_model_len,
        max_num_seqs=sizes.max_num_seqs,
        max_num_batched_tokens=sizes.max_num_batched_tokens,
        is_overlapped=sizes.is_asynchronous if asked is None else asked,
        windows=tuple(sizes.windows),
        enable_prefix_caching=config.cache.enable_prefix_caching,
    )


def _recipe(args: argparse.Namespace, rate: float, number: int) -> TraceRecipe:
    return TraceRecipe(
        dataset=args.dataset,
        num_prompts=args.num_prompts,
        request_rate=rate,
        random_input_len=args.input_len,
        random_output_len=args.output_len,
        random_range_ratio=args.range_ratio,
        seed=number,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rates", default="1,2,4", help="requests per second, one run each")
    parser.add_argument("--dataset", default="random", choices=("random", "sharegpt", "alpaca"))
    parser.add_argument("--num-prompts", type=int, default=100)
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--range-ratio", type=float, default=0.5)
    parser.add_argument("--vocab-size", type=int, default=30_000)
    parser.add_argument("--cost", help="a table of `octavo bench cost`; default: measure one")
    parser.add_argument("--save-cost", metavar="FILE", help="write the last table that was used")
    parser.add_argument("--clock", default="wall", choices=tuple(CLOCKS))
    parser.add_argument("--engine", nargs="*", default=[], metavar="NAME=VALUE", help="options of the engine")
    return parser.parse_args()


if __name__ == "__main__":
    main()
