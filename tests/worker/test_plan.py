"""Memory plans: they say what an engine with the same options takes, and their cures work."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from octavo.cli.doctor_memory import compare
from octavo.engine.options import engine_config
from octavo.errors import OutOfMemoryError
from octavo.kernels.cpu.device import CpuDevice
from octavo.kernels.cuda.device import CudaDevice
from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda.known import known_gpu
from octavo.kernels.device import StepBatch
from octavo.kernels.ledger import device_budget, size
from octavo.messages import StepPlan
from octavo.models.loader import open_checkpoint
from octavo.worker.plan import Planner, smallest_changes, with_option
from octavo.worker.step_faults import StepFaults
from octavo.worker.task import WorkerTask
from octavo.worker.wish import Wish, suggest
from octavo.worker.worker import Worker
from tests.conftest import TinyFolder

CONFIGS = Path(__file__).parents[2] / "examples/configs"
LLAMA, QWEN = (str(CONFIGS / name) for name in ("llama-3.1-8b", "qwen3-0.6b"))
SMALL = {"max_num_seqs": 8, "max_model_len": 64, "kv_cache_memory_bytes": 1 << 20}


def task_of(model: str, **options: object) -> WorkerTask:
    return WorkerTask.of(engine_config(model=model, **options))


def planner_of(model: str, gpu: GPU, **options: object) -> tuple[Planner, WorkerTask]:
    task = task_of(model, **options)
    return Planner.of(task, CudaDevice(described=gpu)), task


@pytest.mark.parametrize(
    "name", ["llama", "llama-tied-bias", "gemma3", "phi3", "gpt2", "opt-normed-after", "deepseek-v3"]
)
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_the_cpu_takes_what_was_planned(name: str, dtype: str, tiny_folder: TinyFolder) -> None:
    options = {"backend": "cpu", "dtype": dtype, "max_num_batched_tokens": 96, **SMALL}
    compared = compare(engine_config(model=str(tiny_folder(name)), **options))
    for component in ("weights", "activations", "rows", "KV blocks"):
        assert compared.measured[component] == pytest.approx(compared.planned[component], abs=256), component
    room_for_parts = 128 << 10  # partial results of long contexts come on top; they depend on the step
    assert compared.measured["workspace"] <= compared.planned["workspace"] + room_for_parts


MEASURE = """
import re
from octavo.kernels.registry import select
from octavo.worker.plan import Planner
from octavo.worker.task import WorkerTask
from octavo.worker.warm_up import every_size
from octavo.worker.worker import Worker
from octavo.engine.options import engine_config

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

options = {"backend": "cpu", "max_model_len": 512, "max_num_seqs": 64, "kv_cache_memory_bytes": 512 << 20}
task = WorkerTask.of(engine_config(model="smollm2", **options))
plan = Planner.of(task, select(task.backend).device).plan(task)
before = anonymous()
worker = Worker(task)
worker._runner._model.pool.fill(1)
worker._runner._rows.states.token_ids.fill(0)
for step in every_size(worker.shape.limits, 16, 1):
    worker.submit(step).result()
