"""WorkerTask, which a worker is built from, and WorkerShape, which it reports. Both cross processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.cache.blocks import CacheGroup
from octavo.config import BackendConfig, CacheConfig, EngineConfig, LogprobsMode, ModelConfig, SchedulerConfig
from octavo.distributed.world import Meeting, World
from octavo.eplb_config import EPLBConfig
from octavo.kernels.adapters import AdapterTarget
from octavo.kernels.device import StepLimits
from octavo.kernels.kv_layout import KVLayout
from octavo.kernels.ledger import Measured
from octavo.lora_config import LoRAConfig
from octavo.models.architecture import Architecture
from octavo.models.located import TokenizerSource


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTask:
    """A worker's sections of the config, and its place among the ranks of its model. meeting: where they meet; None if
    there is one rank. serves: for a server, whose users wait
    for every token. Steps are then small unless the options set their size, and kernels are compiled before the
    first. moves_blocks: KV blocks travel between this engine and others. overlaps: a host gets its next step before the
    engine knows this one's tokens."""

    model: ModelConfig
    cache: CacheConfig
    scheduler: SchedulerConfig
    backend: BackendConfig
    logprobs_mode: LogprobsMode
    world: World = field(default_factory=World)
    meeting: Meeting | None = None
    serves: bool = False
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    moves_blocks: bool = False
    overlaps: bool = False

    @property
    def warms_up(self) -> bool:
        """Whether kernels are compiled, and run once, before the first request."""
        return self.serves and not self.backend.trace_ops

    @classmethod
    def of(
        cls, config: EngineConfig, *, serves: bool = False, moves_blocks: bool = False, overlaps: bool = False
    ) -> WorkerTask:
        return cls(
            model=config.model,
            cache=config.cache,
            scheduler=config.scheduler,
            backend=config.backend,
            logprobs_mode=config.observe.logprobs_mode,
            world=World(
                tensor_parallel_size=config.backend.tensor_parallel_size,
                pipeline_parallel_size=config.backend.pipeline_parallel_size,
            ),
            serves=serves,
            lora=config.lora,
            moves_blocks=moves_blocks,
            overlaps=overlaps,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerShape:
    """The sizes that scheduler, cache and worker share, and what the engine needs to know of model and device.

    is_asynchronous: its steps run while the host does other work. label: the checkpoint's name for people.
    weight_bytes, weight_dtypes: of the checkpoint. leftovers: its tensors that the model does not use.
    backend: its name, and why it was chosen. device: the model's device, if the backend's name does not say it.
    place: where this worker computes. link: what its rank exchanges results by, if there are others. ranks: the places
    of all ranks, if there are several. num_stages: of the pipeline that they are. quantised: how the device multiplies
    the quantised matrices, if there are any. kv_scales: where those of KV blocks come from, if their type has any.
    experts: of each layer, those that this rank has whole; None: it has a part of every one, or there are none.
    balances: how experts change places, if they do; experts are then the rank's slots.
    adapter_targets: what adapters may change; empty: there are none. planned: bytes of each component but the KV
    blocks, with the largest steps.
    """

    groups: tuple[CacheGroup, ...]
    layout: KVLayout
    limits: StepLimits
    is_asynchronous: bool
    label: str
    architecture: Architecture
    weight_bytes: int
    weight_dtypes: str
    leftovers: list[str]
    tokenizer_source: TokenizerSource | None
    sampling_defaults: Mapping[str, Any]
    backend: str
    device: str | None
    place: str = ""
    link: str | None = None
    ranks: tuple[str, ...] = ()
    num_stages: int = 1
    quantised: str = ""
    kv_scales: str = ""
    experts: range | None = None
    balances: EPLBConfig | None = None
    adapter_targets: tuple[AdapterTarget, ...] = ()
    planned: Measured = field(default_factory=dict)
