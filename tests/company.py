"""Is a request's answer the same, to the bit of every logit, whatever else its engine computes?

Tests of the CPU and of a GPU share this. An engine made with logprobs_mode="raw_logits" tells the logits of each step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo import LLM, SamplingParams
from octavo.observe.events import Preempted
from octavo.outputs import RequestOutput

MakeEngine = Callable[..., LLM]  # from more options of LLM
ENGINE: dict[str, Any] = {
    "skip_tokenizer_init": True, "logprobs_mode": "raw_logits", "max_logprobs": -1, "check_invariants": True,
}  # fmt: skip
ALL_LOGITS = SamplingParams(temperature=0.9, seed=11, logprobs=-1, max_tokens=6, ignore_eos=True, detokenize=False)
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0}, {"top_p": 0.9}, {"top_k": 3, "presence_penalty": 0.5}, {"max_tokens": 2}
]  # fmt: skip


@dataclass(frozen=True)
class Company:
    """What a request is asked beside. budgets: token budgets, which cut its prompt. kept: how many of its tokens are
    part of a later prompt. few_blocks: a pool in which another prompt leaves it just enough, until that one's answer
    begins; None for a model whose layers differ in what they keep. kinds: the parameters of the others, in turn."""

    length: int  # of its prompt
    batches: tuple[int, ...]
    budgets: tuple[int, ...]
    kept: tuple[int, ...]
    few_blocks: int | None
    kinds: tuple[dict[str, Any], ...] = tuple(KINDS)

    def check(self, make: MakeEngine, told: SamplingParams = ALL_LOGITS) -> None:
        prompt = prompt_of(0, self.length)
        with make() as llm:
            alone = answer(llm.generate([prompt], told, use_tqdm=False)[0])
            tokens = [token for token, _ in alone]
            for kept in self.kept:  # the keys and values of these tokens are those of decodes
                params = told.replace(max_tokens=len(tokens) - kept)
                again = llm.generate(*self._beside(prompt + tokens[:kept], 2, params), use_tqdm=False)[1]
                assert again.num_cached_tokens > 0
                assert answer(again) == alone[kept:], f"after a hit of {again.num_cached_tokens} tokens"
        assert len({tuple(sorted(logits.items())) for _, logits in alone}) == len(alone), "each step has other logits"
        with make(enable_prefix_caching=False) as llm:
            for size in self.batches:
                outputs = llm.generate(*self._beside(prompt, size, told), use_tqdm=False)
                assert answer(outputs[size // 2]) == alone, f"in a batch of {size}"
        for budget in self.budgets:
            with make(enable_prefix_caching=False, max_num_batched_tokens=budget) as llm:
                outputs = llm.generate(*self._beside(prompt, 3, told), use_tqdm=False)
                assert answer(outputs[1]) == alone, f"in chunks of up to {budget} tokens"
        if self.few_blocks is None:
            return
        tight = {"num_gpu_blocks_override": self.few_blocks, "schedule_conservativeness": 0.0}
        other = prompt_of(5, 16 * (self.few_blocks - 1 - (self.length + len(tokens) + 15) // 16))
        with make(enable_prefix_caching=False, **tight) as llm:
            outputs = llm.generate([other, prompt], [told.replace(logprobs=None), told], use_tqdm=False)
            assert any(isinstance(event, Preempted) for event in llm.events), "there are blocks for both"
            assert answer(outputs[1]) == alone, "after a preemption"

    def _beside(
        self, prompt: list[int], size: int, told: SamplingParams
    ) -> tuple[list[list[int]], list[SamplingParams]]:
        """A batch of this size with the prompt in its middle, among others of other lengths and other parameters."""
        others = [prompt_of(seed, 1 + seed * 7 % 40) for seed in range(1, size)]
        kinds = [self.kinds[seed % len(self.kinds)] for seed in range(1, size)]
        asked = [told.replace(seed=seed, logprobs=None, **kind) for seed, kind in enumerate(kinds)]
        middle = size // 2
        return [*others[:middle], prompt, *others[middle:]], [*asked[:middle], told, *asked[middle:]]


def prompt_of(seed: int, length: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(3, 150, length)]


def answer(output: RequestOutput) -> list[tuple[int, dict[int, float]]]:
    """Each token, and the logits that were told."""
    (one,) = output.outputs
    rows = [{token: logit.logprob for token, logit in row.items()} for row in one.logprobs or []]
    return list(zip(one.token_ids, rows, strict=True))
