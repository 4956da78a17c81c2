"""The worker: weights, KV pool and rows of one device. It sees plans, never requests, queues or block pools.

WorkerTask -> checkpoint, device -> model loaded -> KV cache sized, bound -> warmed up -> steps: `submit`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from octavo.distributed.world import check_alike
from octavo.errors import ConfigError
from octavo.kernels.adapters import AdapterTarget
from octavo.kernels.block_mover import BlockMover
from octavo.kernels.device import CompiledModel, Device, KernelCompiler
from octavo.kernels.ledger import COMPONENTS, Component, Ledger, Measured
from octavo.kernels.program.model_recording import ModelRecording
from octavo.kernels.registry import Selection, compile_ahead, converter, select
from octavo.kernels.vocabulary_parts import VocabularyPart
from octavo.messages import AdapterRead, PendingStep, StepPlan
from octavo.models.checkpoint import Checkpoint
from octavo.models.classifier import Classifier, read_classifier
from octavo.models.kv_scales import read_kv_scales
from octavo.models.loader import open_checkpoint
from octavo.models.registry import build_model
from octavo.models.splits import expert_slots, own_experts, own_slots
from octavo.models.supported import check_on
from octavo.structured.compiler import GrammarCompiler
from octavo.worker.held_as import held_as
from octavo.worker.kv_codes import TO_CALIBRATE, calibrate, source_of_scales
from octavo.worker.plan import explained, num_redundant
from octavo.worker.rows import LiveRows, RequestStates
from octavo.worker.runner import HostRunner, Runner
from octavo.worker.sizes import WorkerSizes, with_adapters
from octavo.worker.step_faults import StepFaults
from octavo.worker.task import WorkerShape, WorkerTask

if TYPE_CHECKING:
    from octavo.distributed.collectives import Collectives
    from octavo.distributed.placed_experts import PlacedExperts
    from octavo.worker.adapters import AdapterStore


class Worker:
    """Builds itself, in whichever process it runs, and is then an Executor. shape: what it found. submit: its runner's
    own method, and mover its model's. A host has finished the step when it returns; a device runs it asynchronously."""

    shape: WorkerShape
    submit: Callable[[StepPlan], PendingStep]
    mover: Callable[[], BlockMover]

    def __init__(self, task: WorkerTask) -> None:
        self._runner: Runner | None = None
        self._ranks: Collectives | None = None
        self._adapters: AdapterStore | None = None
        self._held: Callable[[], Measured] = dict
        self._used: Callable[[], int | None] = lambda: None
        self._placed: PlacedExperts | None = None
        self._system = 0  # set when it is first measured
        first = task.world.stage * task.world.tensor_parallel_size  # the ranks of a stage have the same kernels
        settings = replace(task, world=replace(task.world, rank=first, here=None), meeting=None)
        compiler = compile_ahead(task.backend, task.world, settings) if task.warms_up else None
        with nullcontext() if compiler is None else closing(compiler):
            self._build(task, compiler)

    def close(self) -> None:
        """Free its memory. No step can be submitted afterwards."""
        runner, self._runner = self._runner, None
        self._held = dict
        if self._adapters is not None:
            self._adapters.close()
        if runner is not None:
            del self.submit, self.mover
            runner.close()
            if self._ranks is not None:
                self._ranks.close()

    def constrain(self, compiler: GrammarCompiler) -> None:
        """Compile the grammars of rows with it."""
        assert self._runner is not None, "a closed worker has no rows"
        self._runner.constrain(compiler)

    def read_adapter(self, read: AdapterRead) -> None:
        self._store.read(read)

    def adapters_read(self, seconds: float) -> Mapping[int, str]:
        return self._store.take_read(seconds)

    @property
    def _store(self) -> AdapterStore:
        assert self._adapters is not None, "adapters are read where the model takes them"
        return self._adapters

    def measured(self) -> dict[Component, int]:
        """Bytes of each component but the KV blocks, as their owners tell. On a device with its own memory, `system` is
        what else was in use there after the load, by this process or others, and `graphs` what came to it since."""
        assert self._runner is not None, "a closed worker holds nothing"
        found: dict[Component, int] = {**self._held(), **self._runner.held()}
        if (used := self._used()) is not None:
            layout = self.shape.layout
            rest = used - sum(found.values()) - layout.num_blocks * layout.block_bytes
            self._system = self._system or rest
            found |= {"system": self._system, "graphs": rest - self._system}
        return found

    def _build(self, task: WorkerTask, compiler: KernelCompiler | None) -> None:
        selection = select(task.backend, task.world)
        device = selection.device
        convert = converter(task.backend)
        checkpoint = open_checkpoint(task.model, convert, draws_on_device=device.draws_weights)
        check_on(checkpoint.architecture.family, device.name, checkpoint.label)
        if checkpoint.architecture.pooling is not None:
            _check_embeds(checkpoint, task)
        sizes = WorkerSizes.of(checkpoint, task, device)
        ranks = self._ranks = _meet(task, device)
        with explained(task, checkpoint, device):
            model, sizes, notes, ledger, found = self._load(task, device, checkpoint, sizes, ranks)
            classifier = read_classifier(checkpoint.architecture, checkpoint)
        stages = task.world.pipeline_parallel_size
        label, planned = device.label(sizes.dtypes.compute), {name: ledger.of(name) for name in COMPONENTS}
        shape = _shape(checkpoint, selection, sizes, label, ranks, stages, notes, planned)
        self.shape = replace(
            shape, adapter_targets=found, experts=_experts(checkpoint, task), balances=task.backend.eplb
        )
        self._adapters = _adapters(task, self.shape, model)
        self._runner = _runner(task, device, model, self.shape, ranks, classifier, self._adapters)
        self.submit, self.mover = self._runner.submit, model.mover
        self.measured()
        if task.warms_up:
            self._runner.warm_up(sizes.limits, compiler)
        if self._placed is not None and ranks is not None and task.backend.eplb is not None:
            from octavo.worker.expert_balancer import ExpertBalancer  # experts that stay need none

            self.submit = ExpertBalancer(self._placed, ranks, task.backend.eplb, self.submit).submit

    def _load(
        self, task: WorkerTask, device: Device, checkpoint: Checkpoint, sizes: WorkerSizes, ranks: Collectives | None
    ) -> tuple[Any, WorkerSizes, dict[str, str], Ledger, tuple[AdapterTarget, ...]]:
        """The model, bound to its KV pool; what the shape says of its quantised matrices, KV blocks and memory; and
        what adapters may change."""
        utilization, world = task.cache.gpu_memory_utilization, task.world
        if not device.sizes_cache_last:
            sizes = _fitted(task, sizes, device.free_bytes(Ledger(()), utilization), device, ranks)
        rank = world.tensor_rank, world.tensor_parallel_size
        given = (checkpoint.architecture, checkpoint, sizes.layer_slots, sizes.limits.max_model_len)
        decoder = build_model(
            *(*given, *rank, sizes.layers, read_kv_scales(checkpoint, *rank)),
            divides_experts=task.backend.enable_expert_parallel,
            num_redundant=num_redundant(task),
        )
        scales = source_of_scales(task, sizes, decoder)
        model, targets = with_adapters(decoder, checkpoint.architecture, task.lora, *rank)
        loaded = device.load(model, sizes.layout, sizes.limits, sizes.dtypes.compute, ranks)
        quantised = held_as(model, loaded.parameters)
        recording = ModelRecording.of(model)
        ledger = sizes.ledger(task, device, recording)
        if device.sizes_cache_last:
            sizes = _fitted(task, sizes, device.free_bytes(ledger, utilization), device, ranks)
            ledger = sizes.ledger(task, device, recording)
        self._held, self._used, self._placed = loaded.held, device.used_bytes, loaded.placed
        bound = loaded.bind(sizes.layout.num_blocks)
        if scales == TO_CALIBRATE:
            scales = calibrate(bound, sizes)
        has_parts = ranks is not None and ranks.size > 1 and not device.is_asynchronous and world.is_last_stage
        if ranks is not None and has_parts and checkpoint.architecture.pooling is None:
            bound = VocabularyPart(bound, sizes.limits.vocab_size, ranks)
        return bound, sizes, {"quantised": quantised, "kv_scales": scales}, ledger, targets


