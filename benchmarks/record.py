"""Measure the README's table on this machine; results go, dated, into benchmarks/results/.

    python benchmarks/record.py [--model smollm2] [--with-hf]

Each cell is one run of `octavo bench throughput` in a process of its own, so that nothing is warm that would not be
warm for a user. Cells are measured in rounds and the median is kept, because a machine's speed drifts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

#: name -> flags of `octavo bench throughput`, and which rate the table shows
CELLS: dict[str, tuple[list[str], str]] = {
    "one stream": (["--input-len", "16", "--output-len", "256", "--num-prompts", "1"], "output_tokens_per_second"),
    "prefill of 512": (["--input-len", "512", "--output-len", "1", "--num-prompts", "4"], "tokens_per_second"),
    "16 at once": (["--dataset-name", "ragged16", "--num-prompts", "16"], "output_tokens_per_second"),
    "64 at once": (["--dataset-name", "ragged16", "--num-prompts", "64"], "output_tokens_per_second"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--with-hf", action="store_true", help="measure transformers too, once")
    args = parser.parse_args()
    results = {"octavo": measure(args.model, "octavo", args.rounds)}
    if args.with_hf:
        results["hf"] = measure(args.model, "hf", 1)
    write(args.model, results)


def measure(model: str, backend: str, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """cell -> the results of every round."""
    found: dict[str, list[dict[str, Any]]] = {cell: [] for cell in CELLS}
    for _ in range(rounds):
        for cell, (flags, _) in CELLS.items():
            found[cell].append(run_once(["--model", model, "--backend", backend, *flags]))
    return found


def run_once(flags: list[str]) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", "octavo", "bench", "throughput", *flags, "--output-json", file.name]
        subprocess.run(command, check=True)
        result: dict[str, Any] = json.load(file)
    return result


def write(model: str, results: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """A table for people and, beside it, every run for programs."""
    machine = next(iter(results["octavo"].values()))[0]["machine"]
    date = time.strftime("%Y-%m-%d")
    rows = [
        f"# {model} on {machine['cpu']}, {machine['cores']} cores, {date}",
        "",
        f"Octavo {machine['octavo']}, Python {machine['python']}, {' '.join(machine['features'])}. "
        "Tokens a second, the median of all rounds, lowest to highest in brackets.",
        "",
        "| engine | " + " | ".join(CELLS) + " |",
        "|---" * (len(CELLS) + 1) + "|",
    ]
    for engine, cells in results.items():
        rows.append(f"| {engine} | " + " | ".join(cell_text(cell, runs) for cell, runs in cells.items()) + " |")
    RESULTS.mkdir(exist_ok=True)
    stem = f"{date}-{model.replace('/', '-')}"
    (RESULTS / f"{stem}.md").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (RESULTS / f"{stem}.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    print("\n".join(rows))


def cell_text(cell: str, runs: list[dict[str, Any]]) -> str:
    rates = sorted(run["results"][0][CELLS[cell][1]] for run in runs)
    return f"{statistics.median(rates):,.1f} [{rates[0]:,.1f}-{rates[-1]:,.1f}]"


if __name__ == "__main__":
    main()
