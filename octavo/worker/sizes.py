"""The sizes that a worker is built for: from a checkpoint, a task and a device. Workers and memory plans share them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from octavo.cache.blocks import CacheGroup, make_groups
from octavo.config import KVCacheDType
from octavo.errors import ConfigError
from octavo.kernels.adapters import AdapterSizes, AdapterTarget
from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.device import Device, DTypes, StepLimits, StepSizes
from octavo.kernels.kv_layout import KVGroup, KVLayout
from octavo.kernels.ledger import Entry, Ledger
from octavo.kernels.model import Model
from octavo.kernels.program.model_recording import ModelRecording
from octavo.lora_config import LoRAConfig
from octavo.models.architecture import Architecture
from octavo.models.checkpoint import Checkpoint
from octavo.models.context_len import allowed_model_len
from octavo.models.decoder import Decoder, LayerSlot
from octavo.models.registry import parameters_of
from octavo.models.splits import layers_of, own_kv_heads
from octavo.worker.memory import plan_kv_cache
from octavo.worker.task import WorkerTask

SERVER_TOKEN_BUDGET = 8192  # vLLM's for servers: every stream waits for the longest step


@dataclass(frozen=True, slots=True)
class WorkerSizes:
    """layout.num_blocks is 0 until `fitted`; limits.max_model_len is then what the blocks allow. layers: of the rank's
    stage, which alone are in its blocks; groups: of all layers, as their tables are the same on every rank.
    is_causal: False: nothing is kept from one step to the next, so all layers share the blocks of one."""

    groups: tuple[CacheGroup, ...]
    layers: range
    layout: KVLayout
    limits: StepLimits
    dtypes: DTypes
    is_causal: bool = True

    @classmethod
    def of(cls, checkpoint: Checkpoint, task: WorkerTask, device: Device) -> WorkerSizes:
        architecture = checkpoint.architecture
        dtypes = device.dtypes(task.model.dtype, _kv_dtype(task, architecture, device), checkpoint.number_dtype)
        windows = architecture.windows or (None,) * architecture.num_layers
        groups = make_groups(windows if architecture.is_causal else (None,))
        num_heads = own_kv_heads(architecture.num_heads, architecture.num_kv_heads, task.world.tensor_parallel_size)
        layers = layers_of(architecture.num_layers, task.world.stage, task.world.pipeline_parallel_size)
        shape = num_heads, architecture.head_dim, architecture.latent is not None
        kinds = [KVGroup(len(_own(group, layers)), *shape) for group in groups]
        layout = KVLayout(0, task.cache.block_size, tuple(kinds), dtypes.kv)  # the number of blocks is not known yet
        limits = _limits(architecture, task, device.default_sizes())
        return cls(groups, layers, layout, limits, dtypes, architecture.is_causal)

    @property
    def layer_slots(self) -> list[LayerSlot]:
        """For each layer, its group and its place in the group; of other stages' layers, that of the first."""
        if not self.is_causal:
            return [(0, 0)] * len(self.layers)
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
        num_blocks = budget.num_blocks if self.is_causal else min(budget.num_blocks, self._blocks_of_steps)
        return self.agreed(num_blocks, budget.max_model_len)

    @property
    def _blocks_of_steps(self) -> int:
        """Blocks that two steps need at most, and the null block: more would only be memory that is never in a cache
        of the processor."""
        limits = self.limits
        return 1 + 2 * (limits.max_num_tokens // self.layout.block_size + limits.max_num_seqs)

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

    def ledger(self, task: WorkerTask, device: Device, model: ModelRecording) -> Ledger:
        """What a worker with these sizes takes, beside KV blocks."""
        made = device.ledger(model, self.layout, self.limits, self.dtypes.compute)
        moved = device.move_bytes(self.layout) if task.moves_blocks else 0
        return made.beside(Entry("workspace", moved, "KV blocks that travel", is_late=True))

    def blocks_of(self, num_tokens: int) -> int:
        """The most blocks that one sequence of this many tokens holds."""
        given = (num_tokens, self.limits.max_num_tokens, self.layout.block_size)
        return sum(group.max_blocks(*given) for group in self.groups)


def with_adapters(
    model: Decoder, architecture: Architecture, options: LoRAConfig, rank: int = 0, num_ranks: int = 1
) -> tuple[Model, tuple[AdapterTarget, ...]]:
    """A rank's model with slots for adapters, if the options ask for them, and what these may change."""
    if not options.enable_lora:
        return model, ()
    from octavo.lora.adapted_model import adapt, targets  # models without adapters run without its code

    sizes = AdapterSizes(options.max_loras, options.max_lora_rank)
    adapted = adapt(model, parameters_of(architecture), sizes, rank, num_ranks)
    return adapted, targets(adapted)


def _kv_dtype(task: WorkerTask, architecture: Architecture, device: Device) -> KVCacheDType:
    """As asked, else as the checkpoint's kv_cache_scheme says. An encoder's lasts for a step only: on a host it is
    float32, as all that is computed there, and elsewhere what the device computes in."""
    asked, stated = task.cache.kv_cache_dtype, architecture.quantization
    if not architecture.is_causal:
        if asked not in ("auto", "float32"):
            raise ConfigError(
                f"kv_cache_dtype is {asked!r}, but a {architecture.family} model keeps no keys and values from step to "
                "step: leave it at 'auto'"
            )
        return asked if device.is_asynchronous else "float32"
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
    cuts_prompts = sizes.enable_chunked_prefill and not architecture.takes_whole_prompts
    return StepLimits(
        max_num_tokens=num_tokens if cuts_prompts else max(num_tokens, model_len),
        max_num_seqs=sizes.max_num_seqs or default.max_num_seqs,
        max_model_len=model_len,
        vocab_size=architecture.vocab_size,
    )
