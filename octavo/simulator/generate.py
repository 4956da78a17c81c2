"""Generated traces: an arrival process, length distributions, shared prefixes and conversations, all from a seed.

rate, burstiness     gamma-distributed gaps between arrivals; 1 is a Poisson process, inf the whole at once
burst_size           so many arrive at the same moment
num_prefixes         each prompt begins with one of so many texts of prefix_len tokens
turns, think_time    each conversation has so many turns, with pauses of that mean (exponential) between them
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from octavo.bench.load import arrivals
from octavo.bench.workloads import ALPACA, SHAREGPT
from octavo.errors import ConfigError
from octavo.simulator.trace import MOST_REQUESTS, TraceRequest

DrawLens = Callable[[random.Random], tuple[int, int]]

#: lengths of prompts and answers, as those of the PagedAttention paper's data sets
DATASETS: dict[str, DrawLens] = {"sharegpt": SHAREGPT.draw_lens, "alpaca": ALPACA.draw_lens}
_MOST = {"num_prompts": MOST_REQUESTS, "n": 4096, "turns": 1000, "burst_size": MOST_REQUESTS, "num_priorities": 1000}


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRecipe:
    """dataset: sharegpt, alpaca, or random, which has lengths uniform around input_len and output_len. num_priorities:
    each request has one of the priorities 0, 1, ... max_tokens: the limit that the engine knows, if answers stop before
    it; None: the lengths are known."""

    dataset: str = "sharegpt"
    num_prompts: int = 1000
    request_rate: float = math.inf
    burstiness: float = 1.0
    burst_size: int = 1
    random_input_len: int = 1024
    random_output_len: int = 128
    random_range_ratio: float = 0.0
    num_prefixes: int = 1
    prefix_len: int = 0
    turns: int = 1
    think_time: float = 10.0
    n: int = 1
    num_priorities: int = 1
    max_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        lens = ("random_input_len", "random_output_len", "num_prefixes", "max_tokens")
        for name, most in (_MOST | dict.fromkeys(lens, 1_000_000)).items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise ConfigError(f"{name} is {value}, allowed is 1 to {most:,}")
        if not 0 <= self.prefix_len <= 1_000_000:
            raise ConfigError(f"prefix_len is {self.prefix_len}, allowed is 0 to 1,000,000")
        if not self.request_rate >= 1e-6:
            raise ConfigError(
                f"request_rate is {self.request_rate:g}, allowed is 1e-6 or more, and inf for all at once"
            )
        if not 1e-3 <= self.burstiness <= 1e3:
            raise ConfigError(f"burstiness is {self.burstiness:g}, allowed is 0.001 to 1000; 1 is a Poisson process")
        if not 0.0 <= self.think_time <= 1e6:
            raise ConfigError(f"think_time is {self.think_time:g}, allowed is 0 to 1e6 seconds")
        if not 0.0 <= self.random_range_ratio < 1.0:
            raise ConfigError(f"random_range_ratio is {self.random_range_ratio:g}, allowed is 0 to below 1")
        if self.dataset not in (*DATASETS, "random"):
            raise ConfigError(f"dataset is {self.dataset!r}, allowed are {', '.join(DATASETS)} and random")

    def requests(self) -> Iterator[TraceRequest]:
        """By arrival; a conversation's turns follow its first one. Drawn as they are asked for."""
        rng = random.Random(self.seed)
        draw_lens = DATASETS.get(self.dataset) or self._random_lens
        num_left = self.num_prompts
        for number, at in enumerate(self._arrivals()):
            prefix = f"{rng.randrange(self.num_prefixes)}" if self.prefix_len else None
            priority = rng.randrange(self.num_priorities) if self.num_priorities > 1 else 0
            history, num_turns = self.prefix_len, min(self.turns, num_left)
            for turn in range(num_turns):
                input_len, output_len = draw_lens(rng)
                if self.max_tokens is not None:
                    output_len = min(output_len, self.max_tokens)
                prompt_len = history + input_len
                yield TraceRequest(
                    arrival=at if turn == 0 else None,
                    prompt_len=prompt_len,
                    output_len=output_len,
                    max_tokens=self.max_tokens,
                    n=self.n,
                    priority=priority,
                    prefix=prefix,
                    prefix_len=self.prefix_len,
                    session=f"{number}" if self.turns > 1 else None,
                    gap=rng.expovariate(1 / self.think_time) if turn and self.think_time else 0.0,
                    is_last=turn == num_turns - 1,
                )
                history = prompt_len + output_len
            num_left -= num_turns

    def _arrivals(self) -> Iterator[float]:
        """Of each conversation's first turn."""
        num_first = -(-self.num_prompts // self.turns)
        num_bursts = -(-num_first // self.burst_size)
        rate = self.request_rate / self.turns / self.burst_size
        times = arrivals([rate] * num_bursts, self.burstiness, self.seed + 1)
        return (times[index // self.burst_size] for index in range(num_first))

    def _random_lens(self, rng: random.Random) -> tuple[int, int]:
        return (
            _around(rng, self.random_input_len, self.random_range_ratio),
            _around(rng, self.random_output_len, self.random_range_ratio),
        )


def _around(rng: random.Random, mean: int, ratio: float) -> int:
    return rng.randint(max(1, math.floor(mean * (1 - ratio))), max(1, math.ceil(mean * (1 + ratio)))) if ratio else mean
