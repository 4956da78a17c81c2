"""The sizes of a GPU's buffers beside weights and KV blocks.

Their owners allocate by these functions, and `kernels/cuda/ledger.py` plans by them; so this file imports neither torch
nor triton.

A shape is that of a tensor of 32-bit elements, unless it says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from math import prod
from typing import Literal

from octavo.kernels.adapters import AdaptedModule
from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp.expert_format import padded
from octavo.kernels.cuda_cpp.quantized_format import LARGEST_WIDE_TILE, MAX_ROWS, MOST_WIDE_OF_FP8, multiplies_wide
from octavo.kernels.kv_layout import KVDType
from octavo.kernels.mixture import Mixture
from octavo.kernels.parameters import Linear, Shape
from octavo.kernels.program.recorder import BufferPlan, Instruction
from octavo.kernels.scaled import ScaledFormat
from octavo.sampling.columns import ENTRY_WIDTH

Shapes = Mapping[str, Shape]
_FP8_BLOCK, ROWS_AT_ONCE = 128, 4  # outputs and inputs that share a scale; rows that a library takes together

SEGMENT, CHUNK = 128, 2048  # logits whose maximum is kept, and whose sum is kept
HEAD = 64  # segments that a draw looks at first
KEPT = 64  # of a part's best tokens, which ranks tell each other in draws that keep no more
TOLD_HEADER = 4  # numbers before the scores and ids of these: best, its token, mass, the best score that is not told
MAX_EDITED_ROWS = 64  # entries with edited logits drawn at once: each has a float32 row and a row of counts
TILED_ROWS = (16, 64, 128, 256)  # row counts above 1 at which products are tiles
MAX_SPLIT = 2  # parts of a product's inputs, each with its own sum
FEW_FP8_ROWS = 4  # that meet fp8 as they are; a library multiplies more of them faster, once they are fp8, too
FEW_QUANTIZED_ROWS = (FEW_FP8_ROWS, 8)  # of programs in which what surrounds quantised products is fused
FEW_MIXTURE_ROWS = 32  # rows whose router products are split over programs
SMALLEST_ADAPTER_TILE = 16  # rows
VERY_FEW_ADAPTED_ROWS = 4
FEW_ADAPTED_ROWS = 64  # rows of adapters that are computed one by one
#: most rows -> over how many programs their products with an adapter's A are split; with more rows it is one
SHRINK_SPLITS = {512: 4}
STAGING_BYTES = 8 << 20
MOVE_BYTES = 32 << 20  # of KV blocks that travel at once
MAX_PEERS = 8  # ranks that exchange over peer memory
PEER_BYTES = 2 << 20  # the largest message that many of them exchange so
MOST_PEER_BYTES = 64 << 20  # that two ranks exchange at once


def num_bytes(shapes: Iterable[Shape]) -> int:
    return 4 * sum(map(prod, shapes))


def buffer_elements(plan: BufferPlan, max_rows: int) -> int:
    """Elements of a program's buffers."""
    return sum(aligned(width * max_rows) for width in plan.widths)