mapped = sum(entry.num_bytes for entry in plan.ledger.entries if entry.what.startswith("embeddings"))
print(plan.total, anonymous() - before + mapped)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells a process's own memory there")
def test_the_real_models_process_grows_by_what_was_planned() -> None:
    """By the system's count of its own pages. Embeddings are pages of the file; the rest of the 2 % is Python's."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    planned, measured = map(int, done.stdout.split())
    assert measured == pytest.approx(planned, rel=0.02)


def test_engines_on_one_host_share_its_memory(tiny_folder: TinyFolder) -> None:
    whole, half = (task_of(str(tiny_folder("llama")), data_parallel_size=engines) for engines in (1, 2))
    plans = [Planner.of(task, CpuDevice(), 8 << 20).plan(task) for task in (whole, half)]
    block_bytes = plans[0].sizes.layout.block_bytes
    assert [plan.kv_bytes // block_bytes for plan in plans] == [(2 << 20) // block_bytes, (1 << 20) // block_bytes]


def test_a_gpus_plan_sizes_the_cache_by_what_is_left() -> None:
    planner, task = planner_of(LLAMA, known_gpu("h100"))
    plan = planner.plan(task)
    assert plan.problem is None
    total = known_gpu("h100").num_bytes
    assert int(total * 0.92) - plan.sizes.layout.block_bytes < plan.ledger.early + plan.kv_bytes <= int(total * 0.92)
    assert plan.token_bytes == 32 * 2 * 8 * 128 * 2
    assert plan.num_requests(8192) == plan.num_blocks // 512
    assert plan.num_requests(200_000) == 0
    assert plan.ledger.of("weights") == pytest.approx(2 * 8.03e9, rel=0.01)


def test_what_comes_after_the_blocks_is_kept_free() -> None:
    assert device_budget(100, 20, 5, 0.9) == 70
    assert device_budget(100, 20, 15, 0.9) == 65
    assert device_budget(100, 95, 10, 0.9) == 0


def test_ranks_share_the_model_by_its_rules() -> None:
    planner, task = planner_of(QWEN, known_gpu("h200"))
    whole, half, most = (planner.plan(task, ranks) for ranks in (1, 2, 16))
    norms = whole.ledger.entries[1].num_bytes
    matrices = whole.ledger.entries[0].num_bytes
    assert half.ledger.of("weights") == matrices // 2 + norms
    assert half.token_bytes * 2 == whole.token_bytes
    assert most.token_bytes * 8 == whole.token_bytes  # eight KV heads: two ranks have the same one
    assert [ranks for ranks in (1, 2, 3, 4, 8, 16, 32) if planner.can_share(ranks)] == [1, 2, 4, 8, 16]


def test_ranks_may_divide_experts(tiny_folder: TinyFolder) -> None:
    """Five in each of three layers, of three matrices of 48 x 80 in float32. The plan is of the rank with most."""
    planner, cut = planner_of(str(tiny_folder("mixtral")), known_gpu("h200"), dtype="float32")
    whole = replace(cut, backend=replace(cut.backend, enable_expert_parallel=True))
    own, parts = (planner.plan(task, 2).ledger.of("weights") for task in (whole, cut))
    assert own - parts == (3 - 2.5) * 3 * 3 * 48 * 80 * 4
    assert [planner.can_share(6, each.backend) for each in (whole, cut)] == [False, True]


def test_experts_that_change_places_need_room(tiny_folder: TinyFolder) -> None:
    """Five and one redundant: three on each rank. Beside them counts, tables, and seven experts on their way."""
    planner, task = planner_of(
        str(tiny_folder("mixtral")), known_gpu("h200"), dtype="float32", enable_expert_parallel=True, enable_eplb=True,
        eplb_config={"num_redundant_experts": 1},
    )  # fmt: skip
    stay = replace(task, backend=replace(task.backend, enable_eplb=False, eplb_config=None))
    plan, without = (planner.plan(each, 2).ledger for each in (task, stay))
    assert plan.of("weights") == without.of("weights")
    assert plan.of("workspace") - without.of("workspace") == 3 * 5 * (8 + 4 * 3) + 7 * 3 * 48 * 80 * 4
    assert [ranks for ranks in (1, 2, 3) if planner.can_share(ranks, task.backend)] == [2]


@pytest.mark.parametrize(
    ("gpu", "options"),
    [("l4", {"max_model_len": 100_000}), ("4090", {"max_num_seqs": 8192}), ("l4", {"max_num_batched_tokens": "64k"})],
)
def test_each_smallest_change_fits_and_a_smaller_one_does_not(gpu: str, options: dict[str, object]) -> None:
    planner, task = planner_of(LLAMA, known_gpu(gpu), **options)
    assert planner.plan(task).problem is not None
    changes = [*smallest_changes(planner, task, lambda plan: plan.problem is None)]
    assert changes
    for change in changes:
        assert planner.plan(with_option(task, change.option, change.value)).problem is None
        step = {"max_num_seqs": 1, "gpu_memory_utilization": -0.01}.get(change.option, 16)
        assert planner.plan(with_option(task, change.option, change.value + step)).problem is not None


@pytest.mark.parametrize(("concurrency", "context"), [(4, 4096), (32, 8192), (130, 8192), (100_000, 131_072)])
def test_a_suggestion_that_works_fits(concurrency: int, context: int) -> None:
    planner, task = planner_of(LLAMA, known_gpu("4090"))
    found = suggest(planner, task, Wish(concurrency, context), [1, 2, 4, 8])
    for change in found.changes:
        task = with_option(task, change.option, change.value)
    plan = planner.plan(task, found.num_ranks)
    assert found.works == (plan.problem is None and plan.num_requests(context) >= concurrency)
    assert found.works == (concurrency < 1000)
    assert found.num_ranks == {4: 1, 32: 4, 130: 8}.get(concurrency, 8) or not found.works


def test_a_host_gets_a_larger_cache_if_its_memory_allows(tiny_folder: TinyFolder) -> None:
    task = task_of(str(tiny_folder("llama")))
    wish = Wish(64, 256)
    needed = 64 * 16 + 1
    for room, works in ((1 << 30, True), (4 << 20, False)):
        planner = Planner.of(task, CpuDevice(), room)
        found = suggest(planner, task, wish, [1])
        assert found.works == works
        assert found.needed == needed * planner.plan(task).sizes.layout.block_bytes


def test_no_room_while_loading_names_the_parts_and_a_cure(
    tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch, inline_executor: None
) -> None:
    def refuse(*given: object) -> None:
        raise OutOfMemoryError("the KV cache was refused")

    monkeypatch.setattr("octavo.kernels.cpu.compiled.allocate_pool", refuse)
    with pytest.raises(OutOfMemoryError) as caught:
        Worker(task_of(str(tiny_folder("llama")), backend="cpu", **SMALL))
    assert re.match(r"the KV cache was refused; planned are weights .*KiB, activations .*, rows ", str(caught.value))
    assert "set kv_cache_memory_bytes lower" in str(caught.value)


def test_a_step_without_memory_names_the_numbers_and_a_cure_that_fits(
    tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch, inline_executor: None
) -> None:
    task = task_of(str(tiny_folder("llama")), backend="cpu", **SMALL)
    worker = Worker(task)

    def forward(batch: StepBatch) -> None:
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(worker._runner._model, "forward", forward)
    from octavo.worker.warm_up import every_size

    with pytest.raises(OutOfMemoryError, match="a step of 504 tokens and 8 sequences found no memory") as caught:
        worker.submit(next(every_size(worker.shape.limits, 16, 1))).result()
    worker.close()
    found = re.search(r"([0-9.]+ [KM]iB) in all; .* free; set max_num_batched_tokens=(\d+)", str(caught.value))
    assert found is not None, str(caught.value)
    plan = Planner.of(task, CpuDevice()).plan(task)
    assert found[1] == size(plan.ledger.of("activations") + plan.ledger.of("workspace"))
    assert 0 < int(found[2]) < plan.sizes.limits.max_num_tokens


def test_a_gpus_step_without_memory_leaves_room_by_fewer_blocks() -> None:
    faults = StepFaults(task_of(QWEN, load_format="dummy"), CudaDevice(described=known_gpu("h100")), 60 << 30)
    error = RuntimeError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has ...")
    message = str(faults.explain(StepPlan(0), error))
    assert "for 1.5 GiB of log-probabilities, graphs or kernels: planned are weights 1.1 GiB, " in message
    assert f"KV blocks have 60.0 GiB; set kv_cache_memory_bytes={57 << 30}" in message
    unknown = replace(faults, task=task_of("/none"))
    assert "set max_num_batched_tokens, max_num_seqs or" in str(unknown.explain(StepPlan(0), error))


def test_only_headers_are_read(tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint with bad numbers plans like any other."""
    from octavo.kernels.tensor import StoredTensor

    task = task_of(str(tiny_folder("llama")))
    checkpoint = open_checkpoint(task.model)

    def unread() -> None:
        raise AssertionError("a plan reads no numbers")

    blank = {name: StoredTensor(each.dtype, each.shape, unread) for name, each in checkpoint.stored.items()}
    for device in (CpuDevice(), CudaDevice(described=known_gpu("a100"))):
        assert Planner(checkpoint.with_tensors(blank), device).plan(task).problem is None
