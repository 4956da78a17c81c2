"""Sampling: the spec against brute force and statistics, the C++ kernel against the spec, for every build."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Sequence
from ctypes import c_void_p
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from octavo import env
from octavo.kernels.arrays import FloatArray, IntArray
from octavo.kernels.build.toolchain import FLAGS, SANITIZER_FLAGS
from octavo.kernels.cpu import library as cpu
from octavo.kernels.reference import sampling as reference
from octavo.kernels.reference.random import uniform
from octavo.sampling.columns import COLUMNS, NUMBERS, RAGGED, SamplingBatch
from octavo.sampling_params import SamplingParams
from tests.kernels.kept_library import kept_library, with_includes

CSRC = Path(__file__).parents[2] / "csrc"
SOURCES = ["cpu/sampling.cpp", "cpu/thread_pool.cpp", "bindings/sampling.cpp"]
START_THREADS = """
#include "octavo/thread_pool.h"
extern "C" octavo::ThreadPool* start_threads(int num_threads) { return new octavo::ThreadPool(num_threads); }
"""
CPU_INFO = Path("/proc/cpuinfo")
HAS_AVX2 = CPU_INFO.exists() and " avx2 " in CPU_INFO.read_text()
BUILDS = ["installed", *(["x86-64-v3"] if HAS_AVX2 else [])]

Sample = Callable[[FloatArray, SamplingBatch], IntArray]


@pytest.fixture(scope="module")
def build() -> Callable[[str], Sample]:
    """The kernel as engines here have it, or compiled for an instruction set, once."""

    @cache
    def build_for(isa: str) -> Sample:
        if isa == "installed":
            installed = cpu.load()
            return partial(cpu.sample, installed, c_void_p(installed.octavo_pool_new(2)))
        library = ctypes.CDLL(str(compiled_for(isa)))
        library.start_threads.restype = c_void_p
        cpu.declare(library, cpu.SAMPLING_SIGNATURES)
        return partial(cpu.sample, library, c_void_p(library.start_threads(2)))

    return build_for


def compiled_for(isa: str) -> Path:
    sanitizers = SANITIZER_FLAGS if env.sanitizes_kernels() else ()
    command = ["g++", *FLAGS, *sanitizers, "-shared", "-Wall", "-Wextra", "-Werror", f"-march={isa}"]

    def compile_to(library: Path) -> None:
        more = library.with_name("start_threads.cpp")
        more.write_text(START_THREADS)
        places = [f"-I{CSRC}", f"-I{CSRC / 'include'}", *(str(CSRC / source) for source in SOURCES), str(more)]
        subprocess.run([*command, *places, "-o", str(library)], check=True)

    made_of = with_includes(SOURCES, [CSRC, CSRC / "include", CSRC / "cpu"])
    return kept_library([*command, START_THREADS], made_of, compile_to)


@pytest.fixture(scope="module", params=["spec", *BUILDS])
def sample(request: pytest.FixtureRequest, build: Callable[[str], Sample]) -> Sample:
    """Each implementation of `CompiledModel.sample`."""
    return reference.sample if request.param == "spec" else build(request.param)


@pytest.fixture(scope="module", params=BUILDS)
def kernel(request: pytest.FixtureRequest, build: Callable[[str], Sample]) -> Sample:
    """Each build of the C++ kernel."""
    return build(request.param)


def make_batch(num_entries: int, **given: Any) -> SamplingBatch:
    """A batch with neutral parameters except those given: a scalar or an array for a column of numbers; one list per
    entry, or one list for all, for a ragged one. Positions count up, so each entry draws its own random number."""
    neutral = SamplingParams()
    given.setdefault("positions", np.arange(num_entries))
    arrays: dict[str, Any] = {}
    for name, dtype in NUMBERS.items():
        value = given.pop(name, 1234 if name == "seeds" else getattr(neutral, name, 0))
        arrays[name] = np.ascontiguousarray(np.broadcast_to(np.asarray(value, dtype), num_entries))
    for name, offsets in RAGGED.items():
        runs = given.pop(name, [])
        runs = runs if runs and isinstance(runs[0], (list, np.ndarray)) else [runs] * num_entries
        values = [value for run in runs for value in run]
        arrays[name] = np.array(values, COLUMNS[name])
        arrays[offsets] = np.cumsum([0, *map(len, runs)]).astype(np.int32)
    assert not given, f"no such parameter: {given}"
    return SamplingBatch(**arrays)


# ---------------------------------------------------------------- distributions

VOCAB_SIZE = 24
ROW = np.random.default_rng(0).normal(0, 1.5, VOCAB_SIZE).astype(np.float32)
HISTORY = [3, 3, 5, 7, 5, 5, 9, 3, 11]  # the first four are the prompt


def expected_probabilities(
    logits: NDArray[np.floating], temperature: float, min_p: float = 0.0, top_k: int = 0, top_p: float = 1.0
) -> NDArray[np.float64]:
    """By the definition: everything in float64, everything sorted."""
    logits = logits.astype(np.float64) / temperature
    probs = np.exp(logits - logits.max())
    probs /= probs.sum()
    probs[probs < min_p * probs.max()] = 0.0
    if top_k:
        probs[probs < sorted(probs)[-min(top_k, len(probs))]] = 0.0
    probs /= probs.sum()
    held = 0.0
    for token in sorted(range(len(probs)), key=lambda token: (-probs[token], token)):
        if held >= top_p > 0 and held > 0:
            probs[token] = 0.0
        held += probs[token]
    return probs / probs.sum()


def penalised(repetition: float = 1.0, presence: float = 0.0, frequency: float = 0.0) -> FloatArray:
    row = ROW.copy()
    for token in set(HISTORY):
        row[token] = row[token] / repetition if row[token] > 0 else row[token] * repetition
    for token in HISTORY[4:]:
        row[token] -= frequency
    for token in set(HISTORY[4:]):
        row[token] -= presence
    return row


def biased(bias: dict[int, float]) -> FloatArray:
    row = ROW.copy()
    for token, value in bias.items():
        row[token] += value
    return row


def without(tokens: Sequence[int]) -> FloatArray:
    row = ROW.copy()
    row[list(tokens)] = -np.inf
    return row


WITH_HISTORY: dict[str, Any] = {"history": HISTORY, "prompt_lens": 4}
FILTERS: list[dict[str, float]] = [
    *({"temperature": value} for value in (0.01, 0.5, 1.0, 2.0, 100.0)),
    *({"top_k": value} for value in (1, 5, VOCAB_SIZE - 1, VOCAB_SIZE, VOCAB_SIZE + 7)),
    *({"top_p": value} for value in (1e-6, 0.5, 0.9, 0.9999, 1.0)),
    *({"min_p": value} for value in (1e-6, 0.1, 1.0)),
    {"temperature": 0.7, "top_k": 12, "top_p": 0.8},
    {"temperature": 1.5, "min_p": 0.05, "top_k": 12},
    {"temperature": 2.0, "min_p": 0.02, "top_p": 0.95},
    {"temperature": 1.2, "min_p": 0.02, "top_k": 12, "top_p": 0.95},
]
EDITS: list[tuple[dict[str, Any], FloatArray]] = [
    ({"repetition_penalty": 1.8, **WITH_HISTORY}, penalised(repetition=1.8)),
    ({"repetition_penalty": 0.5, **WITH_HISTORY}, penalised(repetition=0.5)),
    ({"presence_penalty": 2.0, **WITH_HISTORY}, penalised(presence=2.0)),
    ({"frequency_penalty": 1.5, **WITH_HISTORY}, penalised(frequency=1.5)),
    ({"frequency_penalty": -1.0, "presence_penalty": -0.5, **WITH_HISTORY}, penalised(presence=-0.5, frequency=-1.0)),
    ({"bias_ids": [2, 4], "bias_values": [2.5, -100.0]}, biased({2: 2.5, 4: -100.0})),
    ({"allowed": [1, 8, 20, 8]}, without([token for token in range(VOCAB_SIZE) if token not in (1, 8, 20)])),
    ({"banned": [0, 5, 6]}, without([0, 5, 6])),
]


def assert_follows(drawn: IntArray, probs: NDArray[np.float64]) -> None:
    """Tokens of probability 0 are never drawn; the others pass a chi-square test, with rare ones pooled."""
    counts = np.bincount(drawn, minlength=len(probs))
    assert counts[probs == 0.0].sum() == 0
    expected = probs * len(drawn)
    rare = expected < 10
    observed, expected = (np.append(values[~rare], values[rare].sum()) for values in (counts, expected))
    if expected[-1] < 10:
        assert observed[-1] <= 40
        observed, expected = observed[:-1], expected[:-1]
    if len(observed) > 1:
        assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4


def draw_many(sample: Sample, **params: Any) -> IntArray:
    """The spec is slow and gets fewer draws: the kernel's, of which there are many, are the spec's too."""
    return sample(ROW[None], make_batch(1_500 if sample is reference.sample else 100_000, **params))


@pytest.mark.parametrize("params", FILTERS, ids=str)
def test_filters_by_distribution(sample: Sample, params: dict[str, float]) -> None:
    assert_follows(draw_many(sample, **params), expected_probabilities(ROW, **{"temperature": 1.0, **params}))


@pytest.mark.parametrize(("params", "row"), EDITS, ids=lambda value: str(value)[:40] if isinstance(value, dict) else "")
def test_edits_by_distribution(sample: Sample, params: dict[str, Any], row: FloatArray) -> None:
    assert_follows(draw_many(sample, **params), expected_probabilities(row, 1.0))
    assert set(sample(ROW[None], make_batch(20, temperature=0, **params)).tolist()) == {int(np.argmax(row))}


def test_edits_come_in_order(sample: Sample) -> None:
    """A ban overrides a bias and an allowance; a bias is added before the repetition penalty, which divides it too."""
    params = {"allowed": [1, 2, 3], "banned": [2], "bias_ids": [2, 3, 9], "bias_values": [100.0, 4.0, 100.0]}
    params |= {"history": [3], "prompt_lens": 1, "repetition_penalty": 2.0}
    row = np.full(VOCAB_SIZE, -np.inf, np.float32)
    row[1], row[3] = ROW[1], (ROW[3] + 4.0) / 2.0
    assert_follows(draw_many(sample, **params), expected_probabilities(row, 1.0))


@pytest.mark.parametrize("vary", ["positions", "sample_indices", "seeds"])
def test_neighbours_are_independent(sample: Sample, vary: str) -> None:
    """Pairs of neighbouring draws from four equal tokens fall evenly into sixteen cells."""
    num_draws = 2_000
    batch = make_batch(num_draws, **{"positions": np.zeros(num_draws), vary: np.arange(num_draws)})
    drawn = sample(np.zeros((1, 4), np.float32), batch)
    pairs = drawn[:-1] * 4 + drawn[1:]
    assert stats.chisquare(np.bincount(pairs, minlength=16)).pvalue > 1e-3


def test_tokens_spell_the_random_number(sample: Sample) -> None:
    """Of 2^14 equal tokens, the one drawn is given by u's first 14 bits."""
    rng = np.random.default_rng(1)
    seeds = rng.integers(0, 2**64, 300, dtype=np.uint64)
    indices, positions = rng.integers(0, 2**31 - 1, (2, 300)).astype(np.int32)
    seeds[:2], indices[:2], positions[:2] = [2**64 - 1, 0], [2**31 - 1, 0], [2**31 - 1, 0]
    batch = make_batch(300, seeds=seeds, sample_indices=indices, positions=positions)
    drawn = sample(np.full((1, 2**14), 3.5, np.float32), batch)
    np.testing.assert_array_equal(drawn, np.floor(uniform(seeds, indices, positions) * 2**14))


