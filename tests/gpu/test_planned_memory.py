"""A GPU's ledger is what its model allocates, tensor by tensor. Here Triton's interpreter stands for the GPU.

`test_plan.py` asks the same of a GPU, for models of real sizes.
"""

from __future__ import annotations

import pytest

from tests.gpu.device import ON_GPU

if ON_GPU:
    pytest.skip("test_plan.py asks the same of the GPU", allow_module_level=True)

from octavo.engine.assemble import engine_config
from octavo.kernels.cuda.device import CudaDevice
from octavo.kernels.cuda.driver import GPU
from octavo.worker.plan import Planner
from octavo.worker.task import WorkerTask
from octavo.worker.worker import Worker
from tests.conftest import TinyFolder

INTERPRETER = GPU("interpreter", (8, 0), 1 << 34, 1)


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "gpt2", "phi3"])
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
    monkeypatch.setattr(CudaDevice, "gpu", INTERPRETER)
    monkeypatch.setattr(CudaDevice, "why_not", lambda self: None)
    monkeypatch.setattr(CudaDevice, "device", "cpu")
    monkeypatch.setattr(CudaDevice, "free_bytes", lambda self, ledger, utilization: 4 << 20)
    folder = str(tiny_folder(name))
    task = WorkerTask.of(engine_config(model=folder, backend="triton", dtype="float32", max_model_len=128, **options))
    worker = Worker(task)
    measured = worker.measured()
    worker.close()
    plan = Planner.of(task, CudaDevice.for_plan(task.backend, INTERPRETER)).plan(task)
    assert {component: plan.ledger.of(component) for component in measured} == measured
