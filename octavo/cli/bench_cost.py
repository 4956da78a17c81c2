"""octavo bench cost: what steps of different shapes cost, as a table that `octavo simulate` reads.

octavo bench cost smollm2 -o table.json
octavo bench cost smollm2 -o table.json --max-num-seqs 64 --max-num-batched-tokens 2048
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from octavo.cli.flags import add_engine_flags, add_flags, check_counts, check_not_read, engine_options, machine_facts
from octavo.cli.parser import CommandParser
from octavo.cli.progress_bar import progress_line
from octavo.errors import ConfigError

COMMON = (
    *("--model", "--output", "--num-iters", "--max-num-seqs", "--max-num-batched-tokens", "--max-model-len"),
    *("--num-gpu-blocks-override", "--load-format", "--backend"),
)
_RANKS = frozenset(
    (
        *("distributed_executor_backend", "tensor_parallel_size", "pipeline_parallel_size"),
        *("enable_expert_parallel", "enable_eplb", "eplb_config"),
    )
)
_NOT_FLAGS = _RANKS | {"trace_ops"}
_FLAGS = {"num-iters": ("N", 4, "the fewest steps that are timed for a point, after two that warm up")}


def add_arguments(parser: CommandParser) -> None:
    parser.takes_model(default="smollm2")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the table as JSON (needed)")
    add_flags(parser, _FLAGS)
    add_engine_flags(parser, _NOT_FLAGS)


def run(args: argparse.Namespace) -> int:
    from octavo.engine.options import engine_config
    from octavo.executor.executor import executor_here
    from octavo.simulator.cost_table import CostTable, spread_of
    from octavo.simulator.measure_cost import measure_decodes, measure_mixed, sizes_of
    from octavo.simulator.measure_host import measure_host
    from octavo.simulator.step_timer import Patience, StepTimer
    from octavo.worker.task import WorkerTask

    _check(args)
    config = engine_config(model=args.model, **engine_options(args, _NOT_FLAGS))
    executor = executor_here(WorkerTask.of(config))
    try:
        shape = executor.shape
        timer = StepTimer(executor, Patience(args.num_iters, args.num_iters / 16))
        with progress_line("measuring") as tell:
            decode = measure_decodes(timer, shape.limits.max_num_seqs, tell)
            mixed = measure_mixed(timer, shape.limits.max_num_seqs, shape.limits.max_num_tokens, tell)
        if not decode or not mixed:
            raise ConfigError(
                f"no step fits {shape.layout.num_blocks - 1} KV blocks and a context of {shape.limits.max_model_len} "
                "tokens: give more of them, or lower --num-iters"
            )
        host = measure_host(executor, timer)
        machine = {name: str(value) for name, value in machine_facts().items()} | {"backend": shape.backend}
        table = CostTable(
            model=shape.label,
            date=time.strftime("%Y-%m-%d"),
            machine=machine,
            engine=sizes_of(executor),
            host=host,
            decode=decode,
            mixed=mixed,
            spread=spread_of(timer.ratios),
        )
    finally:
        executor.close()
    table.write(args.output)
    print(f"{len(decode)} shapes of decodes and {len(mixed)} with a chunk, written to {args.output}")
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.output is None:
        raise ConfigError("--output is needed: the file to write the table to, such as -o table.json")
    check_counts(args, "num_iters")
    if args.num_iters > 1000:
        raise ConfigError(f"--num-iters is {args.num_iters}, allowed is 1 to 1000")
    check_not_read("--output", args.output, {"--model": args.model})
    try:
        if Path(args.output).is_dir() or not Path(args.output).parent.is_dir():
            raise ConfigError(f"--output {args.output} is not a file in a folder that exists: create the folder first")
    except (OSError, ValueError) as error:
        raise ConfigError(f"--output {args.output} cannot be written: {error}") from None
