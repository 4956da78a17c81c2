"""The cache and the scheduler of a recorded engine, built again: new, or as they were at a snapshot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from octavo.cache.blocks import CacheGroup
from octavo.cache.kv_cache import KVCache
from octavo.config import SchedulerConfig
from octavo.errors import LogError
from octavo.lora_config import LoRAConfig
from octavo.observe.event_log import EventLog
from octavo.observe.events import EngineStarted
from octavo.observe.flight_log import LogHeader
from octavo.scheduler.scheduler import Scheduler

_MOST_BLOCKS, _MOST_TOKENS, MOST_SEQS = 1 << 24, 1 << 24, 1 << 16


def check_sizes(sizes: EngineStarted) -> None:
    """Raises LogError: a file may say anything."""
    limits = {"num_blocks": _MOST_BLOCKS, "max_model_len": _MOST_TOKENS, "block_size": _MOST_TOKENS}
    limits |= {"max_num_seqs": MOST_SEQS, "max_num_batched_tokens": 1 << 30, "num_stages": MOST_SEQS}
    for name, most in limits.items():
        if not 1 <= getattr(sizes, name) <= most:
            raise LogError(f"the log's {name} is {getattr(sizes, name):,}, allowed for a replay are 1 to {most:,}")
    if not 1 <= len(sizes.windows) <= 1 << 10 or any(window is not None and window < 1 for window in sizes.windows):
        raise LogError(f"the log's windows are {sizes.windows}, allowed are None and numbers from 1 on")


def recorded_cache(sizes: EngineStarted, events: EventLog) -> KVCache:
    return KVCache(
        num_blocks=sizes.num_blocks + 1,
        block_size=sizes.block_size,
        groups=[CacheGroup((), window) for window in sizes.windows],
        enable_prefix_caching=sizes.enable_prefix_caching,
        events=events,
        clock=lambda: 0.0,
    )


def recorded_scheduler(header: LogHeader, config: dict[str, Any], cache: KVCache, events: EventLog) -> Scheduler:
    """config: options in place of the recorded ones."""
    sizes, options = header.started, {**header.config.get("scheduler", {}), **config}
    adapters = _recorded_adapters(header.config.get("lora", {}))
    chosen = SchedulerConfig(**{"max_num_seqs": sizes.max_num_seqs, **options})
    return Scheduler(
        replace(chosen, max_num_seqs=chosen.max_num_seqs or sizes.max_num_seqs),
        cache,
        max_model_len=sizes.max_model_len,
        max_num_batched_tokens=chosen.max_num_batched_tokens or sizes.max_num_batched_tokens,
        events=events,
        clock=lambda: 0.0,
        num_stages=sizes.num_stages,
        num_adapter_slots=adapters.max_loras if adapters.enable_lora else 0,
        num_kept_adapters=adapters.num_kept if adapters.enable_lora else 0,
    )


def _recorded_adapters(options: dict[str, Any]) -> LoRAConfig:
    names = ("enable_lora", "max_loras", "max_cpu_loras")
    return LoRAConfig(**{name: options[name] for name in names if name in options})
