"""Metrics whose labels are what they tell: the KV cache's options, and the adapters that requests run with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from octavo.observe.events import EngineStarted
from octavo.observe.exposition import Labels
from octavo.observe.lives import RequestLife


def cache_info(sizes: EngineStarted) -> Labels:
    """The cache options and the engine's actual sizes, by vLLM's names."""
    facts: dict[str, object] = {
        **dict(sizes.cache_options),
        "block_size": sizes.block_size,
        "num_gpu_blocks": sizes.num_blocks,
        "block_bytes": sizes.block_bytes,
        "enable_prefix_caching": sizes.enable_prefix_caching,
    }
    return tuple((name, str(value)) for name, value in facts.items())


def lora_info(max_loras: int, lives: Iterable[RequestLife], running: Iterable[RequestLife]) -> Labels:
    """The names of adapters of running sequences, and of waiting ones, as in vLLM. lives: all requests; running: that
    of each running sequence with an adapter."""
    num_running = Counter(life.request_id for life in running)
    adapted = [life for life in lives if life.adapter]
    waiting = dict.fromkeys(life.adapter for life in adapted if num_running[life.request_id] < life.num_live)
    runs = dict.fromkeys(life.adapter for life in adapted if num_running[life.request_id])
    return (
        ("max_lora", str(max_loras)),
        ("waiting_lora_adapters", ",".join(waiting)),
        ("running_lora_adapters", ",".join(runs)),
    )