def _fitted(
    task: WorkerTask, sizes: WorkerSizes, free_bytes: int, device: Device, ranks: Collectives | None
) -> WorkerSizes:
    """With the KV blocks that every rank has room for: all have as many."""
    is_rest = device.sizes_cache_last
    if ranks is None:
        return sizes.fitted(task, free_bytes, is_rest)
    free_bytes //= device.num_sharing
    if task.world.pipeline_parallel_size == 1:
        return sizes.fitted(task, ranks.smallest(free_bytes)[0], is_rest)
    own = sizes.fitted(task, free_bytes, is_rest)  # blocks of other stages have other sizes
    return own.agreed(*ranks.smallest(own.layout.num_blocks, own.limits.max_model_len))


def _experts(checkpoint: Checkpoint, task: WorkerTask) -> range | None:
    """Those that this rank has of each layer's, if ranks divide them."""
    experts, world = checkpoint.architecture.experts, task.world
    if experts is None or not task.backend.enable_expert_parallel or world.tensor_parallel_size == 1:
        return None
    count, num_ranks = experts.routing.num_experts, world.tensor_parallel_size
    if (redundant := num_redundant(task)) is None:
        return own_experts(count, world.tensor_rank, num_ranks)
    first, own = own_slots(expert_slots(count, redundant, num_ranks), count, world.tensor_rank, num_ranks)
    return range(first, first + len(own))


