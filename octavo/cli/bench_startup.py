"""octavo bench startup: seconds from a fresh process to a ready engine and its first token.

cold    with an empty kernel cache: everything is built
warm    with the kernels of the last run

octavo bench startup --model smollm2
octavo bench startup --model FOLDER --load-format dummy --num-iters-cold 0
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from octavo.cli.flags import add_engine_flags, add_flags, check_counts, check_not_read, engine_options
from octavo.cli.parser import CommandParser
from octavo.cli.written_files import write_json
from octavo.errors import OctavoError

COMMON = ("--model", "--num-iters-cold", "--num-iters-warm", "--output-json", "--load-format", "--backend")
_FLAGS = {
    "num-iters-cold": ("N", 1, "runs with an empty kernel cache"),
    "num-iters-warm": ("N", 5, "runs with kernels already built"),
    "output-json": ("FILE", None, "write the result as JSON"),
}

#: for the fresh process, which gets the options as its argument and prints the result last
_SCRIPT = """
import json, sys, time
begin = time.perf_counter()
from octavo import LLM, SamplingParams
imported = time.perf_counter()
with LLM(**json.loads(sys.argv[1])) as llm:
    ready = time.perf_counter()
    llm.generate([[1, 2, 3]], SamplingParams(max_tokens=1), use_tqdm=False)
    answered = time.perf_counter()
print(json.dumps({"import": imported - begin, "ready": ready - begin, "first_token": answered - begin}))
"""


def add_arguments(parser: CommandParser) -> None:
    parser.takes_model(default="smollm2")
    add_flags(parser, _FLAGS)
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> int:
    check_not_read("--output-json", args.output_json, {"--model": args.model})
    check_counts(args, "num_iters_cold", "num_iters_warm", least=0)
    options = {"model": args.model, **engine_options(args)}
    runs = {
        "cold": [start_once(options, is_cold=True) for _ in range(args.num_iters_cold)],
        "warm": [start_once(options, is_cold=False) for _ in range(args.num_iters_warm)],
    }
    print(f"{'seconds, medians':<18}{'import':>10}{'ready':>10}{'first token':>13}{'process':>10}")
    for name, times in runs.items():
        if times:
            medians = {key: statistics.median(one[key] for one in times) for key in times[0]}
            print(
                f"{name:<18}{medians['import']:>10.3f}{medians['ready']:>10.2f}"
                f"{medians['first_token']:>13.2f}{medians['process']:>10.2f}"
            )
    if args.output_json:
        write_json(args.output_json, runs)
    return 0


def start_once(options: Mapping[str, Any], is_cold: bool) -> dict[str, float]:
    """Seconds from the first line of Python to: octavo imported, engine ready, first token. "process" is the whole
    process, with interpreter start and exit. Raises OctavoError with the process's last line if it fails."""
    with tempfile.TemporaryDirectory() as empty:
        environment = os.environ | ({"OCTAVO_CACHE_DIR": empty, "TRITON_CACHE_DIR": empty} if is_cold else {})
        begin = time.perf_counter()
        command = [sys.executable, "-c", _SCRIPT, json.dumps(options)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - begin
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}, with no message"]
        raise OctavoError(f"the engine did not start: {lines[-1]}")
    times: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return times | {"process": seconds}
