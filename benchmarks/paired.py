"""Compares the speed of two trees of Octavo in alternating calls, for machines whose speed drifts.

    git worktree add ../before COMMIT
    python benchmarks/paired.py ../before . [--model smollm2] [--rounds 9] [--set OPTION=VALUE] [--cells "one stream"]

Each tree's engine runs in a separate process with that tree first on its path. Both stay loaded; calls alternate, and
so does the order in a pair. It prints each tree's median, and the median of the pairs' ratios. `--set` gives the second
engine another option than the first: with `. .`, two ways to run one tree are compared.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

#: prompt lengths, and new tokens for each
CELLS: dict[str, tuple[list[int], int]] = {
    "one stream": ([16], 128),
    "prefill of 512": ([512], 1),
    "16 at once": ([96] * 16, 48),
    "64 at once": ([32] * 64, 24),
}
#: arguments: the model, and more options as JSON; reads a line "new tokens, then prompt lengths", answers with seconds
_CHILD = """
import json, sys, time
from octavo import LLM, SamplingParams
options = json.loads(sys.argv[2])
llm = LLM(sys.argv[1], max_model_len=1024, num_gpu_blocks_override=3000, enable_prefix_caching=False, **options)
print("ready", flush=True)
for line in sys.stdin:
    output_len, *lens = map(int, line.split())
    params = SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True)
    prompts = [list(range(100 + i, 100 + i + length)) for i, length in enumerate(lens)]
    begin = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    print(time.perf_counter() - begin, flush=True)
"""


class Tree:
    """An engine of one tree, loaded."""

    def __init__(self, folder: Path, model: str, options: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, model, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(folder.resolve())},
        )
        if self._read() != "ready":
            sys.exit(f"no engine started in {folder}; its output is above")

    def seconds(self, lens: list[int], output_len: int) -> float:
        assert self._process.stdin is not None, "it was opened as a pipe"
        self._process.stdin.write(" ".join(map(str, (output_len, *lens))) + "\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None, "it was opened as a pipe"
        return self._process.stdout.readline().strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=[*CELLS], metavar="CELL")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="of the second engine alone")
    args = parser.parse_args()
    options = dict(map(_setting, args.set))
    trees = [Tree(args.before, args.model, {}), Tree(args.after, args.model, options)]
    for name, (lens, output_len) in [(name, CELLS[name]) for name in args.cells]:
        taken: list[list[float]] = [[], []]
        for turn in range(args.rounds + 1):  # the first is warm-up
            for which in (0, 1) if turn % 2 else (1, 0):
                taken[which].append(trees[which].seconds(lens, output_len))
        before, after = (one[1:] for one in taken)
        ratio = statistics.median(a / b for a, b in zip(before, after, strict=True))
        medians = "   ".join(
            f"{which} {statistics.median(times) * 1e3:8.1f} ms"
            for which, times in (("before", before), ("after", after))
        )
        print(f"{name:15s} {medians}   speed after/before {ratio:.3f}", flush=True)
    for tree in trees:
        tree.close()


def _setting(text: str) -> tuple[str, Any]:
    """distributed_executor_backend="mp", tensor_parallel_size=2."""
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        sys.exit(f"--set {text}: write OPTION=VALUE, the value as in Python, a text with quotes")


if __name__ == "__main__":
    main()
