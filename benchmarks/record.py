"""Measure the README's table on this machine; results go, dated, into benchmarks/results/.

    python benchmarks/record.py [--model smollm2] [--dtype auto] [--with-hf] [--peer NAME=COMMAND ...]

Each cell is one run of `octavo bench throughput` in a separate process, which starts as cold as a user's. Cells are
measured in rounds and the median is kept, because a machine's speed drifts. A peer's command is run in the same rounds
and prints a JSON object: cell -> tokens per second (see peer_llama_cpp.py).
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from octavo.env import cpu_isa

RESULTS = Path(__file__).parent / "results"

Rates = dict[str, list[float]]  # cell -> tokens a second, a round each

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
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--with-hf", action="store_true", help="measure transformers too, once")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND", help="measure a peer too")
    args = parser.parse_args()
    peers = dict(peer.split("=", 1) for peer in args.peer)
    rates: dict[str, Rates] = {name: {cell: [] for cell in CELLS} for name in ("octavo", *peers)}
    for _ in range(args.rounds):
        machine = measure(["--model", args.model, "--dtype", args.dtype], rates["octavo"])
        for name, command in peers.items():
            measure_peer(command, rates[name])
    if args.with_hf:
        rates["transformers"] = {cell: [] for cell in CELLS}
        measure(["--model", args.model, "--dtype", args.dtype, "--backend", "hf"], rates["transformers"])
    write(f"{args.model.replace('/', '-')}-{args.dtype}", machine, rates, args.rounds)


def measure(flags: list[str], rates: Rates) -> dict[str, Any]:
    """Run one round and add every cell's rate. Returns the machine's description."""
    for cell, (cell_flags, rate) in CELLS.items():
        result = run_once([*flags, *cell_flags])
        rates[cell].append(result["results"][0][rate])
    machine: dict[str, Any] = result["machine"]
    return machine


def measure_peer(command: str, rates: Rates) -> None:
    printed = subprocess.run(shlex.split(command), check=True, stdout=subprocess.PIPE, text=True).stdout
    for cell, rate in json.loads(printed).items():
        rates[cell].append(rate)


def run_once(flags: list[str]) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", "octavo", "bench", "throughput", *flags, "--output-json", file.name]
        subprocess.run(command, check=True)
        result: dict[str, Any] = json.load(file)
    return result


def write(name: str, machine: dict[str, Any], rates: dict[str, Rates], rounds: int) -> None:
    """Write a table for people and a JSON file of every run."""
    date, isa = time.strftime("%Y-%m-%d"), cpu_isa()
    rows = [
        f"# {name} on {machine['cpu']}, {machine['cores']} cores, {date}",
        "",
        f"`{'' if isa == 'native' else f'OCTAVO_CPU_ISA={isa} '}python {shlex.join(sys.argv)}`",
        "",
        f"Octavo {machine['octavo']}, kernels built for {isa}, Python {machine['python']}; the machine has "
        f"{', '.join(machine['features'])}. Tokens per second: the median of {rounds} rounds, "
        "lowest to highest in brackets.",
        "",
        "| engine | " + " | ".join(CELLS) + " |",
        "|---" * (len(CELLS) + 1) + "|",
    ]
    for engine, cells in rates.items():
        rows.append(f"| {engine} | " + " | ".join(map(cell_text, cells.values())) + " |")
    RESULTS.mkdir(exist_ok=True)
    stem = f"{date}-{name}-{isa}"
    (RESULTS / f"{stem}.md").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (RESULTS / f"{stem}.json").write_text(json.dumps({"machine": machine, "rates": rates}, indent=1), encoding="utf-8")
    print("\n".join(rows))


def cell_text(rates: list[float]) -> str:
    if not rates:
        return ""
    return f"{statistics.median(rates):,.1f} [{min(rates):,.1f}-{max(rates):,.1f}]"


if __name__ == "__main__":
    main()
