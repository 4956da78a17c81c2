"""Benchmark workloads: token ids drawn from a seed, so that every engine gets the same requests."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

DatasetName = Literal["random", "ragged16", "single", "mixed", "chat", "prefill", "fanout", "longctx"]

_NAMED_TOKEN_RANGE = (1000, 100_000)  # ordinary tokens in every large vocabulary
#: prompt lengths of one round of ragged16: short and long mixed, as on a server
RAGGED16_LENS = (16, 24, 32, 48, 64, 64, 80, 96, 96, 112, 128, 144, 160, 192, 224, 256)


@dataclass(frozen=True, slots=True)
class Work:
    """One request: a prompt, how many sequences to sample from it, and the exact length of each."""

    prompt_token_ids: tuple[int, ...]
    n: int
    output_len: int

    @property
    def num_output_tokens(self) -> int:
        return self.n * self.output_len


@dataclass(frozen=True, slots=True)
class Lengths:
    """Log-normal lengths of prompts and outputs: means, spreads (the standard deviations of the logarithms), limits."""

    input_mean: float
    input_sigma: float
    longest_input: int
    output_mean: float
    output_sigma: float
    longest_output: int

    def draw(self, rng: random.Random, n: int = 1) -> Work:
        input_len = _log_normal(rng, self.input_mean, self.input_sigma, self.longest_input)
        draw_output_len = partial(_log_normal, rng, self.output_mean, self.output_sigma, self.longest_output)
        return _named(rng, input_len, n, draw_output_len)

    def draw_lens(self, rng: random.Random) -> tuple[int, int]:
        """Of a prompt and of its answer, without tokens."""
        return (
            _log_normal(rng, self.input_mean, self.input_sigma, self.longest_input),
            _log_normal(rng, self.output_mean, self.output_sigma, self.longest_output),
        )


#: the data sets of the PagedAttention paper (Kwon et al., 2023), by the mean lengths that it gives
SHAREGPT = Lengths(161, 1.0, 2048, 338, 0.8, 1024)
ALPACA = Lengths(19, 0.5, 512, 58, 0.8, 512)


def random_workload(
    num_prompts: int, input_len: int, output_len: int, *, n: int = 1, vocab_size: int, seed: int = 0
) -> list[Work]:
    """Prompts of one length."""
    return _draw([input_len] * num_prompts, output_len, n, vocab_size, seed)


def ragged16(num_prompts: int, output_len: int, *, n: int = 1, vocab_size: int, seed: int = 0) -> list[Work]:
    """Prompts of sixteen lengths in turn."""
    lens = (RAGGED16_LENS[index % len(RAGGED16_LENS)] for index in range(num_prompts))
    return _draw(lens, output_len, n, vocab_size, seed)


def mixed() -> list[Work]:
    """256 requests, prompts and outputs uniform in 100 .. 1024: the shape nano-vllm publishes."""
    rng = random.Random(0)
    return [_named(rng, rng.randint(100, 1024), 1, lambda: rng.randint(100, 1024)) for _ in range(256)]


def chat() -> list[Work]:
    """1000 requests of ShareGPT's lengths."""
    rng = random.Random(1)
    return [SHAREGPT.draw(rng) for _ in range(1000)]


def _uniform(num_prompts: int, input_len: int, output_len: int, *, n: int = 1, seed: int) -> list[Work]:
    rng = random.Random(seed)
    return [_named(rng, input_len, n, lambda: output_len) for _ in range(num_prompts)]


def _named(rng: random.Random, input_len: int, n: int, draw_output_len: Callable[[], int]) -> Work:
    """Draw the prompt first, then the output length."""
    prompt = tuple(rng.randrange(*_NAMED_TOKEN_RANGE) for _ in range(input_len))
    return Work(prompt, n, draw_output_len())


def _log_normal(rng: random.Random, mean: float, sigma: float, longest: int) -> int:
    """A length from 4 to `longest`."""
    return max(4, min(longest, round(rng.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma))))


def _draw(lens: Iterable[int], output_len: int, n: int, vocab_size: int, seed: int) -> list[Work]:
    """Skips the lowest tenth of the vocabulary, where special tokens are."""
    rng = random.Random(seed)
    first = vocab_size // 10
    return [Work(tuple(rng.randrange(first, vocab_size) for _ in range(length)), n, output_len) for length in lens]


#: fully fixed workloads, so that results are comparable across engines and over time
NAMED: dict[str, Callable[[], list[Work]]] = {
    "single": partial(_uniform, 1, 512, 256, seed=3),  # the latency of a single user
    "mixed": mixed,
    "chat": chat,
    "prefill": partial(_uniform, 24, 8192, 1, seed=2),  # long prompts, one output token each
    "fanout": partial(_uniform, 8, 4096, 256, n=32, seed=4),  # best-of-n, and rollouts of reinforcement learning
    "longctx": partial(_uniform, 16, 16000, 128, seed=5),  # few sequences with long contexts
}
