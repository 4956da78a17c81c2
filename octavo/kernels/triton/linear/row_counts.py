"""The row counts at which a library's products are fast: measured, so that steps can be padded to them.

A library has a few tile shapes and picks one by rule. The four products of a Llama 8B layer by cuBLAS on an H100:

    rows   256   288   304   352   384   448   512   528   576   640
    us     204   251   229   265   263   448   303   369   411   414

So 430 rows are better padded to 512 than to 448, and 515 to 528 than to 576. A count is kept if its products take 2 %
less time than those of the next kept count. Counts are measured once for a model's shapes on a machine and stored in
the cache folder: every process then pads the same steps alike, and gives the same tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from octavo.env import cache_dir
from octavo.kernels.cuda.step import GraphMemory

MOST = 8192
_CANDIDATES = (*range(16, 1024, 16), *range(1024, 2048, 64), *range(2048, 4096, 256), *range(4096, MOST + 1, 1024))
#: used if nothing can be measured
UNMEASURED = (*range(64, 1024, 64), *range(1024, 4096, 256), *range(4096, MOST + 1, 1024))
_GAIN = 0.02
_COLD_BYTES = 128 << 20  # weights that a turn reads: more than the L2 cache holds
_TURNS = 4  # through all candidates
_METHOD = 2  # version of the measurement: results of others in the cache folder are ignored


def cheap_row_counts(matrices: Sequence[torch.Tensor], most: int, scratch: torch.Tensor) -> tuple[int, ...]:
    """Ascending; the last is `most`, or MOST if that is less. matrices: the weights [out, in] of a forward pass.
    scratch: of the weights' type, with room for an input and a result of `most` rows."""
    most = min(most, MOST)
    candidates = (*(count for count in _CANDIDATES if count < most), most)
    if not matrices or matrices[0].device.type != "cuda":
        return (*(count for count in UNMEASURED if count < most), most)
    path = _path(matrices, candidates)
    times = _read(path, candidates)
    if times is None:
        times = _measure(matrices, candidates, scratch)
        _write(path, candidates, times)
    return keep_cheap(candidates, times)


def padded_size(num_seqs: int, max_num_seqs: int, row_counts: Sequence[int]) -> int:
    """For one row per sequence: 1, 2, 3, 4, 8, then in steps of 8 to 256, then the model's row counts; at most
    max_num_seqs."""
    if num_seqs <= 4:
        size = num_seqs
    elif num_seqs <= 256:
        size = -(-num_seqs // 8) * 8
    else:
        size = padded_tokens(num_seqs, row_counts)
    return min(size, max_num_seqs)


def padded_tokens(num_tokens: int, row_counts: Sequence[int]) -> int:
    """The smallest of the ascending row counts that is enough; num_tokens itself if none is."""
    index = bisect_left(row_counts, num_tokens)
    return row_counts[index] if index < len(row_counts) else num_tokens


def keep_cheap(counts: Sequence[int], times: Sequence[float]) -> tuple[int, ...]:
    """Of ascending counts, the last, and those that take clearly less time than the next kept one."""
    kept, least = [counts[-1]], times[-1]
    for count, time in zip(reversed(counts[:-1]), reversed(times[:-1]), strict=True):
        if time < least * (1 - _GAIN):
            kept.append(count)
            least = time
    return tuple(reversed(kept))


def _path(matrices: Sequence[torch.Tensor], candidates: Sequence[int]) -> Path:
    shapes = [[*matrix.shape, str(matrix.dtype)] for matrix in matrices]
    about = [_METHOD, torch.cuda.get_device_name(), torch.__version__, torch.version.cuda, shapes, candidates]
    return cache_dir() / "row_counts" / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]}.json"


def _read(path: Path, candidates: Sequence[int]) -> list[float] | None:
    try:
        found = json.loads(path.read_text())
        times = [float(found["microseconds"][str(count)]) for count in candidates]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # missing or incomplete: measure again
    return times


def _write(path: Path, candidates: Sequence[int], times: Sequence[float]) -> None:
    """Store the times for later processes, if the folder can be written."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(exist_ok=True)
        rounded = {count: round(time, 2) for count, time in zip(candidates, times, strict=True)}
        partial.write_text(json.dumps({"gpu": torch.cuda.get_device_name(), "microseconds": rounded}))
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)


def _measure(matrices: Sequence[torch.Tensor], counts: Sequence[int], scratch: torch.Tensor) -> list[float]:
    """Microseconds for one or a few layers, by rows. Measured as graphs: for short products, a host that launches one
    after another would be the limit."""
    some = _some_of_each_shape(matrices)
    most = counts[-1]
    assert scratch.numel() >= most * max(sum(weight.shape) for weight in some), "room for an input and a result"
    scratch.normal_()

    def multiply(count: int) -> None:
        for weight in some:
            columns, depth = weight.shape
            x, y = scratch[: count * depth], scratch[most * depth : most * depth + count * columns]
            torch.mm(x.view(count, depth), weight.t(), out=y.view(count, columns))

    for count in counts:  # load each kernel, which happens at its first use
        multiply(count)
    memory = GraphMemory(scratch.device)
    graphs = [memory.capture(partial(multiply, count))[0] for count in counts]
    turns = [[_timed(graph) for graph in graphs] for _ in range(_TURNS)]
    torch.cuda.synchronize()
    times = [[begin.elapsed_time(end) * 1e3 for begin, end in turn] for turn in turns]
    return np.min(times[1:], axis=0).tolist()  # the first turn raises the clocks


def _timed(graph: torch.cuda.CUDAGraph) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    graph.replay()
    end.record()
    return begin, end


def _some_of_each_shape(matrices: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The matrices of the first layers, until they exceed the L2 cache."""
    some: list[torch.Tensor] = []
    num_bytes = 0
    for matrix in matrices:
        if num_bytes >= _COLD_BYTES and any(matrix.shape == one.shape for one in some):
            break
        some.append(matrix)
        num_bytes += matrix.nbytes
    return some