def _meet(task: WorkerTask, device: Device) -> Collectives | None:
    """Wait for the other ranks, if there are any."""
    if task.meeting is None:
        assert task.world.size == 1, "ranks have a place to meet"
        return None
    from octavo.distributed.collectives import Collectives  # imports torch

    ranks = Collectives(task.world, task.meeting, device.collective_device, in_order=task.backend.deterministic)
    check_alike(ranks.words(device.kind), task.world)
    return ranks


def _shape(
    checkpoint: Checkpoint,
    selection: Selection,
    sizes: WorkerSizes,
    device: str | None,
    ranks: Collectives | None,
    num_stages: int,
    notes: dict[str, str],
    planned: Measured,
) -> WorkerShape:
    return WorkerShape(
        groups=sizes.groups,
        layout=sizes.layout,
        limits=sizes.limits,
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
        place=selection.device.place,
        link=None if ranks is None else ranks.link,
        num_stages=num_stages,
        quantised=notes["quantised"],
        kv_scales=notes["kv_scales"],
        planned=planned,
    )


def _runner(
    task: WorkerTask,
    device: Device,
    model: Any,
    shape: WorkerShape,
    ranks: Collectives | None,
    classifier: Classifier | None,
    adapters: AdapterStore | None,
) -> Runner:
    """model: bound to its KV pool."""
    limits = shape.limits
    sizes = limits.max_num_seqs, limits.max_model_len, shape.layout.block_size, len(shape.groups)
    states = RequestStates(*sizes, has_adapters=task.lora.enable_lora)
    rows = LiveRows(states, limits.max_num_seqs, adapters, draws=task.world.is_last_stage)
    explain = StepFaults(task, device, shape.layout.num_blocks * shape.layout.block_bytes).explain
    given, link = (model, rows, limits.max_num_seqs, task.logprobs_mode), None if ranks is None else ranks.stages
    if shape.architecture.pooling is not None:
        from octavo.worker.pooling_runner import PoolingRunner  # models that generate run without its code

        kind, takes_types = shape.architecture.pooling.kind, shape.architecture.takes_types
        how: dict[str, Any] = {"takes_types": takes_types, "on_device": device.is_asynchronous}
        return PoolingRunner(*given, explain, kind=kind, classifier=classifier, **how)
    if not device.is_asynchronous:
        if link is None:
            return HostRunner(*given, explain, overlaps=task.overlaps)
        from octavo.worker.stage_runner import StageRunner  # one rank runs without its code

        return StageRunner(*given, explain, world=task.world, link=link, width=shape.architecture.hidden_size)
    captures_graphs = not (task.backend.enforce_eager or task.backend.trace_ops)
    captures_graphs = captures_graphs and (ranks is None or ranks.can_capture)
    options: dict[str, Any] = {"captures_graphs": captures_graphs, "explain": explain}
    if link is None:
        from octavo.worker.device_runner import DeviceRunner  # imports torch, which a host's worker does not need

        return DeviceRunner(*given, ranks, **options)
    from octavo.worker.device_stage_runner import LastStageRunner, PassingRunner

    return (LastStageRunner if task.world.is_last_stage else PassingRunner)(*given, ranks, link=link, **options)


def _adapters(task: WorkerTask, shape: WorkerShape, model: CompiledModel) -> AdapterStore | None:
    if not task.lora.enable_lora:
        return None
    from octavo.worker.adapters import AdapterStore  # models without adapters run without its code

    given = task.lora, shape.adapter_targets, shape.architecture.family, model.prepare_adapter
    return AdapterStore(*given, is_stage=task.world.pipeline_parallel_size > 1)


def _check_embeds(checkpoint: Checkpoint, task: WorkerTask) -> None:
    """Raise ConfigError if a model that embeds cannot do so here."""
    label = checkpoint.label
    if (num_stages := task.world.pipeline_parallel_size) > 1:
        raise ConfigError(
            f"pipeline_parallel_size is {num_stages}, but {label} embeds texts, which no pipeline does: set it to 1"
        )
