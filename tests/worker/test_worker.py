"""A worker builds itself: in which order, and for which sizes."""

from __future__ import annotations

import pytest

from octavo.engine.options import engine_config
from octavo.models.registry import build_model
from octavo.worker.task import WorkerTask
from octavo.worker.worker import Worker
from tests.conftest import TinyFolder


def test_a_hosts_model_is_built_for_the_context_that_its_cache_holds(
    tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rope scalings that depend on the length use this one, and the rotary tables end there."""
    lengths = []

    def building(*given: object, **options: object) -> object:
        lengths.append(given[3])
        return build_model(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("octavo.worker.worker.build_model", building)
    config = engine_config(model=str(tiny_folder("llama")), backend="cpu", num_gpu_blocks_override=5)
    worker = Worker(WorkerTask.of(config))
    worker.close()
    assert lengths == [worker.shape.limits.max_model_len] == [4 * config.cache.block_size]
