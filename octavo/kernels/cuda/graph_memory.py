"""Recording launches as a CUDA graph, which launches them all at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch

Launched = TypeVar("Launched")


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One a GPU for all engines of a process: cuBLAS keeps a workspace of 32 MiB for every stream that it has seen."""
    return torch.cuda.Stream(device)


class GraphMemory:
    """What graphs are captured with that never run at once: a stream, and one pool for what they allocate."""

    def __init__(self, device: torch.device) -> None:
        self._stream = _capture_stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, launch: Callable[[], Launched]) -> tuple[torch.cuda.CUDAGraph, Launched]:
        """The graph, and what `launch` returned. Nothing that it launches runs, and what was launched before runs on
        meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                launched = launch()
            finally:
                graph.capture_end()
        return graph, launched
