"""`processed_logits`: the spec and the C++ kernel against torch in float64, and against each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from octavo.kernels.arrays import FloatArray
from octavo.kernels.cpu.device import CpuDevice
from octavo.kernels.device import CompiledModel
from octavo.kernels.reference.logprobs import top_logprobs
from octavo.kernels.reference.sampling import processed_logits, sample
from octavo.sampling.columns import SamplingBatch
from octavo.testing.op_harness import Harness, random_table
from tests.kernels.extreme_batches import extreme_batch, extreme_rows
from tests.kernels.test_sampling import make_batch, random_batch

Process = Callable[[FloatArray, SamplingBatch], FloatArray]


@pytest.fixture(scope="module")
def model() -> CompiledModel:
    table = random_table(8)
    return Harness(CpuDevice(2), lambda ops: ops.embedding(table, "input_ids"), 8).compiled


@pytest.fixture(params=["spec", "cpu"])
def process(request: pytest.FixtureRequest, model: CompiledModel) -> Process:
    return processed_logits if request.param == "spec" else by_kernel(model)


def by_kernel(model: CompiledModel) -> Process:
    """The host's kernel draws from exactly the logits that it reports."""
    return lambda logits, batch: model.processed_logits(logits, batch, np.full(len(batch.positions), -1, np.int32))


def edited(row: FloatArray, batch: SamplingBatch, i: int) -> torch.Tensor:
    """Entry i's logits after all edits, before the temperature, token by token."""

    def run(values: np.ndarray, offsets: np.ndarray) -> list[float]:
        return values[offsets[i] : offsets[i + 1]].tolist()

    logits = torch.from_numpy(row.copy()).double()
    allowed = run(batch.allowed, batch.allowed_offsets)
    if allowed:
        logits[[token for token in range(len(row)) if token not in allowed]] = -torch.inf
    for word, bits in enumerate(run(batch.mask, batch.mask_offsets)):
        closed = [32 * word + bit for bit in range(32) if not int(bits) >> bit & 1]
        logits[[token for token in closed if token < len(row)]] = -torch.inf
    logits[run(batch.banned, batch.banned_offsets)] = -torch.inf
    bias = run(batch.bias_values, batch.bias_offsets)
    for token, value in zip(run(batch.bias_ids, batch.bias_offsets), bias, strict=True):
        logits[token] += value
    history = run(batch.history, batch.history_offsets)
    output = history[batch.prompt_lens[i] :]
    repetition = float(batch.repetition_penalty[i])
    for token in set(history):
        logits[token] *= 1 / repetition if logits[token] > 0 else repetition
        logits[token] -= float(batch.frequency_penalty[i]) * output.count(token)
        logits[token] -= float(batch.presence_penalty[i]) * (token in output)
    return logits


def filtered(logits: torch.Tensor, batch: SamplingBatch, i: int) -> torch.Tensor:
    """Divided by the temperature, and -inf where min_p, top_k or top_p cut."""
    if batch.temperature[i] == 0:
        return logits
    logits = logits / float(batch.temperature[i])
    probs = logits.softmax(0)
    logits[probs < float(batch.min_p[i]) * probs.max()] = -torch.inf
    if batch.top_k[i] > 0:
        logits[logits < logits.sort(descending=True).values[min(int(batch.top_k[i]), len(logits)) - 1]] = -torch.inf
    if batch.top_p[i] < 1:
        probs, order = logits.softmax(0).sort(descending=True, stable=True)
        logits[order[probs.cumsum(0) - probs >= float(batch.top_p[i])]] = -torch.inf
    return logits