def aligned(num_elements: int) -> int:
    """The next buffer starts at a multiple of 16 bytes, as TMA requires."""
    return -(-num_elements // 8) * 8


def partial_sums(instructions: Sequence[Instruction], max_num_seqs: int) -> Shape:
    """Room for the sums of split products, which the next norm adds up."""
    widths = [i.outputs[0].width for i in instructions if i.op == "add_rms_norm"]
    return (MAX_SPLIT * min(max_num_seqs, TILED_ROWS[-1]) * max(widths, default=0),)


def mixture_lists(layers: Sequence[Mixture], max_rows: int) -> dict[str, Shape]:
    """Of the largest mixture, for the choices of max_rows rows."""
    experts = max((layer.routing.num_experts for layer in layers), default=0)
    pairs = max_rows * max((layer.routing.num_chosen for layer in layers), default=0)
    own = max((layer.num_own for layer in layers), default=0)
    padded = max(16, 1 << (experts - 1).bit_length())
    return {
        "logits": (max_rows, padded),
        "arrived": (max_rows,),
        "ids": (pairs,),
        "weights": (pairs,),
        "counts": (own,),
        "order": (own, max_rows),
        "posted": (posted_elements(layers),),
    }


def posted_elements(layers: Sequence[Mixture]) -> int:
    """Of what blocks of a kernel tell each other of one row: words of 64 bits, for logits and for pairs of gated
    outputs; and how many blocks there were."""
    logits = max((layer.routing.num_experts for layer in layers), default=0)
    gated = max((layer.routing.num_chosen * layer.down.in_features for layer in layers), default=0)
    return 8 + 8 * logits + gated


def mixture_pairs(layers: Sequence[Mixture], max_rows: int) -> dict[str, int]:
    """Elements, in the model's type, of what a mixture computes for each choice."""
    return {
        "gated": max_rows
        * max((layer.routing.num_chosen * padded_inputs(layer.down.in_features) for layer in layers), default=0),
        "results": max_rows * max((layer.routing.num_chosen * layer.down.out_features for layer in layers), default=0),
    }


def padded_inputs(count: int) -> int:
    """Of rows as csrc/cuda/grouped_codes.cu reads and writes them."""
    return -(-count // 128) * 128


def few_mixture_rows(layers: Sequence[Mixture]) -> dict[str, int]:
    """The same of a few rows, for kernels in CUDA C++."""
    x = max((padded(layer.gate_up.in_features) for layer in layers), default=0)
    gated = max((layer.routing.num_chosen * padded(layer.down.in_features) for layer in layers), default=0)
    return {"few_x": FEW_MIXTURE_ROWS * x, "few_gated": FEW_MIXTURE_ROWS * gated}


def mixture_codes(layers: Sequence[Mixture], max_rows: int, dtype: str, gpu: GPU) -> dict[str, int]:
    """Bytes and float32 of rows that become fp8, of mixtures whose experts are multiplied by such."""
    sizes, counts = [0], [0]
    for layer in layers:
        for stack, rows in ((layer.gate_up, 1), (layer.down, layer.routing.num_chosen)):
            form = stack.parts[0].scheme.format
            if form is not None and multiplies_fp8(form, dtype, gpu):
                sizes.append(max_rows * rows * stack.in_features)
                counts.append(max_rows * rows)
    return {"codes": max(sizes), "scales": max(counts)}


def scratch_shapes(quantized: Sequence[Linear], max_rows: int, dtype: KVDType, gpu: GPU) -> dict[str, int]:
    """Elements of the scratch of quantised products of many rows. dense: of the model's type, for the largest matrix
    that is made dense, with rows whose inputs are gathered, or rows whose inputs are dealt. codes, scales: bytes and
    float32, for rows that become fp8. sums, told: of 32 bits, for what blocks of one kernel tell each other."""
    made_dense, inputs, scales, blocks = [0], [0], [0], 0
    for linear in quantized:
        by = scaled_rows(linear, dtype, gpu)
        form = linear.parts[0].scheme.format
        if form is not None and multiplies_wide(form, dtype, gpu):
            blocks = gpu.num_multiprocessors
            made_dense.append(min(max_rows, MOST_WIDE_OF_FP8) * linear.in_features)
        if by is None:
            gathered = max_rows * linear.in_features if form is not None and form.is_sorted else 0
            made_dense.append(linear.out_features * linear.in_features + gathered)
        else:
            inputs.append(linear.in_features)
            scales.append(linear.in_features // _FP8_BLOCK if by == "blocks" else 1)
    count = max(max_rows, 2 * MAX_ROWS)  # few rows may lie there in 16 bits
    ones = 4 if max(inputs) else 0  # the scale of what is not scaled; what lies behind stays aligned
    return {
        "dense": max(made_dense),
        "codes": count * max(inputs),
        "scales": ones + count * max(scales),
        "sums": blocks * LARGEST_WIDE_TILE,
        "told": blocks + 1,
    }


def scaled_rows(linear: Linear, dtype: str, gpu: GPU) -> Literal["whole", "blocks"] | None:
    """How rows become fp8, where a library multiplies them by such a matrix as it is: with a scale each, or with one
    for each block of their inputs; None: it does not."""
    form = linear.parts[0].scheme.format
    if form is None or any(part.scheme.format != form for part in linear.parts):
        return None
    if multiplies_fp8(form, dtype, gpu):
        return "whole"
    is_in_blocks = form.code == "F8_E4M3" and form.block == (_FP8_BLOCK, _FP8_BLOCK)
    fits = linear.in_features % (4 * _FP8_BLOCK) == 0 and all(part.shape[0] % _FP8_BLOCK == 0 for part in linear.parts)
    is_known = dtype == "bfloat16" and gpu.capability == (9, 0) and _library_knows_blocks()
    return "blocks" if is_in_blocks and fits and is_known else None


def become_codes(linear: Linear, num_rows: int, dtype: str, gpu: GPU) -> bool:
    """Whether a program for so many rows makes them fp8 in the kernel that gives them. linear: its matrices stay
    quantised, in one format."""
    by = scaled_rows(linear, dtype, gpu)
    return by == "whole" and num_rows > most_few_rows(by)


def most_few_rows(by: Literal["whole", "blocks"] | None) -> int:
    """Rows that the kernels for few rows take. by: see `scaled_rows`."""
    return FEW_FP8_ROWS if by == "whole" else MAX_ROWS


@cache
def _library_knows_blocks() -> bool:
    """cuBLAS does from CUDA 12.9 on. A machine without torch plans for one that has it."""
    try:
        built = re.search(r"\+cu(\d+)$", version("torch"))
    except PackageNotFoundError:
        return True
    return built is None or int(built[1]) >= 129


def multiplies_fp8(form: ScaledFormat, dtype: str, gpu: GPU) -> bool:
    """Whether a library multiplies such a matrix by rows that are fp8, too. With scales of rows, cuBLAS promises
    results in bfloat16 only."""
    is_of_outputs = form.code == "F8_E4M3" and form.block in ((0, 0), (1, 0))
    return is_of_outputs and dtype == "bfloat16" and gpu.capability >= (8, 9)


def adapter_lists(modules: Sequence[AdaptedModule], max_num_tokens: int, max_num_seqs: int) -> dict[str, Shape]:
    """The slots of rows, and the rows of slots in tiles: of a step's tokens, and of those whose logits are wanted."""
    slots = max((module.sizes.num_slots for module in modules), default=0)
    found: dict[str, Shape] = {"rows": (max_num_seqs,)}
    for name, rows in (("body", max(max_num_tokens, max_num_seqs)), ("head", max_num_seqs)):
        found |= {f"{name}_slots": (rows,), f"{name}_counts": (slots + 2,), f"{name}_order": (slots + 1, rows)}
        found[f"{name}_tiles"] = (2, most_tiles(rows, SMALLEST_ADAPTER_TILE, slots))
    return found


def most_tiles(num_rows: int, tile: int, num_slots: int) -> int:
    """Tiles of rows that have one adapter, or none."""
    return min(num_rows, num_rows // tile + num_slots + 1)


def shrink_depth(num_rows: int) -> int:
    """Inputs that a program of one row's product with an adapter's A has: few where there are few programs."""
    return 256 if num_rows <= VERY_FEW_ADAPTED_ROWS else 1024


def shrink_parts(num_rows: int, in_features: int) -> int:
    return -(-in_features // shrink_depth(num_rows))


def shrunk_rows(modules: Sequence[AdaptedModule], max_rows: int) -> Shape:
    """What the rows of a step are shrunk to, in float32, by the module that shrinks them least."""
    rows = max(max_rows, *(rows * split for rows, split in SHRINK_SPLITS.items()))
    few = (VERY_FEW_ADAPTED_ROWS, FEW_ADAPTED_ROWS)
    widths = [
        module.width * max(rows, *(one * shrink_parts(one, module.in_features) for one in few)) for module in modules
    ]
    return (max(widths, default=0),)


def logits_scan(max_rows: int, vocab_size: int) -> dict[str, Shape]:
    chunks = -(-vocab_size // CHUNK)
    each = (max_rows, chunks)
    segments = (max_rows, chunks * (CHUNK // SEGMENT))
    return {"segment_max": segments, "chunk_max": each, "chunk_sum": each, "chunk_better": each}


def sampling_workspace(max_entries: int, vocab_size: int, *, edits: bool) -> Shapes:
    """Beside its scan of the logits."""
    edited = (max_entries, vocab_size) if edits else (1, 1)
    return {"head": (max_entries, HEAD), "undecided": (max_entries,), "edited": edited, "counts": edited}


def token_masks(max_entries: int, vocab_size: int) -> Shape:
    """The rows of logits that have a mask, then the masks."""
    return (max_entries * (1 + -(-vocab_size // 32)),)


def peer_slots(num_ranks: int, most_bytes: int) -> Shape:
    """A rank's memory for messages of others: for each sender, twice."""
    return (2 * num_ranks * most_bytes // 4,)


def peer_bytes(num_ranks: int, instructions: Sequence[Instruction], max_rows: int, element_bytes: int) -> int:
    """The largest message that ranks exchange at once over peer memory. Two ranks exchange all of a step's so, which is
    faster than NCCL at any size; more of them the small ones, whose cost is latency."""
    if num_ranks != 2:
        return PEER_BYTES
    widths = [i.inputs[0].width for i in instructions if i.op == "all_reduce"]
    largest = max_rows * max(widths, default=0) * element_bytes
    return min(max(-(-largest // 16) * 16, PEER_BYTES), MOST_PEER_BYTES)


def one_shot_bytes(num_ranks: int) -> int:
    """Up to this size every rank adds up whole messages. That is one trip instead of two, but num_ranks / 2 times the
    bytes."""
    return MOST_PEER_BYTES if num_ranks == 2 else 256 << 10 if num_ranks <= 4 else 128 << 10


def offer_width(num_ranks: int) -> int:
    """Three numbers of each rank for an entry, in whole packets of 16 bytes."""
    return -(-3 * num_ranks // 4) * 4


def parted_draw(num_ranks: int, max_entries: int) -> dict[str, Shape]:
    """Draws from parts of the vocabulary, in float32."""
    return {"offers": (max_entries, offer_width(num_ranks)), "shares": (-(-max_entries // 4) * 4,)}


def parted_top_k(num_ranks: int, max_entries: int) -> dict[str, Shape]:
    """The same of draws that keep few tokens."""
    ties = max(4, 1 << (num_ranks - 1).bit_length())
    told = num_ranks * (TOLD_HEADER + 2 * KEPT)
    return {"offers": (max_entries, told), "ties": (max_entries, ties), "shares": (-(-max_entries // 4) * 4,)}


def move_buffer(block_bytes: int, size: int = MOVE_BYTES) -> Shape:
    """Of bytes: the KV blocks that travel at once between a GPU and its host."""
    return max(1, size // block_bytes), block_bytes


#: tokens of a row that the device keeps for the host, more than steps that are launched before one is fetched
KEPT_TOKENS = 8


def device_rows(num_groups: int, max_num_seqs: int, num_blocks: int) -> Shapes:
    """num_blocks: columns of a block table."""
    return {
        "records": (max_num_seqs, ENTRY_WIDTH),
        "step_rows": (max_num_seqs,),
        "kept_tokens": (max_num_seqs, KEPT_TOKENS),
        "tables": (num_groups, max_num_seqs, num_blocks),
    }


def chunk_inputs(max_num_tokens: int, max_num_seqs: int, *, has_adapters: bool = False) -> Shape:
    return ((2 + has_adapters) * max_num_tokens + 4 * max_num_seqs + 1,)
