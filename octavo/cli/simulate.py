"""octavo simulate: how engines would serve a load: the real scheduler and cache, with steps in virtual time.

octavo bench cost smollm2 -o table.json
octavo simulate --cost table.json --request-rate 2
octavo simulate --cost table.json --request-rate 2 --compare block_size=16,32 --compare max_num_batched_tokens=512,2048
octavo simulate --cost step_ms=6,token_us=20,context_ns=40 --num-gpu-blocks-override 20000 --trace trace.jsonl
octavo simulate --cost table.json --data-parallel-size 100 --compare data_parallel_routing=prefix,work,turns
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.cli.flags import add_flags, check_not_read
from octavo.cli.parser import CommandParser
from octavo.cli.simulate_scenarios import Asked, add_scenario_flags, asked_scenarios
from octavo.cli.terminal_text import beside_one_another
from octavo.cli.written_files import check_folder, check_plot, write_json, write_plot
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from octavo.simulator.report import Result

COMMON = (
    *("--cost", "--compare", "--trace", "--dataset-name", "--num-prompts", "--request-rate", "--output-json", "--plot"),
    "--record",
    *("--block-size", "--num-gpu-blocks-override", "--max-num-seqs", "--max-num-batched-tokens"),
    *("--scheduling-policy", "--data-parallel-size"),
)
_RESULTS = {
    "output-json": ("FILE", None, "write the results as JSON"),
    "plot": ("FILE", None, "draw the latencies of all scenarios; .html, .svg, or .png, which needs the extra plot"),
    "record": ("FILE", None, "write the event log of a single scenario, for octavo viz"),
    "jobs": ("N", None, "scenarios that run at the same time; default: one a core"),
}


def add_arguments(parser: CommandParser) -> None:
    add_scenario_flags(parser)
    add_flags(parser.add_argument_group("results"), _RESULTS)


def run(args: argparse.Namespace) -> int:
    _check(args)
    from octavo.simulator.report import HEADINGS
    from octavo.simulator.scenario import run_all

    asked = asked_scenarios(args)
    if args.record is not None and len(asked.scenarios) > 1:
        raise ConfigError(f"--record {args.record} is for one scenario, and --compare asks for {len(asked.scenarios)}")
    if args.record is not None and (num_engines := asked.scenarios[0].num_engines) > 1:
        raise ConfigError(
            f"--record {args.record} is for one engine, and --data-parallel-size asks for {num_engines}: drop one"
        )
    begin = time.perf_counter()
    results = run_all(asked.scenarios, args.jobs, args.record)
    rows = [[*values, *one.cells()] for values, one in zip(asked.values, results, strict=True)]
    print(*beside_one_another([[*asked.names, *HEADINGS], *rows]), "latencies in ms", sep="\n", flush=True)
    _tell(results, time.perf_counter() - begin)
    _keep(args, asked, results)
    return 1 if any(one.num_refused for one in results) else 0


def _check(args: argparse.Namespace) -> None:
    if args.cost is None:
        raise ConfigError(
            "--cost is needed: a table that `octavo bench cost MODEL -o table.json` measures, or numbers such as "
            "step_ms=6,token_us=20,context_ns=40"
        )
    if args.jobs is not None and not 1 <= args.jobs <= 1024:
        raise ConfigError(f"--jobs is {args.jobs}, allowed is 1 to 1024")
    for flag, path in (("--output-json", args.output_json), ("--plot", args.plot), ("--record", args.record)):
        check_not_read(flag, path, {"--cost": args.cost, "--trace": args.trace})
        check_folder(flag, Path(path or ".").parent)
    check_plot(args.plot)


def _tell(results: list[Result], seconds: float) -> None:
    """What the table leaves out, on standard error."""
    num_requests = sum(one.num_requests for one in results)
    print(f"octavo: {num_requests:,} requests in {seconds:,.1f} s", file=sys.stderr)
    if cut := sum(one.num_cut for one in results):
        print(f"octavo: the context length cut {cut:,} answers short: raise --max-model-len", file=sys.stderr)
    for refusal in dict.fromkeys(one.refusal for one in results if one.num_refused):
        count = sum(one.num_refused for one in results if one.refusal == refusal)
        print(f"octavo: {count:,} requests were refused, the first because {refusal}", file=sys.stderr)


def _keep(args: argparse.Namespace, asked: Asked, results: list[Result]) -> None:
    settings = [dict(zip(asked.names, values, strict=True)) for values in asked.values]
    if args.output_json:
        records = [{**changed, **one.record()} for changed, one in zip(settings, results, strict=True)]
        write_json(args.output_json, {"date": time.strftime("%Y-%m-%d"), "cost": args.cost, "results": records})
    if args.plot:
        from octavo.simulator.plot import NOTE, draw
        from octavo.simulator.report import HEADINGS

        labels = [", ".join(f"{name} {value}" for name, value in changed.items()) or "as asked" for changed in settings]
        rows = [["scenario", *HEADINGS], *([label, *one.cells()] for label, one in zip(labels, results, strict=True))]
        write_plot(args.plot, draw(labels, results, f"Simulated with {Path(args.cost).name}"), rows, NOTE)
