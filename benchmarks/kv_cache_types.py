"""What a KV cache type costs in accuracy: perplexity of a text, and a needle in a haystack found or not.

    python -m benchmarks.kv_cache_types [--model smollm2] [--tokens 8000] [--depths 5] [--types bfloat16,fp8,int8]

The haystack is the project's own documentation, with one sentence about a number at some depth of it; the answer must
have the number. A type with a + behind it has calibrated scales (`--calculate-kv-scales`), which int8 always has here.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

from octavo import LLM, SamplingParams
from octavo.observe.machine import cpu_name
from octavo.text.tokenizer import Tokenizer

TYPES = "float32,bfloat16,fp8,fp8+,int8"
NUMBER = "7391"
NEEDLE = f" The secret number of the lighthouse is {NUMBER}. Remember it."
QUESTION = "\n\nQuestion: what is the secret number of the lighthouse?\nAnswer: The secret number of the lighthouse is"
DOCS = Path(__file__).parents[1] / "docs"
MEASURED_TOKENS = 2000  # of the perplexity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--tokens", type=int, default=8000, help="of the haystack")
    parser.add_argument("--depths", type=int, default=5)
    parser.add_argument("--types", default=TYPES)
    args = parser.parse_args()
    print(f"{cpu_name()}, {args.model}: perplexity of {MEASURED_TOKENS} tokens, needles in {args.tokens} tokens")
    for name in args.types.split(","):
        dtype = name.removesuffix("+")
        options = {"kv_cache_dtype": dtype, "calculate_kv_scales": name != dtype or dtype == "int8"}
        begun = time.perf_counter()
        with LLM(args.model, backend=args.backend, max_model_len=args.tokens + 100, **options) as llm:
            given = (perplexity(llm), found_needles(llm, args.tokens, args.depths))
            cache = dict(llm.card)["KV cache"].rpartition(" as ")[2]
        seconds = time.perf_counter() - begun
        print(f"{cache:42} perplexity {given[0]:.3f}, found {given[1]} of {args.depths}, {seconds:.0f} s", flush=True)


def perplexity(llm: LLM) -> float:
    tokens = haystack(llm.get_tokenizer(), MEASURED_TOKENS)
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    (output,) = llm.generate([tokens], params, use_tqdm=False)
    assert output.prompt_logprobs is not None, "they were asked for"
    told = [next(iter(each.values())).logprob for each in output.prompt_logprobs[1:] if each]
    return math.exp(-sum(told) / len(told))


def found_needles(llm: LLM, num_tokens: int, num_depths: int) -> int:
    """How many of the needles, from the haystack's begin to its end, the answers have."""
    tokenizer = llm.get_tokenizer()
    needle, question = tokenizer.encode(NEEDLE), tokenizer.encode(QUESTION)
    hay = haystack(tokenizer, num_tokens - len(needle) - len(question))
    places = [place * len(hay) // max(1, num_depths - 1) for place in range(num_depths)]
    prompts = [[*hay[:place], *needle, *hay[place:], *question] for place in places]
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)
    return sum(NUMBER in output.outputs[0].text for output in outputs)


def haystack(tokenizer: Tokenizer, num_tokens: int) -> list[int]:
    pages = [DOCS / name for name in ("life-of-a-request.md", "server.md", "python.md", "processes.md", "sampling.md")]
    tokens = tokenizer.encode("\n".join(page.read_text() for page in pages))
    assert len(tokens) >= num_tokens, f"the pages have {len(tokens)} tokens"
    return tokens[:num_tokens]


if __name__ == "__main__":
    main()
