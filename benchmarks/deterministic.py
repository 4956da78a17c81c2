"""What `deterministic` costs on a GPU: decode steps and prompts with random weights, with and without it.

    python -m benchmarks.deterministic qwen3-0.6b [--batches 1 32 256] [--context 512]

A model is a folder of examples/configs. A decode step's time is that of 64 more tokens for every sequence, over 64: the
shortest of two turns, after one that compiles kernels and captures graphs.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from octavo import LLM, SamplingParams

MORE_TOKENS = 64
PROMPT_TOKENS, NUM_PROMPTS = 2048, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--context", type=int, default=512, help="tokens of a prompt whose answer is timed")
    args = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {args.model}, contexts of {args.context}")
    plain, fixed = (measure(args.model, args.batches, args.context, deterministic) for deterministic in (False, True))
    print(f"{'':24} {'default':>12} {'deterministic':>14} {'ratio':>7}")
    for what, before in plain.items():
        print(f"{what:24} {before:12.3f} {fixed[what]:14.3f} {fixed[what] / before:7.2f}")


def measure(model: str, batches: list[int], context: int, deterministic: bool) -> dict[str, float]:
    """Milliseconds."""
    with LLM(
        f"examples/configs/{model}", load_format="dummy", skip_tokenizer_init=True, enable_prefix_caching=False,
        max_model_len=max(context + 2 * MORE_TOKENS, PROMPT_TOKENS + 1), deterministic=deterministic,
    ) as llm:  # fmt: skip
        found = {}
        for size in batches:
            short, long = (shortest(llm, size, context, tokens) for tokens in (8, 8 + MORE_TOKENS))
            found[f"decode step of {size}"] = (long - short) / MORE_TOKENS
        found[f"{NUM_PROMPTS} prompts of {PROMPT_TOKENS}"] = shortest(llm, NUM_PROMPTS, PROMPT_TOKENS, 1)
    return found


def shortest(llm: LLM, size: int, context: int, tokens: int) -> float:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(10, 10_000, context).tolist() for _ in range(size)]
    params = SamplingParams(max_tokens=tokens, temperature=1.0, seed=1, ignore_eos=True, detokenize=False)
    turns = []
    for _ in range(3):
        begin = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        turns.append(1e3 * (time.perf_counter() - begin))
    return min(turns[1:])


if __name__ == "__main__":
    main()
