"""Core: an engine without text, as LLMEngine uses it, and its numbers at one moment. Front ends import no engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Protocol

from octavo.lora_request import LoRARequest
from octavo.request import Request, SequenceId
from octavo.scheduler.step import SequenceUpdate


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine's numbers at one moment. Blocks exclude the null block.

    Unshared: counted once for each sequence that holds a block, as if nothing were shared. kv_bytes_read: keys and
    values that a decode step of all running sequences reads if it reads shared blocks once; kv_bytes_read_unshared: if
    it reads them for each sequence.
    """

    num_running: int
    num_waiting: int
    num_blocks: int
    num_used_blocks: int
    num_unshared_blocks: int = 0
    kv_bytes_read: int = 0
    kv_bytes_read_unshared: int = 0

    @property
    def kv_cache_usage(self) -> float:
        """Share of blocks in use, 0 to 1."""
        return self.num_used_blocks / self.num_blocks

    @property
    def sharing_saved(self) -> float:
        """Share of blocks that sharing saves, 0 to 1."""
        return 1 - self.num_used_blocks / self.num_unshared_blocks if self.num_unshared_blocks else 0.0


def total_stats(stats: Iterable[EngineStats]) -> EngineStats:
    """The numbers of several engines together."""
    return EngineStats(*(sum(column) for column in zip(*map(astuple, stats), strict=True)))


class Core(Protocol):
    """An engine without text, as LLMEngine uses it: an EngineCore, or several in other processes (ParallelCore)."""

    def add_request(self, request: Request) -> None: ...
    def abort(self, request_id: str) -> None: ...
    def finish_sequence(self, sequence_id: SequenceId, stop: str) -> bool: ...
    def fail_request(self, request_id: str, reason: str) -> None: ...
    @property
    def has_unfinished(self) -> bool: ...
    def step(self) -> list[SequenceUpdate]: ...
    def stats(self) -> EngineStats: ...
    def reset_prefix_cache(self) -> bool: ...
    def change_adapters(self, load: LoRARequest | None = None, unload: int | None = None) -> list[LoRARequest]:
        """Load an adapter, unload one by its lora_int_id, or neither -> those that are loaded. Raises
        InvalidRequestError."""

    def close(self) -> None: ...
