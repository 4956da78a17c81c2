"""For any parameters of a request, its draw is a token of the vocabulary or none, as in the specification."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.gpu.device import DEVICE, ON_GPU

from octavo.kernels.reference.logprobs import top_logprobs as reference_logprobs  # isort: skip
from octavo.kernels.reference.sampling import sample as reference_sample  # isort: skip
from octavo.kernels.triton.elementwise.elementwise import embedding  # isort: skip
from octavo.kernels.triton.sampling.logits_scan import LogitsScan  # isort: skip
from octavo.kernels.triton.sampling.logprobs import top_logprobs  # isort: skip
from tests.gpu.test_sampling import draw, processed  # isort: skip
from tests.kernels.extreme_batches import check_tokens, extreme_batch, extreme_rows  # isort: skip

NUM = 32 if ON_GPU else 6


@pytest.mark.parametrize("vocab_size", [5, 300, 2049])
def test_every_draw_is_a_token_or_none(vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    for _ in range(10 if ON_GPU else 1):
        logits, batch = extreme_rows(rng, NUM, vocab_size), extreme_batch(rng, NUM, vocab_size)
        tokens = draw(torch.as_tensor(logits, device=DEVICE), batch)
        check_tokens(tokens, reference_sample(logits, batch), logits, batch)
        distribution = processed(torch.as_tensor(logits, device=DEVICE), batch, tokens)
        drawn = np.flatnonzero(tokens >= 0)
        assert not np.isnan(distribution[drawn]).any()
        assert (distribution[drawn, tokens[drawn]] > -np.inf).all(), "what is drawn can be drawn"


@pytest.mark.parametrize("vocab_size", [5, 300])
def test_logprobs_of_any_row(vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    num_rows = NUM if ON_GPU else 4
    logits = extreme_rows(rng, num_rows, vocab_size)
    logits[:3] = np.array([[-np.inf], [np.inf], [np.nan]])
    logits[0, 2:4] = 1.0
    logits[2, 0] = 4.0
    tokens = rng.integers(0, vocab_size, num_rows).astype(np.int32)
    k = min(vocab_size, 140)  # more than a segment of equals
    expected_ids, expected_logprobs, expected_ranks = reference_logprobs(logits, tokens, k)
    ids = torch.full((num_rows, k + 1), -7, dtype=torch.int32, device=DEVICE)
    logprobs = torch.full((num_rows, k + 1), 7.0, device=DEVICE)
    ranks = torch.zeros(num_rows, dtype=torch.int32, device=DEVICE)
    scan = LogitsScan.allocate(num_rows, vocab_size, DEVICE)
    given = torch.as_tensor(logits, device=DEVICE), torch.as_tensor(tokens, device=DEVICE)
    top_logprobs(*given, ids, logprobs, ranks, scan)
    assert np.array_equal(ids.cpu().numpy(), expected_ids)
    assert np.array_equal(ranks.cpu().numpy(), expected_ranks)
    assert np.allclose(logprobs.cpu().numpy(), expected_logprobs, atol=2e-5, equal_nan=True)


def test_the_token_of_a_failed_draw_reads_no_memory_before_the_table() -> None:
    table = torch.arange(12.0, device=DEVICE).view(4, 3)
    out = torch.empty(2, 3, device=DEVICE)
    embedding(table[1:], torch.tensor([-1, 2], dtype=torch.int32, device=DEVICE), out)
    assert out.tolist() == [[3, 4, 5], [9, 10, 11]]