@pytest.mark.parametrize("vocab_size", [17, 300])
def test_against_torch(process: Process, vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    num_cut = 0
    for _ in range(8):
        logits = (3 * rng.standard_normal((4, vocab_size))).astype(np.float32)
        before = logits.copy()
        batch = random_batch(rng, 24, 4, vocab_size)
        tokens, ours = sample(logits, batch), process(logits, batch)
        np.testing.assert_array_equal(logits, before)
        assert ours.dtype == np.float32
        assert ours.shape == (24, vocab_size)
        for i in np.flatnonzero(tokens >= 0):
            expected = filtered(edited(logits[batch.logits_rows[i]], batch, i), batch, i).numpy()
            np.testing.assert_allclose(ours[i], expected, rtol=1e-5, atol=1e-5)
            num_cut += int(np.isinf(expected).sum())
    assert num_cut > 1000, "filters are seen"


def test_log_probabilities_of_it(model: CompiledModel) -> None:
    """Ranks and best tokens come from the processed logits, and the kept tokens have all of the mass."""
    rng = np.random.default_rng(1)
    logits = (3 * rng.standard_normal((4, 200))).astype(np.float32)
    batch = random_batch(rng, 40, 4, 200)
    tokens = sample(logits, batch)
    drawn = np.flatnonzero(tokens >= 0)
    for rows in (processed_logits(logits, batch)[drawn], by_kernel(model)(logits, batch)[drawn]):
        for one in (top_logprobs, model.top_logprobs):
            ids, logprobs, ranks = one(rows, tokens[drawn], 200)
            expected = torch.from_numpy(rows).double().log_softmax(1).numpy()
            np.testing.assert_allclose(logprobs, np.take_along_axis(expected, ids, 1), rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(np.exp(logprobs[:, 1:]).sum(1), 1, rtol=1e-5)
            assert (np.take_along_axis(ids, ranks[:, None], 1)[:, 0] == tokens[drawn]).all()
            assert np.isfinite(logprobs[:, 0]).all(), "what is drawn can be drawn"


@pytest.mark.parametrize("decimals", [1, 7])
@pytest.mark.parametrize("spread", [0.0, 0.1, 5.0])
def test_the_kernel_says_what_the_spec_says(model: CompiledModel, spread: float, decimals: int) -> None:
    """Rounded to few decimals, many logits are equal."""
    rng = np.random.default_rng(decimals)
    for vocab_size in (1, 17, 129, 3000):
        logits = (rng.normal(size=(4, vocab_size)) * spread).round(decimals).astype(np.float32)
        batch = random_batch(rng, 32, 4, vocab_size)
        drawn = sample(logits, batch) >= 0
        expected, ours = processed_logits(logits, batch), by_kernel(model)(logits, batch)
        np.testing.assert_array_equal(ours[drawn], expected[drawn])


@pytest.mark.parametrize("vocab_size", [1, 5, 129, 700])
def test_any_numbers(model: CompiledModel, process: Process, vocab_size: int) -> None:
    """Every drawn token, from any backend, is among the processed logits' kept tokens."""
    rng = np.random.default_rng(vocab_size)
    for _ in range(20):
        logits, batch = extreme_rows(rng, 12, vocab_size), extreme_batch(rng, 12, vocab_size)
        tokens = (sample if process is processed_logits else model.sample)(logits, batch)
        ours = process(logits, batch)
        drawn = np.flatnonzero(tokens >= 0)
        assert not np.isnan(ours[drawn]).any()
        assert (ours[drawn, tokens[drawn]] > -np.inf).all()


def test_infinite_logits_stay_infinite_and_alone(process: Process) -> None:
    logits = np.array([[1.0, np.inf, -np.inf, np.inf]], np.float32)
    kept = [-np.inf, np.inf, -np.inf, np.inf]
    for params in ({"temperature": 2.0}, {"top_k": 2}, {"min_p": 0.5}):
        assert process(logits, make_batch(1, **params))[0].tolist() == kept
    assert process(logits, make_batch(1, temperature=0.0)).tolist() == logits.tolist()


@pytest.mark.parametrize("k", [0, 3, 40])
def test_logits_in_place_of_log_probabilities(model: CompiledModel, k: int) -> None:
    rng = np.random.default_rng(k)
    logits = rng.normal(0, 3, (6, 40)).astype(np.float32)
    logits[1, 5:] = -np.inf
    tokens = rng.integers(0, 40, 6).astype(np.int32)
    for one in (top_logprobs, model.top_logprobs):
        ids, values, ranks = one(logits, tokens, k, as_logits=True)
        expected_ids, _, expected_ranks = one(logits, tokens, k)
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_array_equal(ranks, expected_ranks)
        np.testing.assert_array_equal(values, np.take_along_axis(logits, ids, 1))


def test_no_entries(process: Process) -> None:
    assert process(np.zeros((1, 9), np.float32), make_batch(0)).shape == (0, 9)
