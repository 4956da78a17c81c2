"""A GPU's ledger is what its model allocates, tensor by tensor. Here Triton's interpreter stands for the GPU.

`test_plan.py` asks the same of a GPU, for models of real sizes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.gpu.device import INTERPRETER, ON_GPU, interpreted

if ON_GPU:
    pytest.skip("test_plan.py asks the same of the GPU", allow_module_level=True)

from octavo.engine.options import engine_config
from octavo.kernels.cuda import ledger, quantized_products
from octavo.kernels.cuda.device import CudaDevice
from octavo.kernels.cuda_cpp.quantized_format import why_not
from octavo.kernels.ledger import Ledger, Measured
from octavo.kernels.parameters import Linear
from octavo.kernels.scaled import ScaledFormat
from octavo.worker.plan import Planner
from octavo.worker.task import WorkerTask
from octavo.worker.worker import Worker
from tests.conftest import TinyFolder
from tests.distributed.threaded_ranks import ThreadedRanks
from tests.gpu.interpreted_rank import pretend
from tests.tiny_models import make_tiny_model


@pytest.mark.parametrize("quantization", ["fp8", "int8", "int4"])
def test_quantised_matrices_are_in_the_ledger(
    quantization: str, monkeypatch: pytest.MonkeyPatch, inline_executor: None, tmp_path: Path
) -> None:
    """As if the kernel for them could run here."""

    def format_of(linear: Linear, *_: object, **__: object) -> ScaledFormat | None:
        form = linear.parts[0].scheme.format
        return None if form is None or any(why_not(form, *part.shape) for part in linear.parts) else form

    for module in (quantized_products, ledger):
        monkeypatch.setattr(module, "format_of", format_of)
    wide = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    folder = make_tiny_model("llama", tmp_path / "wide", **wide)
    dense, quantised = (
        check(folder, {"quantization": each, "max_num_seqs": 8}, monkeypatch)["weights"]
        for each in (None, quantization)
    )
    assert quantised < dense / 2


@pytest.mark.parametrize("quantization", ["fp8", "int4"])
def test_quantised_experts_are_in_the_ledger(
    quantization: str, monkeypatch: pytest.MonkeyPatch, inline_executor: None, tmp_path: Path
) -> None:
    wide = {"hidden_size": 64, "moe_intermediate_size": 256, "num_hidden_layers": 1, "vocab_size": 64}
    folder = make_tiny_model("qwen3-moe", tmp_path / "wide", **wide)
    dense, quantised = (
        check(folder, {"quantization": each, "max_num_seqs": 8}, monkeypatch)["weights"]
        for each in (None, quantization)
    )
    assert quantised < dense / 2


def test_ggufs_blocks_are_in_the_ledger(monkeypatch: pytest.MonkeyPatch, inline_executor: None, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from tests.models.gguf_files import mixed_llama

    check(mixed_llama(tmp_path / "mixed.gguf"), {"max_num_seqs": 8, "dtype": "auto"}, monkeypatch)


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "gpt2", "phi3", "deepseek-v3"])
@pytest.mark.parametrize(
    "options",
    [
        {"max_num_seqs": 8, "max_num_batched_tokens": 24},
        {"max_num_seqs": 300, "max_num_batched_tokens": 40},
        {"max_num_seqs": 8, "trace_ops": True},
        {"max_num_seqs": 8, "max_num_batched_tokens": 24, "deterministic": True},
    ],
)
def test_the_ledger_is_what_is_allocated(
    name: str, options: dict[str, object], tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch,
    inline_executor: None,
) -> None:  # fmt: skip
    check(tiny_folder(name), options, monkeypatch)


@pytest.mark.parametrize("layout", [(2, 1), (1, 2)])
def test_the_ledger_of_a_rank_that_hands_on_blocks(
    layout: tuple[int, int], tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planned rank is the last of its stage. Here is no peer memory."""
    pretend(monkeypatch)
    sizes: dict[str, Any] = {"max_model_len": 128, "max_num_seqs": 8, "max_num_batched_tokens": 24, "dtype": "float32"}
    sizes |= dict(zip(("tensor_parallel_size", "pipeline_parallel_size"), layout, strict=True))
    config = engine_config(model=str(tiny_folder("qwen3")), backend="triton", kv_cache_memory_bytes=4 << 20, **sizes)
    task = WorkerTask.of(config, moves_blocks=True)
    planner = Planner.of(task, CudaDevice.for_plan(task.backend, INTERPRETER))
    plans = planner.stages(task, 1, 2) if layout[1] > 1 else [planner.plan(task, 2)]
    ranks = ThreadedRanks(task)
    for worker, plan in zip(ranks._workers[layout[0] - 1 :], plans, strict=True):
        assert worker.mover().block_bytes == plan.sizes.layout.block_bytes
        assert worker.shape.layout.num_blocks == plan.sizes.layout.num_blocks
        entries = [each for each in plan.ledger.entries if each.what != "results of other ranks"]
        measured = worker.measured()
        assert {component: Ledger(tuple(entries)).of(component) for component in measured} == measured
        assert worker.shape.planned["workspace"] == plan.ledger.of("workspace")
    ranks.close()


def check(folder: Path, options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> Measured:
    interpreted(monkeypatch, free_bytes=4 << 20)
    task = WorkerTask.of(
        engine_config(model=str(folder), backend="triton", max_model_len=128, **{"dtype": "float32", **options})
    )
    worker = Worker(task)
    measured = worker.measured()
    worker.close()
    plan = Planner.of(task, CudaDevice.for_plan(task.backend, INTERPRETER)).plan(task)
    assert {component: plan.ledger.of(component) for component in measured} == measured
    return measured
