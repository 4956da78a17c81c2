"""The sampler: the parameters that rows enter with are in the batch, whatever rows a step takes in whatever order."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest

from octavo.kernels.arrays import IntArray
from octavo.kernels.reference.sampling import sample
from octavo.messages import ForkRow, NewRow
from octavo.sampling.columns import SamplingBatch
from octavo.sampling.sampler import NO_LOGPROBS, Sampler
from octavo.sampling_params import SamplingParams

MAX_MODEL_LEN = 32
VOCAB_SIZE = 50


def enter(sampler: Sampler, row: int, *, seed: int = 0, sample_index: int = 0, **options: Any) -> None:
    new = {name: options.pop(name) for name in ("stop_token_ids", "bad_word_ids") if name in options}
    prompt = options.pop("prompt", [1, 2, 3])
    sampler.enter(NewRow(row, prompt, len(prompt), SamplingParams(**options), seed, sample_index, **new))


def tokens_of(rows: dict[int, list[int]]) -> IntArray:
    token_ids = np.full((8, MAX_MODEL_LEN), -7, np.int32)
    for row, tokens in rows.items():
        token_ids[row, : len(tokens)] = tokens
    return token_ids


def prepare(sampler: Sampler, rows: dict[int, list[int]]) -> SamplingBatch:
    """A step that draws for these rows, given all their tokens; logits in the same order."""
    order = np.array(list(rows), np.int32)
    positions = np.array([len(tokens) for tokens in rows.values()], np.int32)
    return sampler.prepare(order, np.arange(len(rows), dtype=np.int32), positions, tokens_of(rows))


def runs(batch: SamplingBatch, name: str, offsets_name: str) -> list[list[float]]:
    values, offsets = getattr(batch, name), getattr(batch, offsets_name)
    assert len(offsets) == len(batch.logits_rows) + 1
    return [values[begin:end].tolist() for begin, end in itertools.pairwise(offsets)]


def test_columns_follow_the_rows() -> None:
    sampler = Sampler(8)
    numbers = {"top_p": 0.5, "top_k": 7, "min_p": 0.25, "temperature": 0.75}
    penalties = {"presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.25}
    enter(sampler, 5, seed=2**64 - 1, sample_index=3, **numbers, **penalties)
    enter(sampler, 2, seed=-1, prompt=[4])
    batch = prepare(sampler, {2: [4, 5], 5: [1, 2, 3, 9], 0: [1]})
    for name, value in (numbers | penalties).items():
        column = getattr(batch, name)
        assert column[1] == value
        assert column.dtype == (np.int32 if name == "top_k" else np.float32)
    assert batch.temperature.tolist()[:2] == [1.0, 0.75]
    assert batch.seeds.tolist() == [2**64 - 1, 2**64 - 1, 0]
    assert batch.sample_indices.tolist() == [0, 3, 0]
    assert batch.prompt_lens.tolist() == [1, 3, 0]
    assert batch.positions.tolist() == [2, 4, 1]


def test_plain_rows_have_empty_runs() -> None:
    sampler = Sampler(8)
    enter(sampler, 1)
    batch = prepare(sampler, {1: [1, 2, 3]})
    for name in ("history", "allowed", "banned", "bias_ids", "bias_values"):
        assert len(getattr(batch, name)) == 0
    for name in ("history", "allowed", "banned", "bias"):
        assert getattr(batch, f"{name}_offsets").tolist() == [0, 0]


def test_special_rows_among_plain_ones() -> None:
    sampler = Sampler(8)
    enter(sampler, 0)
    enter(sampler, 1, presence_penalty=1.0)
    enter(sampler, 2, logit_bias={9: 1.5, 4: -2.0})
    enter(sampler, 3, allowed_token_ids=[6, 5])
    enter(sampler, 4, bad_words=["x"], bad_word_ids=((8,), (2, 9)))
    batch = prepare(sampler, {4: [1, 2], 0: [1], 3: [1], 2: [1], 1: [3, 4, 5]})
    assert runs(batch, "history", "history_offsets") == [[], [], [], [], [3, 4, 5]]
    assert runs(batch, "bias_ids", "bias_offsets") == [[], [], [], [9, 4], []]
    assert runs(batch, "bias_values", "bias_offsets") == [[], [], [], [1.5, -2.0], []]
    assert runs(batch, "allowed", "allowed_offsets") == [[], [], [6, 5], [], []]
    assert runs(batch, "banned", "banned_offsets") == [[8], [], [], [], []]


def test_a_row_taken_again_forgets() -> None:
    sampler = Sampler(8)
    enter(sampler, 3, presence_penalty=1.0, top_k=5, logprobs=2)
    enter(sampler, 3)
    batch = prepare(sampler, {3: [1, 2, 3]})
    assert len(batch.history) == 0
    assert batch.top_k.tolist() == [0]
    assert batch.presence_penalty.tolist() == [0.0]
    assert sampler.num_logprobs(np.array([3])).tolist() == [NO_LOGPROBS]


def test_what_is_kept_of_the_same_rows_is_forgotten_when_one_changes() -> None:
    """Columns, edits and reports of a step's rows are kept for the next one, if it has these rows."""
    sampler = Sampler(8)
    enter(sampler, 0, top_k=1, presence_penalty=1.0)
    enter(sampler, 1, top_k=2)
    rows, order = {0: [1, 2, 3], 1: [1, 2, 3]}, np.array([0, 1], np.int32)

    def known() -> tuple[list[int], list[list[float]], bool]:
        batch = prepare(sampler, rows)
        assert prepare(sampler, rows).top_k is batch.top_k
        return batch.top_k.tolist(), runs(batch, "history", "history_offsets"), sampler.reports_logprobs(order)

    assert known() == ([1, 2], [[1, 2, 3], []], False)
    rows[0].append(4)
    assert known() == ([1, 2], [[1, 2, 3, 4], []], False)
    sampler.fork(ForkRow(1, 0, 1))
    assert known() == ([1, 1], [[1, 2, 3, 4], [1, 2, 3]], False)
    enter(sampler, 1, top_k=3, logprobs=1)
    assert known() == ([1, 3], [[1, 2, 3, 4], []], True)
    sampler.inherit(np.array([0], np.int32), np.array([1], np.int32))
    assert known() == ([3, 3], [[], []], True)
    assert prepare(sampler, {1: [1, 2, 3], 0: [1, 2, 3]}).positions.tolist() == [3, 3]
    assert prepare(sampler, {1: [1, 2, 3]}).top_k.tolist() == [3]


