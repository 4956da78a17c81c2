"""A soak: thousands of random requests through one engine with too little memory for them, none of which may be lost.

    python -m benchmarks.soak FOLDER_OR_MODEL [--num-requests 20000] [--seed 0] [--blocks 300]

Random prompt and output lengths, samples, temperatures, filters, penalties, stops, seeds and aborts; a few
requests arrive per step. At the end every request has had exactly one last output, every block is free, the counters
agree, and a sample of the seeded requests, run again alone, gives the same tokens in float32, except for draws within
rounding of a boundary.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections import Counter
from typing import Any

from octavo import RequestOutput, SamplingParams
from octavo.engine.assemble import build_engine
from octavo.engine.llm_engine import LLMEngine
from octavo.engine.options import engine_config
from octavo.observe.events import Preempted

MAX_MODEL_LEN = 256
MAX_CLOSE_CALLS = 2  # of 50 requests, about 4,000 draws


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--num-requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--blocks", type=int, default=300)
    parser.add_argument("--num-seqs", type=int, default=128)
    args = parser.parse_args()
    engine = build_engine(
        engine_config(
            model=args.model,
            dtype="float32",
            skip_tokenizer_init=True,
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=args.num_seqs,
            max_logprobs=-1,
            num_gpu_blocks_override=args.blocks,
            schedule_conservativeness=0,  # whoever starts takes any block, so that many are preempted
        )
    )
    preempted: Counter[str] = Counter()
    engine.events.listen(lambda event: preempted.update(["preempted"]) if isinstance(event, Preempted) else None)
    rng = random.Random(args.seed)
    begin = time.perf_counter()
    results = _run(engine, rng, args.num_requests)
    seconds = time.perf_counter() - begin
    assert len(results) == args.num_requests, f"{len(results)} of {args.num_requests} requests were answered"
    stats = engine.core.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_used_blocks) == (0, 0, 0), f"something is left: {stats}"
    num_same, num_close = _repeat_alone(engine, results, rng)
    reasons = Counter(reason for _, _, _, why in results.values() for reason in why)
    num_tokens = sum(len(tokens) for _, _, answer, _ in results.values() for tokens in answer)
    engine.close()
    print(
        f"{args.num_requests} requests, {num_tokens} tokens, {seconds:.1f} s, {preempted['preempted']} preemptions, "
        f"ends {dict(reasons)}, {num_same} repeated alone with the same tokens and {num_close} with others after a "
        "close call, all blocks free"
    )


Result = tuple[list[int], SamplingParams, list[list[int]], list[str | None]]


def _run(engine: LLMEngine, rng: random.Random, num_requests: int) -> dict[str, Result]:
    asked: dict[str, tuple[list[int], SamplingParams]] = {}
    results: dict[str, Result] = {}
    running: set[str] = set()
    while len(results) < num_requests:
        for _ in range(rng.randint(0, 12)):
            if len(asked) < num_requests and len(running) < 600:
                request_id, (prompt, params) = str(len(asked)), _ask(rng)
                engine.add_request(engine.make_request(request_id, prompt, params))
                asked[request_id] = (prompt, params)
                running.add(request_id)
        if running and rng.random() < 0.1:
            engine.abort_request(rng.choice(tuple(running)))
        for output in engine.step():
            if output.finished:
                assert output.request_id not in results, f"{output.request_id} ended twice"
                running.discard(output.request_id)
                answer = [list(one.token_ids) for one in output.outputs]
                reasons = [one.finish_reason for one in output.outputs]
                results[output.request_id] = (*asked[output.request_id], answer, reasons)
    while engine.has_unfinished_requests:
        engine.step()
    return results


def _ask(rng: random.Random) -> tuple[list[int], SamplingParams]:
    options: dict[str, Any] = {
        "n": rng.choice((1, 1, 1, 2, 4)),
        "temperature": rng.choice((0.0, 0.7, 1.0)),
        "max_tokens": rng.randint(1, 120),
        "seed": rng.randrange(1 << 40),
        "detokenize": False,
        "ignore_eos": rng.random() < 0.5,
        "stop_token_ids": [rng.randrange(3, 150) for _ in range(rng.choice((0, 0, 2)))],
    }
    for name, value in (("top_p", 0.9), ("top_k", 20), ("min_p", 0.05), ("frequency_penalty", 0.3), ("logprobs", 2)):
        if rng.random() < 0.1:
            options[name] = value
    return [rng.randrange(3, 150) for _ in range(rng.randint(1, 130))], SamplingParams(**options)


def _repeat_alone(engine: LLMEngine, results: dict[str, Result], rng: random.Random) -> tuple[int, int]:
    """Run requests that were not aborted again, one by one: how many gave the same tokens, and how many did so up to a
    draw within rounding of the boundary between two tokens."""
    whole = [key for key, (_, _, _, reasons) in results.items() if "abort" not in reasons]
    chosen = rng.sample(whole, min(50, len(whole)))
    num_close = 0
    for key in chosen:
        prompt, params, answer, _ = results[key]
        again = [list(one.token_ids) for one in _ask_alone(engine, f"again-{key}", prompt, params).outputs]
        differing = [(one, other) for one, other in zip(answer, again, strict=True) if one != other]
        for one, other in differing:
            assert _is_close_call(engine, prompt, params, one, other), f"request {key} alone gives {other}, not {one}"
        num_close += bool(differing)
    assert num_close <= MAX_CLOSE_CALLS, f"{num_close} of {len(chosen)} gave other tokens alone: rounding is rarer"
    return len(chosen) - num_close, num_close


def _ask_alone(engine: LLMEngine, key: str, prompt: list[int], params: SamplingParams) -> RequestOutput:
    engine.add_request(engine.make_request(key, prompt, params))
    last = None
    while engine.has_unfinished_requests:
        last = next((output for output in engine.step() if output.finished), last)
    assert last is not None, "a request alone ends"
    return last


def _is_close_call(
    engine: LLMEngine, prompt: list[int], params: SamplingParams, one: list[int], other: list[int]
) -> bool:
    """Whether the first token that differs may be a matter of rounding. Greedy: both are as likely. A draw is the
    first token in id order whose cumulative mass exceeds a random number: almost no mass lies between the two."""
    place = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    low, high = sorted((one[place], other[place]))
    ask = SamplingParams(max_tokens=1, logprobs=-1, detokenize=False, ignore_eos=True)
    (sequence,) = _ask_alone(engine, f"why-{place}-{low}-{high}", prompt + one[:place], ask).outputs
    assert sequence.logprobs is not None, "they were asked for"
    found = {token: entry.logprob for token, entry in sequence.logprobs[0].items()}
    if params.temperature == 0:
        return abs(found[low] - found[high]) < 1e-4
    mass = {token: math.exp(logprob / params.temperature) for token, logprob in found.items()}
    return sum(mass[token] for token in range(low + 1, high)) < 1e-4 * sum(mass.values())


if __name__ == "__main__":
    main()
