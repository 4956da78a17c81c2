"""Which layers the kernel of csrc/cuda/decode_attention.cu takes, how it runs on a GPU, and the sizes of its memory.

Plans of memory read this file where there is no GPU, so it imports neither torch nor triton.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from octavo.kernels.attention_layer import AttentionLayer
from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda_cpp import compile as nvcc
from octavo.kernels.kv_layout import KVDType, KVLayout

HEAD_DIMS = (64, 96, 128, 256)
MAX_SEQUENCES = 4096  # as many as the plan can sort in shared memory
TILE_ROWS = 64
BOX_TOKENS = 16
SHARED_LEVELS = 4
CLUSTER_BLOCKS = 8  # thread blocks of a cluster of csrc/cuda/one_sequence_attention.cu
_STRETCH_INTS, _UNIT_INTS, _MEMBER_INTS, _PATH_INTS = 20, 12, 24, 12


def why_not(layer: AttentionLayer, dtype: KVDType, kv: KVLayout, gpu: GPU) -> list[str]:
    """Every reason why the kernel does not take the layer."""
    reasons = []
    if gpu.is_interpreted:
        reasons.append("Triton's interpreter stands for the GPU")
    elif nvcc.find_nvcc() is None:
        reasons.append("its kernels are compiled by nvcc, which is not here: pip install 'octavo[cuda]'")
    if dtype == "float32":
        reasons.append("it computes in 16 bits, not in float32")
    if layer.head_dim not in HEAD_DIMS:
        reasons.append(f"heads of {layer.head_dim}; it takes {', '.join(map(str, HEAD_DIMS))}")
    if (group := layer.num_heads // layer.num_kv_heads) > TILE_ROWS:
        reasons.append(f"{group} query heads share a kv head; it takes up to {TILE_ROWS}")
    elif layer.head_dim in HEAD_DIMS and Occupancy.of(Shape.of(layer), layer.head_dim, gpu.capability) is None:
        reasons.append(f"heads of {layer.head_dim}, for which this GPU has too little shared memory")
    if layer.rotary is not None and layer.rotary.rotary_dim % 16:
        reasons.append(f"a rotation of {layer.rotary.rotary_dim} dims; it takes multiples of 16")
    if kv.block_size % BOX_TOKENS:
        reasons.append(f"blocks of {kv.block_size} tokens; it takes multiples of {BOX_TOKENS}")
    return reasons


def short_chunk(layers: Sequence[AttentionLayer], max_num_seqs: int, asked: int) -> int:
    """`asked` new tokens of a sequence if, up to so many, decodes clearly read less than kernels for chunks; else 1.
    Those read a block once for each query head, decodes once for each tile of queries."""
    shapes = [Shape.of(layer, asked) for layer in layers]
    has_room = all(max_num_seqs * shape.query_tiles <= MAX_SEQUENCES for shape in shapes)
    return asked if has_room and all(2 * shape.query_tiles <= shape.group for shape in shapes) else 1


@dataclass(frozen=True, slots=True)
class Shape:
    """The part of a layer's shape that its plan depends on."""

    num_kv_heads: int
    group: int  # query heads per kv head
    max_queries: int = 1  # new tokens per decoding sequence

    @classmethod
    def of(cls, layer: AttentionLayer, max_queries: int = 1) -> Shape:
        return cls(layer.num_kv_heads, layer.num_heads // layer.num_kv_heads, max_queries)

    @property
    def tile_queries(self) -> int:
        return min(self.max_queries, TILE_ROWS // self.group)

    @property
    def query_tiles(self) -> int:
        return -(-self.max_queries // self.tile_queries)

    @property
    def members_in_tile(self) -> int:
        return TILE_ROWS // (self.tile_queries * self.group)

    @property
    def can_share(self) -> bool:
        return self.query_tiles == 1 and self.members_in_tile > 1

    def num_stretches(self, gpu: GPU, head_dim: int, *, has_codes: bool = False) -> int:
        occupancy = Occupancy.of(self, head_dim, gpu.capability, has_codes=has_codes)
        assert occupancy is not None, "a layer that does not fit is not planned"
        return max(1, gpu.num_multiprocessors * occupancy.blocks // self.num_kv_heads)


@dataclass(frozen=True, slots=True)
class Occupancy:
    """How many thread blocks run on a multiprocessor, and how many entries each one's ring has. An entry holds the keys
    or the values of 64 tokens: 16-bit numbers, or codes of a byte."""

    blocks: int
    entries: int

    @classmethod
    def of(
        cls, shape: Shape, head_dim: int, capability: tuple[int, int], *, has_codes: bool = False
    ) -> Occupancy | None:
        """Two thread blocks if their rings are long enough, over codes three, whose products take longer beside their
        reads; else fewer. None if one does not fit."""
        room = 1024 * next((size for known, size in _SHARED_KIB if known == capability), _NEWER_SHARED_KIB)
        entry, queries = (-(-head_dim // dims) * 64 * 128 for dims in (128 if has_codes else 64, 64))
        fixed = queries + 2 * (32 + 4 * _MEMBER_INTS * shape.members_in_tile) + 2048  # and members, and barriers
        rings = _RINGS if not has_codes else _RINGS_OF_CODES if capability[0] != 9 else _RINGS_OF_CODES_ON_HOPPER
        for blocks, least, most in rings:
            entries = (room // blocks - fixed) // entry
            if entries >= least:
                return cls(blocks, min(entries, most))
        return None


#: thread blocks of a multiprocessor, the shortest ring with which there are so many, and the longest. With more than
#: four entries over codes an H200 is asked for more at once than its memory can give
_RINGS = ((2, 3, 12), (1, 2, 12))
_RINGS_OF_CODES = ((3, 6, 12), *_RINGS)
_RINGS_OF_CODES_ON_HOPPER = ((3, 4, 4), *_RINGS)
#: KiB of shared memory for thread blocks on a multiprocessor, by compute capability
_SHARED_KIB = (((8, 0), 162), ((8, 6), 98), ((8, 7), 162), ((8, 9), 98), ((12, 0), 98), ((12, 1), 98))
_NEWER_SHARED_KIB = 226


def plan_shapes(num_seqs: int, num_stretches: int) -> dict[str, tuple[int, ...]]:
    """A plan's arrays of 32-bit integers, in the order of the kernel's struct."""
    num_units = num_seqs * (SHARED_LEVELS + 1)  # each has a member
    return {
        "totals": (4,),
        "stretches": (num_stretches, _STRETCH_INTS),
        "units": (num_units, _UNIT_INTS),
        "members": (num_units, _MEMBER_INTS),
        "paths": (num_seqs, _PATH_INTS),
    }


def max_part_rows(shape: Shape, num_seqs: int, num_stretches: int, *, shares: bool) -> int:
    """The most partial results. If sequences share units, one for each member of a unit, and more for units that are
    cut; otherwise only units that are cut have any, and a cut is of one unit."""
    if not (shares and shape.can_share):
        return 2 * num_stretches
    return num_seqs * (SHARED_LEVELS + 1) + num_stretches * shape.members_in_tile


def partial_shapes(part_rows: int, num_seqs: int, shape: Shape, head_dim: int) -> dict[str, tuple[int, ...]]:
    """Partial results, of 32-bit numbers."""
    rows = part_rows * shape.num_kv_heads * shape.tile_queries * shape.group
    done = num_seqs * shape.query_tiles * shape.num_kv_heads
    return {"values": (rows * head_dim,), "max_sum": (rows * 2,), "done": (done,)}


def takes_one_sequence(shape: Shape, head_dim: int, gpu: GPU, *, has_codes: bool) -> bool:
    """Whether a step's only sequence has the kernel of csrc/cuda/one_sequence_attention.cu: for Hopper's clusters, and
    up to 8 query heads that share a kv head."""
    is_narrow = shape.group <= 8 and shape.max_queries == 1
    return gpu.capability[0] == 9 and head_dim in (64, 128) and is_narrow and not has_codes


def num_clusters(num_kv_heads: int, gpu: GPU) -> int:
    """The clusters of each kv head when a step has one sequence: as many as have multiprocessors of their own."""
    return max(1, gpu.num_multiprocessors // CLUSTER_BLOCKS // num_kv_heads)


def one_sequence_shapes(num_kv_heads: int, head_dim: int, gpu: GPU) -> dict[str, tuple[int, ...]]:
    """What the clusters of a step's only sequence leave each other, of 32-bit numbers, for eight query heads."""
    clusters = num_clusters(num_kv_heads, gpu)
    return {
        "values": (clusters, num_kv_heads, 8 * head_dim),
        "max_sum": (clusters, num_kv_heads, CLUSTER_BLOCKS, 8, 2),
        "done": (num_kv_heads, CLUSTER_BLOCKS),
    }


def workspace(
    layers: Sequence[AttentionLayer], max_num_seqs: int, gpu: GPU, max_queries: int, *, has_codes: bool
) -> Iterator[tuple[int, ...]]:
    """All plans and partial results of a model with these layers, for sequences of up to max_queries new tokens."""
    plans = {(layer.group, layer.window, Shape.of(layer, max_queries)): layer for layer in layers}
    parts: dict[tuple[Shape, int], int] = {}
    alone: set[tuple[int, int]] = set()
    for (_, _, shape), layer in plans.items():
        stretches, seqs = (
            shape.num_stretches(gpu, layer.head_dim, has_codes=has_codes),
            max_num_seqs * shape.query_tiles,
        )
        yield from plan_shapes(seqs, stretches).values()
        rows = max_part_rows(shape, seqs, stretches, shares=max_queries == 1)
        parts.setdefault((shape, layer.head_dim), rows)
        if takes_one_sequence(shape, layer.head_dim, gpu, has_codes=has_codes):
            alone.add((shape.num_kv_heads, layer.head_dim))
    for num_kv_heads, head_dim in alone:
        yield from one_sequence_shapes(num_kv_heads, head_dim, gpu).values()
    for (shape, head_dim), rows in parts.items():
        yield from partial_shapes(rows, max_num_seqs, shape, head_dim).values()
