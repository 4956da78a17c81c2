"""Measures what steps of a model cost, for `octavo bench cost`: the shapes that are timed, and their points.

    decodes alone     batches 1, 2, 4 ... of several context lengths
    with chunks       steps of 2, 8, 32 ... tokens, and of all that fit: a chunk from several positions on, beside 0, 4,
                      16, 64 ... decodes. A device computes tokens in tiles, so there the points are closer

`step_timer.py` times a step; `measure_host.py` measures what the host adds to it.
"""

from __future__ import annotations

from collections.abc import Callable

from octavo.executor.executor import Executor
from octavo.simulator.cost_table import DecodePoint, EngineSizes, MixedPoint
from octavo.simulator.step_timer import BESIDE_CONTEXT, StepTimer

OnPoint = Callable[[str], None]

CONTEXTS = (64, 512, 2048, 8192, 32_768)
TOKENS = (2, 8, 32, 128, 512, 2048, 8192)  # of a step
IN_TILES = (
    *(48, 72, 96),
    *(size * part // 8 for size in (128, 256, 512, 1024, 2048, 4096) for part in (9, 11, 13, 15)),
)
STARTS = (1024, 8192)
BESIDE = (0, 4, 16, 64, 256)  # decodes


def decode_cells(timer: StepTimer, max_num_seqs: int) -> list[tuple[int, int]]:
    """Batch and context: batches of powers of two, and the largest; a line over contexts for each."""
    cells = [(batch, context) for batch in _powers_to(max_num_seqs) for context in CONTEXTS]
    return [(batch, context) for batch, context in cells if timer.fits([context] * batch)]


def mixed_cells(timer: StepTimer, max_num_seqs: int, max_num_tokens: int) -> list[tuple[int, int, int]]:
    """Chunk, its start, and the decodes beside it: as many as there can be, and fewer."""
    beside = sorted({*(one for one in BESIDE if one < max_num_seqs), max_num_seqs - 1})
    sizes = [*sorted({*(size for size in TOKENS if size < max_num_tokens), max_num_tokens})]
    cells = [(size - decodes, 0, decodes) for decodes in beside for size in sizes if size > decodes + 1]
    cells += [(2, 0, decodes) for decodes in beside if 0 < decodes < max_num_tokens - 1]
    cells += [(size, start, 0) for size in sizes for start in STARTS if size > 1]
    if timer.is_asynchronous:
        cells += [(size, 0, 0) for size in IN_TILES if size < max_num_tokens]
    return [
        (prefill, start, decodes)
        for prefill, start, decodes in dict.fromkeys(cells)
        if timer.fits([start + prefill, *[BESIDE_CONTEXT] * decodes])
    ]


def measure_decodes(timer: StepTimer, max_num_seqs: int, tell: OnPoint) -> list[DecodePoint]:
    points = []
    for batch, context in decode_cells(timer, max_num_seqs):
        tell(f"{batch} decodes of {context} tokens")
        points.append(DecodePoint(batch, context, timer.decode(batch, context)))
    return points


def measure_mixed(timer: StepTimer, max_num_seqs: int, max_num_tokens: int, tell: OnPoint) -> list[MixedPoint]:
    points = []
    for prefill, start, decodes in mixed_cells(timer, max_num_seqs, max_num_tokens):
        tell(f"a chunk of {prefill} from {start} on, beside {decodes} decodes")
        points.append(mixed_point(prefill, start, decodes, timer.mixed(prefill, start, decodes)))
    return points


def mixed_point(prefill: int, start: int, decodes: int, seconds: float) -> MixedPoint:
    return MixedPoint(prefill, start, decodes, BESIDE_CONTEXT, seconds)


def sizes_of(executor: Executor) -> EngineSizes:
    shape = executor.shape
    return EngineSizes(
        num_blocks=shape.layout.num_blocks,
        block_size=shape.layout.block_size,
        block_bytes=shape.layout.block_bytes,
        windows=[group.window for group in shape.groups],
        max_model_len=shape.limits.max_model_len,
        max_num_seqs=shape.limits.max_num_seqs,
        max_num_batched_tokens=shape.limits.max_num_tokens,
        is_asynchronous=shape.is_asynchronous,
    )


def _powers_to(most: int) -> list[int]:
    return sorted({*(1 << power for power in range(most.bit_length()) if 1 << power < most), most})
