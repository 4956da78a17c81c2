"""Plans a worker's memory before anything is loaded: from headers and configuration, for a GPU that need not be here.

    checkpoint -> model -> recorded -> a rank's share -> Device.ledger -> bytes left -> plan_kv_cache -> blocks

It takes the same steps as `worker.py`, through the same functions, so a plan and an engine with the same options agree.
`smallest_changes` searches the options for the nearest plan that fits; every out-of-memory while loading names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from octavo.config import BackendConfig, EngineConfig
from octavo.distributed.world import World
from octavo.errors import ConfigError, OutOfMemoryError
from octavo.kernels.device import Device
from octavo.kernels.ledger import COMPONENTS, Ledger, size
from octavo.kernels.program.model_recording import ModelRecording
from octavo.kernels.registry import select
from octavo.lora_config import LoRAConfig
from octavo.models.checkpoint import Checkpoint
from octavo.models.loader import open_checkpoint
from octavo.models.located import has_weights
from octavo.models.registry import build_model
from octavo.models.splits import expert_slots, head_splits
from octavo.models.supported import check_on
from octavo.observe.machine import memory
from octavo.vllm_options import ENGINE_OPTIONS
from octavo.worker.sizes import WorkerSizes, with_adapters
from octavo.worker.task import WorkerTask

#: whether an engine takes the option, or refuses it
RUNS_ON_SEVERAL = "tensor_parallel_size" not in ENGINE_OPTIONS
_RANKS = (2, 4, 8) if RUNS_ON_SEVERAL else ()
_UTILIZATIONS = tuple(share / 100 for share in range(50, 99))


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """One rank's memory. num_ranks: that share its stage. sizes: with the blocks that fit. problem: why the engine
    would not start, or None. stage: its number, of num_stages."""

    num_ranks: int
    sizes: WorkerSizes
    ledger: Ledger
    problem: str | None
    stage: int = 0
    num_stages: int = 1

    @property
    def kv_bytes(self) -> int:
        return self.sizes.layout.num_blocks * self.sizes.layout.block_bytes

    @property
    def total(self) -> int:
        return self.ledger.total + self.kv_bytes

    @property
    def num_blocks(self) -> int:
        """Blocks that sequences can have: all but the null block."""
        return max(0, self.sizes.layout.num_blocks - 1)

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values, in all cache groups."""
        layout = self.sizes.layout
        return len(layout.groups) * layout.block_bytes // layout.block_size

    def num_requests(self, num_tokens: int) -> int:
        """How many requests of this length run at once, each with a sequence that shares nothing."""
        if num_tokens > self.sizes.limits.max_model_len:
            return 0
        return min(self.num_blocks // self.sizes.blocks_of(num_tokens), self.sizes.limits.max_num_seqs)


class Planner:
    """Plans one model on one device, for any options. memory: the device's bytes, if they are not those here."""

    def __init__(self, checkpoint: Checkpoint, device: Device, memory: int | None = None) -> None:
        self._checkpoint, self._device, self._memory = checkpoint, device, memory
        self._recordings: dict[tuple[range, int, LoRAConfig, bool, int | None], ModelRecording] = {}

    @classmethod
    def of(cls, task: WorkerTask, device: Device, memory: int | None = None) -> Planner:
        """Opens the checkpoint. Of a hub model that is not here only the configuration is read."""
        model = task.model
        if model.load_format == "auto" and not has_weights(model):
            model = replace(model, load_format="dummy")
        checkpoint = open_checkpoint(model, draws_on_device=True)
        check_on(checkpoint.architecture.family, device.name, checkpoint.label)
        return cls(checkpoint, device, memory)

    @property
    def label(self) -> str:
        return self._checkpoint.label

    @property
    def host_memory(self) -> int | None:
        """Free bytes of a host; None for a GPU."""
        return None if self._device.sizes_cache_last else self._memory or memory()[1]

    def can_share(self, num_ranks: int, backend: BackendConfig | None = None) -> bool:
        """backend: if ranks are to divide the experts, as it says; None: by heads alone."""
        a = self._checkpoint.architecture
        if num_ranks not in head_splits(a.num_heads, a.num_kv_heads):
            return False
        if backend is None or a.experts is None or not backend.enable_expert_parallel:
            return True
        try:
            if backend.eplb is not None:
                expert_slots(a.experts.routing.num_experts, backend.eplb.num_redundant_experts, num_ranks)
        except ConfigError:
            return False
        return num_ranks <= a.experts.routing.num_experts

    def plan(self, task: WorkerTask, num_ranks: int = 1) -> MemoryPlan:
        device, utilization = self._device, task.cache.gpu_memory_utilization
        stage = task.world.stage, task.world.pipeline_parallel_size
        sizes = WorkerSizes.of(self._checkpoint, task, device)
        model = self._recording(sizes, num_ranks, task)
        sizes = sizes.shared(model.body.layers)
        ledger = sizes.ledger(task, device, model)
        try:
            free_bytes = device.planned_bytes(ledger, utilization, self._memory) // device.num_sharing
            sizes = sizes.fitted(task, free_bytes, device.sizes_cache_last)
        except OutOfMemoryError as error:
            return MemoryPlan(num_ranks, sizes, ledger, str(error), *stage)
        if not device.sizes_cache_last:
            ledger = sizes.ledger(task, device, model)
        return MemoryPlan(num_ranks, sizes, ledger, None, *stage)

    def stages(self, task: WorkerTask, num_ranks: int, num_stages: int) -> list[MemoryPlan]:
        """Of each stage of a pipeline, with the blocks that all have room for."""
        plans = [self.plan(of_stage(task, stage, num_stages), num_ranks) for stage in range(num_stages)]
        blocks = min(plan.sizes.layout.num_blocks for plan in plans)
        longest = min(plan.sizes.limits.max_model_len for plan in plans)
        return [replace(plan, sizes=plan.sizes.agreed(blocks, longest)) for plan in plans]

    def starts(self, task: WorkerTask, num_ranks: int) -> bool:
        """Whether the engine would start on that many GPUs."""
        if not self._device.sizes_cache_last or not self.can_share(num_ranks, task.backend):
            return False
        try:
            return self.plan(task, num_ranks).problem is None
        except ConfigError:  # blocks of numbers that do not divide
            return False

    def _recording(self, sizes: WorkerSizes, num_ranks: int, task: WorkerTask) -> ModelRecording:
        """The share of the last rank, which has most where a size does not divide. Rotary tables are made for one
        position: the ledger counts those of the whole context."""
        lora, redundant = task.lora, num_redundant(task)
        own = (sizes.layers, num_ranks, lora, divides := task.backend.enable_expert_parallel, redundant)
        if own not in self._recordings:
            checkpoint, last = self._checkpoint, num_ranks - 1
            given = (checkpoint.architecture, checkpoint, sizes.layer_slots, 1, last, num_ranks, sizes.layers)
            model = build_model(*given, divides_experts=divides, num_redundant=redundant)
            adapted, _ = with_adapters(model, checkpoint.architecture, lora, last, num_ranks)
            self._recordings[own] = ModelRecording.of(adapted)
        return self._recordings[own]


def num_redundant(task: WorkerTask) -> int | None:
    """Of a layer's experts, if they change places."""
    eplb = task.backend.eplb
    return None if eplb is None else eplb.num_redundant_experts


def of_stage(task: WorkerTask, stage: int, num_stages: int) -> WorkerTask:
    """The task of a rank there."""
    return replace(task, world=World(rank=stage, pipeline_parallel_size=num_stages))


@dataclass(frozen=True, slots=True)
class Change:
    """An option and the value nearest to the present one with which the plan is good."""

    option: str
    value: int | float

    def __str__(self) -> str:
        return f"{self.option}={self.value}"


def with_option(task: WorkerTask, option: str, value: int | float) -> WorkerTask:
    """The same task with another value of an engine option."""
    for name in ("model", "cache", "scheduler"):
        section = getattr(task, name)
        if option in section.__dataclass_fields__:
            return replace(task, **{name: replace(section, **{option: value})})
    raise AssertionError(f"{option} is no size")


def smallest_changes(
    planner: Planner, task: WorkerTask, is_good: Callable[[MemoryPlan], bool], num_ranks: int = 1
) -> Iterator[Change]:
    """Changes of one option each that make the plan good, each as small as it can be."""
    limits = planner.plan(task, num_ranks).sizes.limits

    def good(option: str, value: int | float) -> bool:
        try:
            return is_good(planner.plan(with_option(task, option, value), num_ranks))
        except ConfigError:
            return False

    for option, now, least in (
        ("max_num_batched_tokens", limits.max_num_tokens, 16),
        ("max_num_seqs", limits.max_num_seqs, 1),
        ("max_model_len", limits.max_model_len, 16),
    ):
        found = _largest(least, now, lambda value, option=option: good(option, value))  # type: ignore[misc]
        if found is not None:
            yield Change(option, found)
    share = task.cache.gpu_memory_utilization
    higher = (value for value in _UTILIZATIONS if value > share)
    if (shared := next((value for value in higher if good("gpu_memory_utilization", value)), None)) is not None:
        yield Change("gpu_memory_utilization", shared)


def _largest(least: int, now: int, is_good: Callable[[int], bool]) -> int | None:
    """The largest multiple of `least` below `now` that is good, if a smaller value is never worse; None if none is."""
    low, high = 1, (now - 1) // least
    if high < 1 or not is_good(least):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if is_good(middle * least) else (low, middle - 1)
    return low * least


def planned(config: EngineConfig, *, serves: bool = False) -> dict[str, int]:
    """Bytes by component, KV blocks included, of an engine with these options here, or of a rank of its first stage."""
    task = WorkerTask.of(config, serves=serves)
    num_ranks, num_stages = task.world.tensor_parallel_size, task.world.pipeline_parallel_size
    plan = Planner.of(task, select(task.backend, task.world).device).stages(task, num_ranks, num_stages)[0]
    return {component: plan.ledger.of(component) for component in COMPONENTS} | {"KV blocks": plan.kv_bytes}


def told(plan: MemoryPlan) -> str:
    """The components and their numbers, in one clause."""
    parts = [(component, plan.ledger.of(component)) for component in COMPONENTS]
    listed = ", ".join(f"{component} {size(num_bytes)}" for component, num_bytes in parts if num_bytes)
    return f"{listed}: {size(plan.ledger.total)} without KV blocks"


def advice(planner: Planner, task: WorkerTask, num_ranks: int = 1) -> str:
    """What the engine needs, and the smallest change of an option with which it starts."""
    plan = planner.plan(task, num_ranks)
    if plan.problem is None:
        option = "gpu_memory_utilization" if planner.host_memory is None else "kv_cache_memory_bytes"
        cure = f"that fits where nothing else takes memory: end other programs, or set {option} lower"
        return f"planned are {told(plan)}; {cure}"
    changes = [*smallest_changes(planner, task, lambda changed: changed.problem is None, num_ranks)]
    more = next((ranks for ranks in _RANKS if ranks > num_ranks and planner.starts(task, ranks)), None)
    if more is not None:
        changes.append(Change("tensor_parallel_size", more))
    cure = f"set {' or '.join(map(str, changes))}" if changes else "take a smaller model, or more memory"
    return f"planned are {told(plan)}; {cure}"


@contextmanager
def explained(task: WorkerTask, checkpoint: Checkpoint, device: Device) -> Iterator[None]:
    """An OutOfMemoryError from inside tells what was planned and what to change as well."""
    try:
        yield
    except OutOfMemoryError as error:
        try:
            text = advice(Planner(checkpoint, device), task, task.world.tensor_parallel_size)
        except Exception:  # the plan needs memory, too: the first error matters more
            raise error from None
        raise OutOfMemoryError(f"{error}; {text}") from error


def plan_facts(plan: MemoryPlan) -> dict[str, Any]:
    """For JSON."""
    layout, limits = plan.sizes.layout, plan.sizes.limits
    stage = {"pipeline_parallel_size": plan.num_stages, "stage": plan.stage, "layers": [*plan.sizes.layers]}
    return {
        "tensor_parallel_size": plan.num_ranks,
        **(stage if plan.num_stages > 1 else {}),
        "problem": plan.problem,
        **{component: plan.ledger.of(component) for component in COMPONENTS},
        "kv_cache": plan.kv_bytes,
        "total": plan.total,
        "kv_bytes_per_token": plan.token_bytes,
        "block_bytes": layout.block_bytes,
        "block_size": layout.block_size,
        "num_blocks": plan.num_blocks,
        "max_model_len": limits.max_model_len,
        "max_num_seqs": limits.max_num_seqs,
        "max_num_batched_tokens": limits.max_num_tokens,
    }