def test_a_fork_has_its_parent_s_parameters_and_its_own_random_numbers() -> None:
    sampler = Sampler(8)
    enter(sampler, 0, seed=11, temperature=0.5, logit_bias={4: 1.0}, logprobs=-1)
    enter(sampler, 6, presence_penalty=1.0)
    sampler.fork(ForkRow(6, 0, 2))
    batch = prepare(sampler, {6: [1, 2, 3], 0: [1, 2, 3]})
    assert batch.temperature.tolist() == [0.5, 0.5]
    assert batch.seeds.tolist() == [11, 11]
    assert batch.sample_indices.tolist() == [2, 0]
    assert runs(batch, "bias_ids", "bias_offsets") == [[4], [4]]
    assert len(batch.history) == 0
    assert sampler.num_logprobs(np.array([6, 0])).tolist() == [-1, -1]


def test_a_fork_of_a_plain_row_is_plain() -> None:
    sampler = Sampler(8)
    enter(sampler, 0)
    enter(sampler, 1, presence_penalty=1.0)
    sampler.fork(ForkRow(1, 0, 1))
    assert len(prepare(sampler, {1: [1, 2, 3]}).history) == 0


def test_min_tokens_until_enough_are_generated() -> None:
    sampler = Sampler(8)
    enter(sampler, 0, min_tokens=2, stop_token_ids=frozenset({30, 2}))
    enter(sampler, 1, min_tokens=2)
    banned = [
        runs(prepare(sampler, {0: [1, 2, 3, *[9] * count], 1: [1]}), "banned", "banned_offsets") for count in range(4)
    ]
    assert banned == [[[2, 30], []], [[2, 30], []], [[], []], [[], []]]


@pytest.mark.parametrize(
    ("output", "banned"),
    [
        ([], [8]),
        ([5], [8, 6]),
        ([9, 5], [8, 6]),
        ([5, 6], [8, 7]),
        ([5, 9], [8]),
        ([5, 6, 5], [8, 6]),
        ([1, 2], [8, 3]),
    ],
    ids=str,
)
def test_bad_words_ban_the_token_that_would_complete_them(output: list[int], banned: list[int]) -> None:
    """Only generated tokens can begin a bad word: the prompt here ends in 1, 2, 5."""
    sampler = Sampler(8)
    enter(sampler, 0, prompt=[1, 2, 5], bad_words=["x"], bad_word_ids=((8,), (5, 6), (5, 6, 7), (1, 2, 3)))
    assert runs(prepare(sampler, {0: [1, 2, 5, *output]}), "banned", "banned_offsets") == [banned]


def test_generation_obeys_every_parameter_at_once() -> None:
    """A sequence drawn step by step with the spec: no ban is ever broken, and the same seed draws it again."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, VOCAB_SIZE)).astype(np.float32)
    bad_words = ((8,), (5, 6), (5, 5))
    options: dict[str, Any] = {"min_tokens": 15, "max_tokens": None, "temperature": 3.0, "presence_penalty": 0.2}
    options |= {"allowed_token_ids": [2, 4, 5, 6, 8], "logit_bias": {5: 5.0}, "stop_token_ids": frozenset({2})}

    def generate(seed: int) -> list[int]:
        sampler = Sampler(8)
        enter(sampler, 0, seed=seed, prompt=[5], bad_words=["x", "y"], bad_word_ids=bad_words, **options)
        tokens = [5]
        while len(tokens) < MAX_MODEL_LEN:
            tokens.append(int(sample(logits, prepare(sampler, {0: tokens}))[0]))
        return tokens[1:]

    output = generate(1)
    assert set(output) <= {2, 4, 5, 6}
    assert 2 not in output[:15]
    assert {(5, 6), (5, 5)}.isdisjoint(itertools.pairwise(output))
    assert output == generate(1) != generate(2)


def test_plain_rows_are_cheap() -> None:
    """A step of 256 plain rows takes about 20 us; the limit here leaves room for a busy machine."""
    sampler = Sampler(256)
    for row in range(256):
        enter(sampler, row, temperature=0.5)
    rows = np.arange(256, dtype=np.int32)
    token_ids = np.zeros((256, MAX_MODEL_LEN), np.int32)

    def seconds() -> float:
        begin = time.perf_counter()
        sampler.prepare(rows, rows, rows, token_ids)
        return time.perf_counter() - begin

    assert min(seconds() for _ in range(50)) < 100e-6
