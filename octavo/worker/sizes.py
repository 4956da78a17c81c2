"""The sizes that a worker is built for: from a checkpoint, a task and a device. Workers and memory plans share them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from octavo.cache.blocks import CacheGroup, make_groups
from octavo.config import KVCacheDType
from octavo.kernels.device import Device, DTypes, StepLimits, StepSizes
from octavo.kernels.kv_layout import KVGroup, KVLayout
from octavo.kernels.ops import AttentionLayer
from octavo.models.architecture import Architecture, allowed_model_len
from octavo.models.checkpoint import Checkpoint
from octavo.models.decoder import LayerSlot
from octavo.models.splits import layers_of, own_kv_heads
from octavo.worker.memory import plan_kv_cache
from octavo.worker.task import WorkerTask

SERVER_TOKEN_BUDGET = 8192  # vLLM's for servers: every stream waits for the longest step


@dataclass(frozen=True, slots=True)
class WorkerSizes:
    """layout.num_blocks is 0 until `fitted`; limits.max_model_len is then what the blocks allow. layers: of the rank's
    stage, which alone are in its blocks; groups: of all layers, as their tables are the same on every rank."""

    groups: tuple[CacheGroup, ...]
    layers: range
    layout: KVLayout
    limits: StepLimits
    dtypes: DTypes

    @classmethod
    def of(cls, checkpoint: Checkpoint, task: WorkerTask, device: Device) -> WorkerSizes:
        architecture = checkpoint.architecture
        dtypes = device.dtypes(task.model.dtype, _kv_dtype(task, architecture), checkpoint.number_dtype)
        groups = make_groups(architecture.windows or (None,) * architecture.num_layers)
        num_heads = own_kv_heads(architecture.num_heads, architecture.num_kv_heads, task.world.tensor_parallel_size)
        layers = layers_of(architecture.num_layers, task.world.stage, task.world.pipeline_parallel_size)
        kinds = [KVGroup(len(_own(group, layers)), num_heads, architecture.head_dim) for group in groups]
        layout = KVLayout(0, task.cache.block_size, tuple(kinds), dtypes.kv)  # the number of blocks is not known yet
        return cls(groups, layers, layout, _limits(architecture, task, device.default_sizes()), dtypes)

    @property
    def layer_slots(self) -> list[LayerSlot]:
        """For each layer, its group and its place in the group; of other stages' layers, that of the first."""
        slots = {layer: (g, 0) for g, group in enumerate(self.groups) for layer in group.layers}
        for g, group in enumerate(self.groups):
            slots |= {layer: (g, place) for place, layer in enumerate(_own(group, self.layers))}
        return [slots[layer] for layer in range(len(slots))]

    def fitted(self, task: WorkerTask, free_bytes: int, is_rest: bool) -> WorkerSizes:
        """With as many blocks as fit, and the context length that these allow. is_rest: the bytes are what a GPU has
        left, see `plan_kv_cache`; otherwise all engines share a host's memory."""
        if not is_rest:
            free_bytes //= task.backend.data_parallel_size
        limits, is_len_asked = self.limits, task.model.max_model_len is not None
        given = (task.cache, self.layout, limits.max_num_seqs, limits.max_model_len, is_len_asked, free_bytes)
        budget = plan_kv_cache(*given, is_rest=is_rest)
        return self.agreed(budget.num_blocks, budget.max_model_len)

    def agreed(self, num_blocks: int, max_model_len: int) -> WorkerSizes:
        """With the sizes that every rank can hold."""
        return replace(
            self,
            layout=replace(self.layout, num_blocks=num_blocks),
            limits=replace(self.limits, max_model_len=max_model_len),
        )

    def shared(self, layers: Sequence[AttentionLayer]) -> WorkerSizes:
        """For a rank with these layers, which may have some of the KV heads only."""
        heads = [layer.num_kv_heads for layer in layers[:1]]
        groups = tuple(replace(group, num_kv_heads=number) for group in self.layout.groups for number in heads)
        return replace(self, layout=replace(self.layout, groups=groups))

    def blocks_of(self, num_tokens: int) -> int:
        """The most blocks that one sequence of this many tokens holds."""
        given = (num_tokens, self.limits.max_num_tokens, self.layout.block_size)
        return sum(group.max_blocks(*given) for group in self.groups)


def _kv_dtype(task: WorkerTask, architecture: Architecture) -> KVCacheDType:
    """As asked, else as the checkpoint's kv_cache_scheme says."""
    asked, stated = task.cache.kv_cache_dtype, architecture.quantization
    return asked if asked != "auto" or stated is None else stated.kv_cache or "auto"


def _own(group: CacheGroup, layers: range) -> list[int]:
    """The layers of a group that are among these."""
    return [layer for layer in group.layers if layer in layers]


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
