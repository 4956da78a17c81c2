"""Other libraries' attention over the same numbers of tokens and heads, for `octavo kernels bench paged_attention`."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

_PAGE_SIZE = 16
_WORKSPACE_BYTES = 128 << 20
_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Shape:
    """num_seqs sequences with `cached` tokens of keys and values and `new` queries each, whose own keys follow."""

    num_seqs: int
    cached: int
    new: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def length(self) -> int:
        return self.cached + self.new


Launch = Callable[[], object]


def peer_us(name: str, shape: Shape, device: str) -> float | str:
    """Microseconds of one call, or why there is none."""
    module, prepare = PEERS[name]
    if device == "cpu" and name != "torch SDPA":
        return "GPU only"
    try:
        launch = prepare(importlib.import_module(module), shape, torch.device(device))
        return _host_us(launch) if device == "cpu" else _device_us(launch)
    except ImportError:
        return "not installed"
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:  # another version, or a shape that it lacks
        return f"failed: {type(error).__name__}"


def _sdpa(module: Any, shape: Shape, device: torch.device) -> Launch:
    """torch's, over keys and values that lie densely."""
    q = _random(device, shape.num_seqs, shape.num_heads, shape.new, shape.head_dim)
    k, v = _random(device, 2, shape.num_seqs, shape.num_kv_heads, shape.length, shape.head_dim)
    is_causal = shape.new > 1 and not shape.cached
    grouped = shape.num_heads != shape.num_kv_heads
    return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=grouped)


def _flash_attn(module: Any, shape: Shape, device: torch.device) -> Launch:
    q = _random(device, shape.num_seqs, shape.new, shape.num_heads, shape.head_dim)
    k, v = _random(device, 2, shape.num_seqs, shape.length, shape.num_kv_heads, shape.head_dim)
    lens = torch.full((shape.num_seqs,), shape.length, dtype=torch.int32, device=device)
    return lambda: module.flash_attn_with_kvcache(q, k, v, cache_seqlens=lens, causal=True)


def _flashinfer(module: Any, shape: Shape, device: torch.device) -> Launch:
    if shape.new > 1:
        raise ValueError("only decodes are compared")
    pages = -(-shape.length // _PAGE_SIZE)
    pool = _random(device, shape.num_seqs * pages, 2, _PAGE_SIZE, shape.num_kv_heads, shape.head_dim)
    q = _random(device, shape.num_seqs, shape.num_heads, shape.head_dim)
    starts = torch.arange(0, shape.num_seqs + 1, dtype=torch.int32, device=device) * pages
    order = torch.randperm(shape.num_seqs * pages, device=device).int()
    last = torch.full((shape.num_seqs,), shape.length - (pages - 1) * _PAGE_SIZE, dtype=torch.int32, device=device)
    workspace = torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    wrapper = module.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD")
    heads = (shape.num_heads, shape.num_kv_heads, shape.head_dim, _PAGE_SIZE)
    wrapper.plan(starts, order, last, *heads, q_data_type=q.dtype, kv_data_type=pool.dtype)
    return lambda: wrapper.run(q, pool)


#: name -> its module, and what prepares a call
PEERS: dict[str, tuple[str, Callable[[Any, Shape, torch.device], Launch]]] = {
    "torch SDPA": ("torch", _sdpa),
    "flash-attn": ("flash_attn", _flash_attn),
    "flashinfer": ("flashinfer", _flashinfer),
}


def _random(device: torch.device, *size: int) -> torch.Tensor:
    return torch.randn(size, device=device, dtype=torch.float32 if device.type == "cpu" else torch.bfloat16)


def _host_us(launch: Launch) -> float:
    seconds = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        launch()
        seconds.append(time.perf_counter() - begin)
    return min(seconds) * 1e6


def _device_us(launch: Launch) -> float:
    from octavo.kernels.cuda.timing import graph_time_us

    return graph_time_us([launch])
