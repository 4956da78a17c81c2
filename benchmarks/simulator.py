"""The simulator beside a real engine: the same arrivals through both, and how far their latencies are apart.

    python -m benchmarks.simulator smollm2 --rates 1,2,4 --num-prompts 100 --engine num_threads=1 max_num_seqs=32
    python -m benchmarks.simulator examples/configs/qwen3-0.6b --rates 4,16,64 --num-prompts 400 \
        --input-len 512 --output-len 128 --engine load_format=dummy max_model_len=16384

First the costs of steps are measured, as by `octavo bench cost`, unless --cost names a table. Then each rate runs on
the real engine, in this process, and in the simulator. --clock cpu counts the seconds that this process computes, and
skips those in which it has nothing to do: for a CPU that others use too, with num_threads=1.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from octavo.engine.assemble import build_engine, engine_config
from octavo.engine.core import EngineCore
from octavo.executor.executor import executor_here
from octavo.observe.event_log import EventLog
from octavo.request import Request
from octavo.scheduler.step import SequenceUpdate
from octavo.simulator.cost_table import CostTable, MeasuredCost, read_cost_table
from octavo.simulator.drive import Driver
from octavo.simulator.engine import SimulatedEngine, SimulatedSizes
from octavo.simulator.generate import TraceRecipe
from octavo.simulator.measure_cost import Patience, StepTimer, measure_decodes, measure_host, measure_mixed, sizes_of
from octavo.simulator.report import METRICS, PERCENTAGES, Result, result_of
from octavo.simulator.requests import RequestMaker, drawn_below, never_repeated
from octavo.worker.task import WorkerTask

Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
_COLUMNS = [(metric, percentage) for metric in METRICS for percentage in PERCENTAGES]
_WARM_UP = TraceRecipe(dataset="random", num_prompts=8, random_input_len=64, random_output_len=16, seed=1_000)


class RealEngine:
    """A core that runs by a clock. Where that stands still while nothing runs, waiting skips the time."""

    def __init__(self, core: EngineCore, clock: Clock, is_wall: bool) -> None:
        self._core = core
        self._clock = clock
        self._is_wall = is_wall
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
        return self._core.step()

    def wait_until(self, time_: float) -> None:
        if self._is_wall:
            time.sleep(max(0.0, time_ - self.now))
        else:
            self._begin -= max(0.0, time_ - self.now)


def main() -> None:
    args = _arguments()
    clock = CLOCKS[args.clock]
    options = dict(option.split("=", 1) for option in args.engine)
    table = read_cost_table(args.cost) if args.cost else measure(args.model, options, clock)
    if args.save_cost:
        table.write(args.save_cost)
    cost, sizes = MeasuredCost(table), _sizes(table, options)
    with engine_of(args.model, options) as core:
        vocab_size = args.vocab_size
        first = RequestMaker(drawn_below(vocab_size, 1))
        Driver(RealEngine(core, clock, args.clock == "wall"), first).run(_WARM_UP.requests())
        print(
            f"{'rate':>6} {'':>10}"
            + "".join(f"{f'{one} p{p}':>11}" for one in METRICS for p in PERCENTAGES)
            + "  tok/s"
        )
        for number, rate in enumerate(map(float, args.rates.split(","))):
            recipe = _recipe(args, rate, number)
            gc.collect()
            real = RealEngine(core, clock, args.clock == "wall")
            tokens = RequestMaker(drawn_below(vocab_size, number + 2))
            measured = result_of(Driver(real, tokens).run(recipe.requests()), sizes.num_blocks - 1)
            engine = SimulatedEngine(sizes, engine_config(model=args.model, **options).scheduler, cost, EventLog(0))
            outcome = Driver(engine, RequestMaker(never_repeated())).run(recipe.requests())
            print_row(rate, measured, result_of(outcome, sizes.num_blocks - 1))


def measure(model: str, options: dict[str, str], clock: Clock) -> CostTable:
    executor = executor_here(WorkerTask.of(engine_config(model=model, **options)))
    try:
        limits = executor.shape.limits
        timer = StepTimer(executor, Patience(), clock)
        decode = measure_decodes(timer, limits.max_num_seqs, lambda text: None)
        mixed = measure_mixed(timer, limits.max_num_tokens, lambda text: None)
        host = measure_host()
        day, label = time.strftime("%Y-%m-%d"), executor.shape.label
        return CostTable(label, day, {}, sizes_of(executor), *host, decode, mixed)
    finally:
        executor.close()


@contextmanager
def engine_of(model: str, options: dict[str, str]) -> Iterator[EngineCore]:
    engine = build_engine(engine_config(model=model, **options))
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


def _sizes(table: CostTable, options: dict[str, str]) -> SimulatedSizes:
    sizes, config = table.engine, engine_config(**{name: value for name, value in options.items() if name != "model"})
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
    parser.add_argument("--save-cost", metavar="FILE", help="write the table that was measured")
    parser.add_argument("--clock", default="wall", choices=tuple(CLOCKS))
    parser.add_argument("--engine", nargs="*", default=[], metavar="NAME=VALUE", help="options of the engine")
    return parser.parse_args()


if __name__ == "__main__":
    main()
