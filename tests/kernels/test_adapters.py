"""The ops of adapters on the host's backends: what each row's own adapter adds, whoever is beside it."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.kernels.adapters import AdapterSizes
from octavo.kernels.device import Device
from octavo.kernels.reference.dequantize import values
from octavo.testing.made_parameters import MadeAdapter, adapted
from octavo.testing.op_harness import NUM_ROWS, Harness, random_table

SIZES = AdapterSizes(num_slots=2, max_rank=9)
ADAPTERS = (MadeAdapter(1, 9), MadeAdapter(2, 2))
#: row 0 has no adapter, row 1 that of slot 0, row 2 that of slot 1
WORK = [(0, [3, 4]), (1, [5, 6, 7, 8, 9]), (2, [10]), (4, [11, 12])]


@pytest.mark.parametrize("outputs", [(40,), (24, 8, 600)])
def test_add_adapters_adds_what_each_rows_adapter_does(backend: Device, outputs: tuple[int, ...]) -> None:
    module, table_x, table_y = adapted(SIZES, 37, *outputs), random_table(37), random_table(sum(outputs), seed=1)

    def harness() -> Harness:
        return Harness(
            backend,
            lambda ops: ops.add_adapters(
                ops.embedding(table_y, "input_ids"), ops.embedding(table_x, "input_ids"), module
            ),
            sum(outputs),
            adapters=ADAPTERS,
        )

    together = harness().step(WORK)
    x, y = values(table_x).astype(np.float64), values(table_y).astype(np.float64)
    for (row, tokens), got in zip(WORK, together, strict=True):
        expected = y[tokens].copy()
        if slot := row % 3:
            weights = ADAPTERS[slot - 1].weights(module)
            h = np.split(x[tokens] @ weights.a.T.astype(np.float64), len(outputs), axis=1)
            pieces = np.split(weights.b.astype(np.float64), np.cumsum(outputs)[:-1])
            expected += np.concatenate([part @ piece.T for part, piece in zip(h, pieces, strict=True)], axis=1)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    if backend.name == "cpu":  # the sums of a row are its own
        for one, got in zip(WORK, together, strict=True):
            np.testing.assert_array_equal(harness().step([one])[0], got)


def test_add_table_adapters_adds_the_numbers_of_each_token(backend: Device) -> None:
    """Tokens below the offset, and beyond the table, have none."""
    num_ids, offset, width = NUM_ROWS - 90, -5, 20
    module, table = adapted(SIZES, num_ids, width, is_table=True), random_table(width)
    harness = Harness(
        backend,
        lambda ops: ops.add_table_adapters(ops.embedding(table, "input_ids"), module, offset),
        width,
        adapters=ADAPTERS,
    )
    weights = ADAPTERS[0].weights(module)
    tokens = [4, 5, 11, 12]
    (got,) = harness.step([(1, tokens)])
    added = np.stack([weights.b @ weights.a[:, 0], weights.b @ weights.a[:, 6]])
    expected = values(table)[tokens] + np.concatenate([np.zeros((1, width)), added, np.zeros((1, width))])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
