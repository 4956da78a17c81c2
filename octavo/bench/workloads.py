"""What engines are measured on: token ids drawn from a seed, so that every engine computes the same requests."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

DatasetName = Literal["random", "ragged16"]

#: prompt lengths of one round of ragged16: short and long ones mixed, as a server would see them
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


def random_workload(
    num_prompts: int, input_len: int, output_len: int, *, n: int = 1, vocab_size: int, seed: int = 0
) -> list[Work]:
    """Prompts of one length."""
    return _draw([input_len] * num_prompts, output_len, n, vocab_size, seed)


def ragged16(num_prompts: int, output_len: int, *, n: int = 1, vocab_size: int, seed: int = 0) -> list[Work]:
    """Prompts of sixteen lengths, round after round."""
    lens = (RAGGED16_LENS[index % len(RAGGED16_LENS)] for index in range(num_prompts))
    return _draw(lens, output_len, n, vocab_size, seed)


def _draw(lens: Iterable[int], output_len: int, n: int, vocab_size: int, seed: int) -> list[Work]:
    """The lowest tenth of the vocabulary is left out: special tokens live there."""
    rng = random.Random(seed)
    first = vocab_size // 10
    return [Work(tuple(rng.randrange(first, vocab_size) for _ in range(length)), n, output_len) for length in lens]
