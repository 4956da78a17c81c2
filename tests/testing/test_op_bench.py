"""`octavo kernels bench`: every op is measured, and its bytes and products are counted correctly."""

from __future__ import annotations

import pytest

from octavo.cli.main import main
from octavo.kernels.ops import OPS
from octavo.testing import op_bench, op_cases
from octavo.testing.op_bench import Limits, measure
from octavo.testing.op_cases import Sizes, cases

TINY = Sizes(64, (1, 3), (4, 2, 16), ((2, 17, 1), (1, 0, 5)), "float32", "float16", repeats=1)


@pytest.mark.parametrize("op", OPS)
def test_every_op_is_measured(op: str) -> None:
    rows = list(measure(op, "cpu", TINY, Limits(1e10, 1e11)))
    assert len(rows) == 2
    for row in rows:
        assert 0 < row.seconds < 1
        assert row.share > 0


def test_what_is_counted() -> None:
    (one, _) = cases("linear", TINY)
    assert (one.num_bytes, one.num_flops) == (4 * (64 * 64 + 64 + 64), 2 * 64 * 64)
    assert next(cases("add", TINY)).num_bytes == 4 * 3 * 64
    assert next(cases("gated_activation", TINY)).num_bytes == 4 * 3 * 64
    assert next(cases("add_rms_norm", TINY)).num_bytes == 4 * 4 * 64
    decode, chunk = cases("paged_attention", TINY)
    assert decode.num_bytes == 2 * 18 * (2 * 2 * 16 * 2) + 2 * (2 * 4 * 16 * 4)
    assert decode.num_flops == 2 * 18 * 4 * 4 * 16
    assert chunk.num_flops == (1 + 2 + 3 + 4 + 5) * 4 * 4 * 16


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(op_cases.SIZES, "cpu", TINY)
    monkeypatch.setattr(op_bench, "limits_of", lambda backend: Limits(1e10, 1e11))
    assert main(["kernels", "bench", "paged_attention", "--backend", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "limits measured now: 10.0 GB/s, 100 GFLOP/s"
    assert lines[3].split()[:2] == ["shape", "time"]
    assert "torch SDPA" in lines[3]
    assert lines[4].startswith("2 x 1 new, 18 in all, 4/2 heads of 16")
    assert lines[4].endswith("GPU only")
    assert len(lines) == 6
