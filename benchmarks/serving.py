"""A server under load: seconds until it is healthy, then one row per load.

    python -m benchmarks.serving examples/configs/qwen3-0.6b --loads inf:800,16:80,16:240,inf:800
    python -m benchmarks.serving examples/configs/qwen3-0.6b --loads "" --serve "--api-server-count 1"

A load is RATE:NUMBER, requests per second (inf: all at once) and their number, as `octavo bench serve` sends them. The
first loads on a machine compile kernels and capture graphs: give them twice. The weights are random. A folder without a
tokenizer gets one with a word per id, decoded byte by byte, so that the front ends have text to produce.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

PORT = 8123
URL = f"http://127.0.0.1:{PORT}"
START_S, RUN_S, STOP_S = 300, 600, 30


def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / args.model.name
        shutil.copytree(args.model, folder)
        if not (folder / "tokenizer.json").exists():
            make_tokenizer(folder)
        with serving(folder, args.serve.split()) as seconds:
            print(f"{args.model.name}: healthy after {seconds:.2f} s", flush=True)
            for number, load in enumerate(filter(None, args.loads.split(","))):
                rate, _, count = load.partition(":")
                flags = ["--request-rate", rate, "--num-prompts", count, "--seed", str(number), *args.bench.split()]
                print(row(load, measure(flags, Path(scratch) / f"{number}.json")), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a folder with a config.json")
    parser.add_argument("--loads", default="inf:800,16:80,16:240,inf:800")
    parser.add_argument("--serve", default="--max-model-len 16384 --api-server-count 4", help="flags of octavo serve")
    parser.add_argument(
        "--bench",
        default="--dataset-name random --random-input-len 512 --random-output-len 128 --num-client-procs 4",
        help="flags of octavo bench serve",
    )
    return parser.parse_args()


def make_tokenizer(folder: Path) -> None:
    """One word of letters for every id; two of three begin with a space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    def word(index: int) -> str:
        letters, rest = "", index + 26**3
        while rest:
            rest, letter = divmod(rest, 26)
            letters = chr(ord("a") + letter) + letters
        return ("Ġ" if index % 3 else "") + letters

    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    tokenizer = Tokenizer(models.BPE(vocab={word(index): index for index in range(size)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


@contextlib.contextmanager
def serving(folder: Path, flags: list[str]) -> Iterator[float]:
    """A server while the block runs; yields the seconds until it was healthy."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "octavo", "serve", str(folder), "--load-format", "dummy", "--port", str(PORT)]
    server = subprocess.Popen([*command, *flags])
    try:
        while not _is_healthy():
            if server.poll() is not None or time.perf_counter() - begin > START_S:
                raise SystemExit("the server did not become healthy: see its output above")
            time.sleep(0.02)
        yield time.perf_counter() - begin
    finally:
        server.terminate()
        server.wait(STOP_S)


def _is_healthy() -> bool:
    try:
        with urllib.request.urlopen(f"{URL}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def measure(flags: list[str], file: Path) -> dict[str, float]:
    """The results of one `octavo bench serve`."""
    command = [sys.executable, "-m", "octavo", "bench", "serve", "--port", str(PORT), "--disable-tqdm", *flags]
    command += ["--percentile-metrics", "ttft,tpot,itl", "--save-result", "--result-filename", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, float] = json.loads(file.read_text())
    return result


def row(load: str, result: dict[str, float]) -> str:
    latencies = ", ".join(
        f"{name.upper()} p50 {result[f'median_{name}_ms']:.2f} p99 {result[f'p99_{name}_ms']:.1f} ms"
        for name in ("ttft", "tpot", "itl")
    )
    return (
        f"{load:>10}: {result['completed']:.0f} done, {result['failed']:.0f} failed, "
        f"{result['request_throughput']:.1f} req/s, {result['output_throughput']:,.0f} out tok/s; {latencies}"
    )


if __name__ == "__main__":
    main()
