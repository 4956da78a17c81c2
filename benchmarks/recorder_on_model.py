"""The event log's share of a real step: how long decode steps of many sequences take without it, in memory, in a file.

    python -m benchmarks.recorder_on_model examples/configs/qwen3-0.6b --engine load_format=dummy max_model_len=2048
    python -m benchmarks.recorder_on_model smollm2 --num-seqs 32 --num-steps 100 --engine num_threads=1

The modes take turns, an engine each, so that a machine that becomes slower slows all of them. Time is from step to
step: what is done while a device computes costs nothing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from octavo.engine.assemble import build_engine
from octavo.engine.core import EngineCore
from octavo.engine.llm_engine import LLMEngine
from octavo.engine.options import engine_config
from octavo.request import Request
from octavo.sampling_params import SamplingParams

PROMPT_LEN = 32


def main() -> None:
    args = _arguments()
    options = dict(one.split("=", 1) for one in args.engine)
    options |= {"skip_tokenizer_init": True, "max_num_seqs": args.num_seqs}
    rounds: dict[str, list[float]] = {"off": [], "memory": [], "file": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            for mode in rounds:
                log = {"event_log_size": 0 if mode == "off" else 65_536}
                record = {"record": str(Path(folder) / f"{number}.olog")} if mode == "file" else {}
                engine = build_engine(engine_config(model=args.model, **options, **log, **record))
                rounds[mode].append(decode(engine, args.num_seqs, args.num_steps))
                engine.close()
    plain = statistics.median(rounds["off"])
    for mode, taken in rounds.items():
        middle = statistics.median(taken)
        print(f"{mode:<6} {middle * 1e6:8.1f} µs a step, {middle / plain - 1:+.2%} of one without a log")


def decode(engine: LLMEngine, num_seqs: int, num_steps: int) -> float:
    """The median seconds of a step in which all sequences decode."""
    core = engine.core
    assert isinstance(core, EngineCore)
    params = SamplingParams(max_tokens=num_steps + PROMPT_LEN, ignore_eos=True, detokenize=False)
    for number in range(num_seqs):
        prompt = [3 + (number * 7 + place) % 1000 for place in range(PROMPT_LEN)]
        core.add_request(Request(f"{number}", prompt, params, number, 0.0, num_steps + PROMPT_LEN))
    taken = []
    while core.has_unfinished:
        begin = time.perf_counter()
        updates = core.step()
        if len(updates) == num_seqs:
            taken.append(time.perf_counter() - begin)
    return statistics.median(taken[len(taken) // 4 :])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--num-seqs", type=int, default=256)
    parser.add_argument("--num-steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3, help="engines that are started in each mode")
    parser.add_argument("--engine", nargs="*", default=[], metavar="NAME=VALUE", help="options of the engine")
    return parser.parse_args()


if __name__ == "__main__":
    main()
