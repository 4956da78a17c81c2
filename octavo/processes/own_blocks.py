"""OwnBlocks: this engine's KV blocks, for those that exchange them with other engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from octavo.cache.block_loans import BlockLoans
from octavo.engine.core import EngineCore
from octavo.kernels.block_mover import BlockMover
from octavo.observe.event_log import EventLog
from octavo.processes.block_messages import BlockCard


@dataclass(frozen=True, slots=True)
class OwnBlocks:
    """core, loans and events belong to the engine's thread; post, from any thread, has work done there. secret: what
    all engines that exchange blocks know."""

    card: BlockCard
    core: EngineCore
    loans: BlockLoans
    mover: BlockMover
    events: EventLog
    secret: bytes = field(repr=False)
    post: Callable[[Callable[[], None]], None]
