"""Decode attention of one sequence on the CPU: `block_on_cpu/ptx.cuh` has the threads of a GPU's kernel take turns.

So its indices, waits, alignments and sums are tested where there is no GPU. tests/gpu/test_one_sequence.py asks the
same of a GPU, for more shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
import tests.gpu.device  # noqa: E402, F401  # first: whether Triton interprets is decided when it is imported
from octavo.kernels.cuda.driver import GPU  # noqa: E402
from octavo.kernels.cuda_cpp import decode_attention, one_sequence  # noqa: E402
from tests.gpu.one_sequence import check_alone  # noqa: E402
from tests.gpu.paged_batch import make_batch  # noqa: E402
from tests.kernels.kernel_on_cpu import Boxes, run_on_cpu  # noqa: E402

ONE_CLUSTER, TWO_CLUSTERS = (GPU("a CPU", (9, 0), 1 << 34, number) for number in (8, 16))  # of one kv head


@pytest.fixture(autouse=True)
def _runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    run_on_cpu(one_sequence, tmp_path, monkeypatch)
    monkeypatch.setattr(decode_attention, "TensorMap", Boxes)
    decode_attention._map_of.cache_clear()
    yield
    decode_attention._map_of.cache_clear()


def test_norm_rotation_and_several_stages() -> None:
    """One cluster reads more than its rings hold."""
    shape = {"num_heads": 8, "num_kv_heads": 1, "head_dim": 128, "rotary_dim": 128, "has_norm": True}
    check_alone(make_batch([(2900, 1)], dtype=torch.bfloat16, **shape), ONE_CLUSTER)  # type: ignore[arg-type]


def test_window_sinks_and_two_clusters() -> None:
    """1,100 tokens are too many for one cluster alone."""
    shape = {"num_heads": 3, "num_kv_heads": 1, "head_dim": 64, "rotary_dim": 32, "window": 1100, "block_size": 32}
    for cached in (0, 700, 1300):
        batch = make_batch([(cached, 1)], has_sinks=True, dtype=torch.float16, seed=cached, **shape)  # type: ignore[arg-type]
        check_alone(batch, TWO_CLUSTERS)