# ---------------------------------------------------------------- edges


@pytest.mark.parametrize("vocab_size", [1, 2, 127, 128, 129, 1000])
def test_greedy_takes_the_lowest_of_the_best(sample: Sample, vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    logits = rng.integers(-3, 4, (50, vocab_size)).astype(np.float32)
    drawn = sample(logits, make_batch(50, logits_rows=np.arange(50), temperature=0, top_k=3, top_p=0.1))
    np.testing.assert_array_equal(drawn, logits.argmax(axis=1))


def test_top_k_keeps_equals_of_the_kth(sample: Sample) -> None:
    drawn = sample(np.array([[1, 5, 4, 4, 4, 0]], np.float32), make_batch(400, top_k=2, temperature=5))
    assert set(drawn.tolist()) == {1, 2, 3, 4}


def test_top_p_keeps_lower_ids_among_equals(sample: Sample) -> None:
    drawn = sample(np.zeros((1, 1000), np.float32), make_batch(2000, top_p=0.0095))
    assert set(drawn.tolist()) == set(range(10))


def test_one_token_always_stays(sample: Sample) -> None:
    batch = make_batch(100, top_p=1e-37, top_k=1, min_p=1.0, temperature=50)
    assert set(sample(ROW[None], batch).tolist()) == {int(ROW.argmax())}


@pytest.mark.parametrize("temperature", [0.0, 0.01, 1.0])
def test_failures_stay_alone(sample: Sample, temperature: float) -> None:
    """Rows with NaN, and entries with no token left, get -1; their neighbours get the same as without them."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(8, 300)).astype(np.float32)
    healthy = sample(logits, make_batch(8, logits_rows=np.arange(8), temperature=temperature, top_p=0.9))
    logits[1, 299] = np.nan
    logits[3, 0] = np.nan
    logits[4] = -np.inf
    banned: list[list[int]] = [[] for _ in range(8)]
    banned[6] = list(range(300))
    drawn = sample(logits, make_batch(8, logits_rows=np.arange(8), temperature=temperature, top_p=0.9, banned=banned))
    np.testing.assert_array_equal(drawn == -1, [False, True, False, True, True, False, True, False])
    np.testing.assert_array_equal(drawn[[0, 2, 5, 7]], healthy[[0, 2, 5, 7]])


def test_nan_fails_an_entry_that_may_not_draw_it(sample: Sample) -> None:
    logits = np.array([[np.nan, 1.0, 2.0]], np.float32)
    assert sample(logits, make_batch(1, allowed=[1]))[0] == -1


def test_minus_infinity_is_never_drawn(sample: Sample) -> None:
    logits = np.full((1, 500), -np.inf, np.float32)
    logits[0, [7, 130, 499]] = [-1e30, -1e30, -1e30]
    for params in ({}, {"top_k": 5}, {"top_p": 0.99}, {"min_p": 0.5}):
        assert set(sample(logits, make_batch(200, **params)).tolist()) == {7, 130, 499}


def test_plus_infinity_takes_all(sample: Sample) -> None:
    logits = np.zeros((1, 500), np.float32)
    logits[0, [7, 130, 499]] = np.inf
    for params in ({}, {"top_k": 4}, {"top_p": 0.99}, {"min_p": 0.5}):
        assert set(sample(logits, make_batch(200, **params)).tolist()) == {7, 130, 499}
    assert sample(logits, make_batch(1, temperature=0))[0] == 7


def test_quotients_past_float32_count_as_infinite(sample: Sample) -> None:
    logits = np.array([[3e38, 2.9e38, 1.0, -3e38]], np.float32)
    assert set(sample(logits, make_batch(200, temperature=0.01)).tolist()) == {0, 1}


def test_repetition_leaves_minus_infinity(sample: Sample) -> None:
    logits = np.array([[-np.inf, 0.0, 1.0]], np.float32)
    drawn = sample(logits, make_batch(100, history=[0, 2], repetition_penalty=0.5, frequency_penalty=-2.0))
    assert set(drawn.tolist()) == {1, 2}


def test_no_entries(sample: Sample) -> None:
    drawn = sample(ROW[None], make_batch(0))
    assert drawn.shape == (0,)
    assert drawn.dtype == np.int32


# ---------------------------------------------------------------- the kernel against the spec


def random_batch(rng: np.random.Generator, num_entries: int, num_rows: int, vocab_size: int) -> SamplingBatch:
    def runs(share: float, longest: int) -> list[NDArray[np.int64]]:
        lens = rng.integers(1, longest, num_entries) * (rng.random(num_entries) < share)
        return [rng.integers(0, vocab_size, n) for n in lens]

    def masks(share: float) -> list[NDArray[np.int32]]:
        words = -(-vocab_size // 32)
        empty = np.zeros(0, np.int32)
        made = [rng.integers(-(2**31), 2**31, words) * rng.choice([0, 1, 1], words) for _ in range(num_entries)]
        return [one.astype(np.int32) if rng.random() < share else empty for one in made]

    history = runs(0.3, 60)
    bias_ids = [np.unique(run) for run in runs(0.2, 20)]
    return make_batch(
        num_entries,
        logits_rows=rng.integers(0, num_rows, num_entries),
        temperature=rng.choice([0, 0.01, 0.5, 1, 1, 2], num_entries),
        top_p=rng.choice([1, 1, 0.999, 0.9, 0.5, 0.01], num_entries),
        top_k=rng.choice([0, 0, 1, 5, 40, 200, 1000, vocab_size], num_entries),
        min_p=rng.choice([0, 0, 0, 0.001, 0.1, 1], num_entries),
        presence_penalty=rng.choice([0, 1, -1], num_entries),
        frequency_penalty=rng.choice([0, 0.5, -0.3], num_entries),
        repetition_penalty=rng.choice([1, 1.3, 0.7], num_entries),
        seeds=rng.integers(0, 2**64, num_entries, dtype=np.uint64),
        sample_indices=rng.integers(0, 9, num_entries),
        positions=rng.integers(0, 10_000, num_entries),
        prompt_lens=[rng.integers(0, len(run) + 1) for run in history],
        history=history,
        allowed=runs(0.1, 200),
        mask=masks(0.3),
        banned=runs(0.2, 50),
        bias_ids=bias_ids,
        bias_values=[rng.normal(0, 5, len(run)) for run in bias_ids],
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    vocab_size=st.sampled_from([1, 2, 17, 127, 128, 129, 1000, 5000]),
    spread=st.sampled_from([0.0, 0.1, 1.0, 5.0, 30.0]),
    decimals=st.sampled_from([1, 7]),
)
def test_kernel_draws_the_spec_s_tokens(
    kernel: Sample, seed: int, vocab_size: int, spread: float, decimals: int
) -> None:
    """Rounded to few decimals, many logits are equal."""
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(4, vocab_size)) * spread).round(decimals).astype(np.float32)
    before = logits.copy()
    batch = random_batch(rng, 32, 4, vocab_size)
    np.testing.assert_array_equal(kernel(logits, batch), reference.sample(logits, batch))
    np.testing.assert_array_equal(logits, before)


@cache
def real_vocabulary(spread: float) -> tuple[FloatArray, SamplingBatch, IntArray]:
    """Logits as wide as a real model's, a batch, and the spec's tokens for it."""
    rng = np.random.default_rng(11)
    logits = (rng.normal(size=(8, 49_152)) * spread).astype(np.float32)
    batch = random_batch(rng, 200, 8, 49_152)
    return logits, batch, reference.sample(logits, batch)


@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_kernel_agrees_on_a_real_vocabulary(kernel: Sample, spread: float) -> None:
    """Rounding may move one draw in thousands to the next token, so one may differ."""
    logits, batch, expected = real_vocabulary(spread)
    assert np.count_nonzero(kernel(logits, batch) != expected) <= 1


def test_an_entry_does_not_see_its_batch(kernel: Sample) -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 3, (4, 3000)).astype(np.float32)
    together = kernel(logits, random_batch(np.random.default_rng(6), 64, 4, 3000))
    for i in range(64):
        alone = entry_of(random_batch(np.random.default_rng(6), 64, 4, 3000), i)
        assert kernel(logits, alone)[0] == together[i]


def entry_of(batch: SamplingBatch, i: int) -> SamplingBatch:
    """A batch of entry i alone."""
    columns: dict[str, Any] = {}
    for name in SamplingBatch.__dataclass_fields__:
        values = getattr(batch, name)
        if name in RAGGED:
            offsets = getattr(batch, RAGGED[name])
            columns[name] = values[offsets[i] : offsets[i + 1]]
        elif name in RAGGED.values():
            columns[name] = np.array([0, values[i + 1] - values[i]], np.int32)
        else:
            columns[name] = values[i : i + 1]
    return SamplingBatch(**columns)


@pytest.mark.parametrize(
    "params", [{"banned": [24]}, {"allowed": [-1]}, {"history": [99]}, {"bias_ids": [24]}], ids=str
)
def test_kernel_refuses_ids_outside_of_the_vocabulary(kernel: Sample, params: dict[str, list[int]]) -> None:
    values = {"bias_values": [1.0]} if "bias_ids" in params else {}
    with pytest.raises(AssertionError, match="not in the model"):
        kernel(ROW[None], make_batch(1, **params, **values))


def test_kernel_refuses_rows_that_are_not_there(kernel: Sample) -> None:
    with pytest.raises(AssertionError, match="not among the 1 given"):
        kernel(ROW[None], make_batch(1, logits_rows=1))
