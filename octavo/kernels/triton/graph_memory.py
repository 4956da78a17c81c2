"""Recording launches as a CUDA graph, which launches them all at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch


@cache
def _capture_stream() -> torch.cuda.Stream:
    """One for all engines of a process: cuBLAS keeps a workspace of 32 MiB for every stream that it has seen."""
    return torch.cuda.Stream()


class GraphMemory:
    """What graphs are captured with that never run at once: a stream, and one pool for what they allocate."""

    def __init__(self) -> None:
        self._stream = _capture_stream()
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, launch: Callable[[], object]) -> torch.cuda.CUDAGraph:
        """Nothing that is launched here runs, and what was launched before runs on meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                launch()
            finally:
                graph.capture_end()
        return graph
