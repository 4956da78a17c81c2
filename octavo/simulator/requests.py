"""From a trace's lengths to the engine's requests: token ids that are shared exactly where the trace says so."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import lru_cache

from octavo.request import Request
from octavo.sampling_params import SamplingParams
from octavo.simulator.engine import END, FIRST_PROMPT_TOKEN
from octavo.simulator.trace import TraceRequest

Fresh = Callable[[int], list[int]]
_STOPS = frozenset([END])


def never_repeated() -> Fresh:
    """Ids that no other prompt has, for an engine without a vocabulary."""
    next_id = FIRST_PROMPT_TOKEN

    def fresh(length: int) -> list[int]:
        nonlocal next_id
        begin, next_id = next_id, next_id + length
        return list(range(begin, next_id))

    return fresh


def drawn_below(vocab_size: int, seed: int) -> Fresh:
    """Random ids of a vocabulary, without its lowest tenth, where special tokens are."""
    rng, ids = random.Random(seed), range(vocab_size // 10, vocab_size)
    return lambda length: rng.choices(ids, k=length)


class RequestMaker:
    """Owner of the texts that prompts share: prefixes by name."""

    def __init__(self, fresh: Fresh) -> None:
        self._fresh = fresh
        self._prefixes: dict[str, list[int]] = {}
        self._num_made = 0

    def request(self, asked: TraceRequest, arrival: float, history: Sequence[int]) -> Request:
        """history: the tokens of its session so far."""
        number, self._num_made = self._num_made, self._num_made + 1
        limit = asked.output_len if asked.max_tokens is None else asked.max_tokens
        may_stop = limit > asked.output_len
        return Request(
            request_id=f"{number}",
            prompt_token_ids=self._prompt(asked, history),
            sampling_params=_params(asked.n, limit, not may_stop),
            seed=asked.output_len,
            arrival_time=arrival,
            max_output_tokens=limit,
            priority=asked.priority,
            eos_token_ids=_STOPS,
            stop_token_ids=_STOPS if may_stop else frozenset(),
        )

    def _prompt(self, asked: TraceRequest, history: Sequence[int]) -> list[int]:
        if history:
            begin = list(history[: asked.prompt_len])
        elif asked.prefix is not None:
            begin = self._prefix(asked.prefix, asked.prefix_len)
        else:
            return self._fresh(asked.prompt_len)
        return begin + self._fresh(asked.prompt_len - len(begin))

    def _prefix(self, name: str, length: int) -> list[int]:
        known = self._prefixes.setdefault(name, [])
        if len(known) < length:
            known += self._fresh(length - len(known))
        return known[:length]


@lru_cache(maxsize=8192)
def _params(n: int, max_tokens: int, ignore_eos: bool) -> SamplingParams:
    return SamplingParams(n=n, max_tokens=max_tokens, ignore_eos=ignore_eos, detokenize=False)
