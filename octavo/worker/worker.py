"""The worker: weights, KV pool and rows of one device. It sees plans, never requests, queues or block pools.

WorkerTask -> checkpoint, device -> model loaded -> KV cache sized, bound -> warmed up -> steps: `submit`
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Any

from octavo.cache.blocks import CacheGroup, make_groups
from octavo.kernels.device import Device, KernelCompiler, StepLimits, StepSizes
from octavo.kernels.kv_layout import KVDType, KVGroup, KVLayout
from octavo.kernels.registry import Selection, compile_ahead, converter, select
from octavo.messages import PendingStep, StepPlan
from octavo.models.architecture import Architecture, allowed_model_len
from octavo.models.checkpoint import Checkpoint
from octavo.models.loader import open_checkpoint
from octavo.models.registry import build_model
from octavo.sampling.sampler import Sampler
from octavo.worker.memory import plan_kv_cache
from octavo.worker.rows import LiveRows, RequestStates
from octavo.worker.runner import HostRunner, Runner
from octavo.worker.task import WorkerShape, WorkerTask

SERVER_TOKEN_BUDGET = 8192  # vLLM's for servers: every stream waits for the longest step


class Worker:
    """Builds itself, in whichever process it runs, and is then an Executor. shape: what it found. submit: its runner's
    own method. A host has finished the step when it returns; a device runs it asynchronously."""

    shape: WorkerShape
    submit: Callable[[StepPlan], PendingStep]

    def __init__(self, task: WorkerTask) -> None:
        self._runner: Runner | None = None
        compiler = compile_ahead(task.backend, task.rank, task) if task.warms_up else None
        with nullcontext() if compiler is None else closing(compiler):
            self._build(task, compiler)

    def close(self) -> None:
        """Free its memory. No step can be submitted afterwards."""
        runner, self._runner = self._runner, None
        if runner is not None:
            del self.submit
            runner.close()

    def _build(self, task: WorkerTask, compiler: KernelCompiler | None) -> None:
        selection = select(task.backend, task.rank)
        device = selection.device
        convert = converter(task.backend)
        checkpoint = open_checkpoint(task.model, convert, draws_on_device=device.draws_weights)
        architecture = checkpoint.architecture
        dtypes = device.dtypes(task.model.dtype, task.cache.kv_cache_dtype, checkpoint.dtypes[0])
        groups = make_groups(architecture.windows or (None,) * architecture.num_layers)
        layout = _layout(architecture, groups, task.cache.block_size, dtypes.kv)
        limits = _limits(architecture, task, device.default_sizes())
        if not device.sizes_cache_last:
            layout, limits = _fitted(task, device, layout, limits)
        model = build_model(architecture, checkpoint, _layer_slots(groups), limits.max_model_len)
        loaded = device.load(model, layout, limits, dtypes.compute)
        if device.sizes_cache_last:
            layout, limits = _fitted(task, device, layout, limits)
        self.shape = _shape(checkpoint, selection, groups, layout, limits, device.label(dtypes.compute))
        self._runner = _runner(task, device, loaded.bind(layout.num_blocks), self.shape)
        self.submit = self._runner.submit
        if task.warms_up:
            self._runner.warm_up(limits, compiler)


def _layout(architecture: Architecture, groups: tuple[CacheGroup, ...], block_size: int, dtype: KVDType) -> KVLayout:
    return KVLayout(
        num_blocks=0,  # not known yet
        block_size=block_size,
        groups=tuple(KVGroup(len(group.layers), architecture.num_kv_heads, architecture.head_dim) for group in groups),
        dtype=dtype,
    )


def _limits(architecture: Architecture, task: WorkerTask, default: StepSizes) -> StepLimits:
    sizes = task.scheduler
    model_len = allowed_model_len(architecture, task.model.max_model_len)
    default_tokens = default.max_num_batched_tokens
    if task.serves:
        default_tokens = min(default_tokens, SERVER_TOKEN_BUDGET)
    num_tokens = sizes.max_num_batched_tokens or default_tokens
    return StepLimits(
        max_num_tokens=num_tokens if sizes.enable_chunked_prefill else max(num_tokens, model_len),
        max_num_seqs=sizes.max_num_seqs or default.max_num_seqs,
        max_model_len=model_len,
        vocab_size=architecture.vocab_size,
    )


def _layer_slots(groups: tuple[CacheGroup, ...]) -> list[tuple[int, int]]:
    """For each layer, its group and its place in the group."""
    slots = {layer: (g, place) for g, group in enumerate(groups) for place, layer in enumerate(group.layers)}
    return [slots[layer] for layer in range(len(slots))]


def _fitted(task: WorkerTask, device: Device, layout: KVLayout, limits: StepLimits) -> tuple[KVLayout, StepLimits]:
    """The sizes with as many blocks as fit, and the context length that these allow. All engines share the host's
    memory."""
    free_bytes = device.free_bytes(task.cache.gpu_memory_utilization)
    if not device.sizes_cache_last:
        free_bytes //= task.backend.data_parallel_size
    budget = plan_kv_cache(
        task.cache,
        layout,
        limits.max_num_seqs,
        limits.max_model_len,
        task.model.max_model_len is not None,
        free_bytes,
    )
    return replace(layout, num_blocks=budget.num_blocks), replace(limits, max_model_len=budget.max_model_len)


def _shape(
    checkpoint: Checkpoint,
    selection: Selection,
    groups: tuple[CacheGroup, ...],
    layout: KVLayout,
    limits: StepLimits,
    device: str | None,
) -> WorkerShape:
    return WorkerShape(
        groups=groups,
        layout=layout,
        limits=limits,
        is_asynchronous=selection.device.is_asynchronous,
        label=checkpoint.label,
        architecture=checkpoint.architecture,
        weight_bytes=checkpoint.num_bytes,
        weight_dtypes=checkpoint.dtype_label,
        leftovers=checkpoint.leftovers(),
        tokenizer_source=checkpoint.tokenizer_source,
        sampling_defaults=checkpoint.sampling_defaults,
        backend=selection.why,
        device=device,
    )


def _runner(task: WorkerTask, device: Device, model: Any, shape: WorkerShape) -> Runner:
    """model: bound to its KV pool."""
    limits = shape.limits
    states = RequestStates(limits.max_num_seqs, limits.max_model_len, shape.layout.block_size, len(shape.groups))
    rows = LiveRows(states, Sampler(limits.max_num_seqs))
    if not device.is_asynchronous:
        return HostRunner(model, rows, limits.max_num_seqs, task.logprobs_mode)
    from octavo.worker.device_runner import DeviceRunner  # imports torch, which a host's worker does not need

    captures_graphs = not (task.backend.enforce_eager or task.backend.trace_ops)
    return DeviceRunner(model, rows, limits.max_num_seqs, task.logprobs_mode, captures_graphs=captures_graphs)
