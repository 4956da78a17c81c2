"""The simulator beside a real engine: the same arrivals through both, and how far their latencies are apart.

    python -m benchmarks.simulator smollm2 --rates 1,2,4 --num-prompts 100 --engine num_threads=1 max_num_seqs=32
    python -m benchmarks.simulator examples/configs/qwen3-0.6b --rates 4,16,64 --num-prompts 400 --repeats 3 \
        --input-len 512 --output-len 128 --engine load_format=dummy max_model_len=16384

Each rate runs on the real engine, in this process: --warm-ups times uncounted, as a GPU's kernels are compiled and its
graphs captured when a step first needs them, then twice; then in the simulator. All that so often as --repeats says.
The two real runs say how much of a difference is the machine's. Only what the engine does counts as its time: what
drives it takes some, too.

The costs of an asynchronous device's steps are measured first, as by `octavo bench cost`, unless --cost names a table.
A host is slower at some times than at others, so there they are measured between the steps of each real run, with a
model of their own and outside its time. --clock cpu is for a CPU that others use too, with num_threads=1: it counts the
seconds that this process computes, and skips those in which it has nothing to do.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from benchmarks.priced_steps import WatchedExecutor, print_prices, write_steps
from benchmarks.real_engine import Clock, ReadyRequests, RealEngine
from octavo.config import EngineConfig
from octavo.engine.assemble import build_engine
from octavo.engine.core import EngineCore, OverlappedCore
from octavo.engine.options import engine_config
from octavo.executor.executor import Executor, executor_here
from octavo.observe.event_log import EventLog
from octavo.simulator.cost_table import CostTable, DecodePoint, MixedPoint, read_cost_table, spread_of
from octavo.simulator.drive import Driver, Outcome
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
from octavo.simulator.measured_cost import MeasuredCost
from octavo.simulator.report import METRICS, PERCENTAGES, Result, result_of
from octavo.simulator.requests import RequestMaker, drawn_below, never_repeated
from octavo.simulator.step_timer import Patience, StepTimer
from octavo.simulator.trace import TraceRequest
from octavo.worker.task import WorkerTask

CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
_COLUMNS = [(metric, percentage) for metric in METRICS for percentage in PERCENTAGES]
_WARM_UP = TraceRecipe(dataset="random", num_prompts=8, random_input_len=64, random_output_len=16, seed=1_000)


class CellsInTurn:
    """Measures one cell of a cost table at a time."""

    def __init__(self, executor: Executor, clock: Clock) -> None:
        self._executor = executor
        self._clock = clock
        self._timer = StepTimer(executor, Patience(2, 0.05), clock)
        limits = executor.shape.limits
        self._cells: list[tuple[int, ...]] = [*decode_cells(self._timer, limits.max_num_seqs)]
        self._cells += mixed_cells(self._timer, limits.max_num_seqs, limits.max_num_tokens)
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
            self._timer,
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
    with ExitStack() as stack:
        other = stack.enter_context(closing(executor_here(WorkerTask.of(config))))
        is_asynchronous = other.shape.is_asynchronous
        table = read_cost_table(args.cost) if args.cost else measure(other, clock) if is_asynchronous else None
        in_turn = CellsInTurn(other, clock) if table is None else None
        if in_turn is None:
            stack.close()  # two models may be too much for a device
        core = stack.enter_context(engine_of(config))
        is_overlapped = isinstance(core, OverlappedCore)
        watched = core.executor = WatchedExecutor(core.executor, clock, is_overlapped)

        def real_run(requests: list[TraceRequest], seed: int) -> Outcome:
            gc.collect()
            between = in_turn.measure_next if in_turn else None
            ready = ReadyRequests(drawn_below(args.vocab_size, seed), requests)
            engine = RealEngine(core, clock, is_wall, between, is_overlapped=is_overlapped)
            return Driver(Fleet([engine]), ready).run(requests)

        real_run(list(_WARM_UP.requests()), 1)
        print(f"{'rate':>6} {'':>10}" + "".join(f"{f'{one} p{p}':>11}" for one, p in _COLUMNS) + "  out tok/s")
        for number, (rate, _) in enumerate(itertools.product(map(float, args.rates.split(",")), range(args.repeats))):
            requests = list(_recipe(args, rate, number).requests())
            seeds = itertools.count(100 * (number + 1))
            for _ in range(args.warm_ups):
                real_run(requests, next(seeds))
            watched.steps.clear()
            measured = [real_run(requests, next(seeds)) for _ in range(2)]
            costs = in_turn.take_table() if in_turn else table
            assert costs is not None, "it was read or measured"
            sizes = _sizes(costs, config)
            engine = SimulatedEngine(sizes, config.scheduler, MeasuredCost(costs), EventLog(0))
            simulated = Driver(Fleet([engine]), RequestMaker(never_repeated())).run(requests)
            print_rows(rate, *(result_of(one, sizes.num_blocks - 1) for one in (*measured, simulated)))
            print_prices(watched.steps, costs)
            if args.save_cost:
                costs.write(args.save_cost)
            if args.save_steps:
                write_steps(Path(f"{args.save_steps}.{number}"), watched.steps)


def measure(executor: Executor, clock: Clock) -> CostTable:
    limits, timer = executor.shape.limits, StepTimer(executor, Patience(), clock)
    decode = measure_decodes(timer, limits.max_num_seqs, lambda text: None)
    mixed = measure_mixed(timer, limits.max_num_seqs, limits.max_num_tokens, lambda text: None)
    return cost_table(executor, timer, clock, timer.ratios, decode, mixed)


def cost_table(
    executor: Executor,
    timer: StepTimer,
    clock: Clock,
    ratios: list[float],
    decode: list[DecodePoint],
    mixed: list[MixedPoint],
) -> CostTable:
    host = measure_host(executor, timer, clock)
    day, label = time.strftime("%Y-%m-%d"), executor.shape.label
    return CostTable(label, day, {}, sizes_of(executor), host, decode, mixed, spread=spread_of(ratios))


@contextmanager
def engine_of(config: EngineConfig) -> Iterator[EngineCore]:
    engine = build_engine(config)
    try:
        yield engine.core
    finally:
        engine.close()


def print_rows(rate: float, real: Result, again: Result, simulated: Result) -> None:
    """Milliseconds of all, and how much the second run and the simulator are above the mean of the real ones."""
    for name, result in (("real", real), ("again", again), ("simulated", simulated)):
        cells = "".join(f"{result.times_ms[column] or 0.0:>11.1f}" for column in _COLUMNS)
        print(f"{rate:>6g} {name:>10}{cells}  {result.output_tokens_per_s:,.1f}", flush=True)
    for name, one, other in (("floor", again, (real,)), ("apart", simulated, (real, again))):
        means = {column: statistics.mean([each.times_ms[column] or 0.0 for each in other]) for column in _COLUMNS}
        apart = [(one.times_ms[column] or 0.0) / (means[column] or 1.0) - 1 for column in _COLUMNS]
        print(f"{'':>6} {name:>10}" + "".join(f"{share:>+11.1%}" for share in apart), flush=True)


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
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--warm-ups", type=int, default=0)
    parser.add_argument("--cost", help="a table of `octavo bench cost`; default: measure one")
    parser.add_argument("--save-steps", metavar="FILE", help="write each pair of runs' steps, into FILE.0 ...")
    parser.add_argument("--save-cost", metavar="FILE", help="write the last table that was used")
    parser.add_argument("--clock", default="wall", choices=tuple(CLOCKS))
    parser.add_argument("--engine", nargs="*", default=[], metavar="NAME=VALUE", help="options of the engine")
    return parser.parse_args()


if __name__ == "__main__":
    main()
