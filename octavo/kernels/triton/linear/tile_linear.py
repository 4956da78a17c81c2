"""A few to a few hundred rows times a weight, chained: the op `linear` on Hopper's matrix units.

A library's product starts once all work before it has drained, and only then loads its first weights. That costs 2 to
3 us each time, too much for a small model whose products take 3 to 5. Here a program is resident before its predecessor
has ended, and its weights are already loading:

    predecessor   ......work......|
    weights         [ w0 w1 w2 w3 ..........  ring of stages  ]           requested at once, by TMA
    rows                          wait [ x0 x1 x2 x3 ....  ring of stages ]
    wgmma                                  x0 w0 | x1 w1 | x2 w2 | x3 w3 | ...    each frees a stage of both rings
    out                                                                   +bias, residual, gate -> stored

A program owns `rows` x `columns` of the result. Its limit is how fast the multiprocessor's copy engine fills shared
memory, about 50 bytes per ns, so tiles are as square as possible with about one program per multiprocessor. For a
narrow output that is not enough: the inputs are split too, and each part leaves float32 sums that the next kernel, a
norm, adds up as it reads them (`sum_rms_norm` in norm.py).

The engine writes every row of a box, and zeros for rows that x lacks. A box of few rows is lower than the tile; stale
data below it ends up in rows of the result that are not stored. This is Gluon, because Triton's own pipelining cannot
request the weights before it waits for the predecessor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from octavo.kernels.cuda.sizes import MAX_SPLIT
from octavo.kernels.ops import Activation
from octavo.kernels.triton.attention.hopper import barrier, load_box
from octavo.kernels.triton.chain import wait_for_previous
from octavo.kernels.triton.elementwise.elementwise import activate

MAX_ROWS = 256
_MIN_BOX = 16  # rows
_DEPTH = 128  # inputs per stage: two of the 128-byte rows that TMA swizzles
_ROWS_LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
_WEIGHT_LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=3)


@dataclass(frozen=True, slots=True)
class Tile:
    """How one shape is cut. columns: of the result; a gated weight has twice as many rows. split: parts of the inputs,
    each with its own sum."""

    rows: int
    columns: int
    num_stages: int
    split: int = 1


class TileLinear:
    """x W^T + bias (+ residual) for a weight [out, in], or with `gate` act(x Wg^T) * (x Wu^T) for W = [Wg; Wu].

    TMA sees the weight as [halves, out / halves, in]: a box of a gated one has gate columns and their up columns.
    """

    def __init__(self, weight: torch.Tensor, gate: Activation | None = None) -> None:
        assert weight.is_contiguous(), "weights are read as long runs"
        self._weight, self._gate = weight, gate
        self._halves = 2 if gate else 1
        self.columns, self.depth = weight.shape[0] // self._halves, weight.shape[1]
        self._descriptors: dict[int, TensorDescriptor] = {}

    def tile_for(self, num_rows: int, *, in_parts: bool = False) -> Tile | None:
        """in_parts: a norm follows, which can add up parts."""
        return choose_tile(num_rows, self.columns, self.depth, gated=self._halves == 2, in_parts=in_parts)

    def run(
        self,
        x: torch.Tensor,
        out: torch.Tensor,
        *,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        tile: Tile,
        chained: bool = False,
    ) -> None:
        """x [T, in] to out [T, columns]. residual may be `out` itself; `out` must not be x. A split tile takes no bias,
        residual or gate; it leaves its parts in `out` [split, T, columns] float32, for `sum_rms_norm`."""
        num_rows, gate = len(x), self._gate
        assert x.shape[1] == self.depth, f"{x.shape[1]} columns times a weight of {self.depth}"
        assert out.shape == (*([tile.split] * (tile.split > 1)), num_rows, self.columns), "a split tile leaves parts"
        assert tile.split == 1 or (bias is None and residual is None and gate is None), "parts become whole sums later"
        assert gate is None or residual is None, "a gated product has no residual"
        box = [min(tile.rows, max(_MIN_BOX, triton.next_power_of_2(num_rows))), _DEPTH]
        x_desc = TensorDescriptor(x, [num_rows, self.depth], [x.stride(0), 1], box, _ROWS_LAYOUT)
        _tile_kernel[(triton.cdiv(num_rows, tile.rows), triton.cdiv(self.columns, tile.columns), tile.split)](
            x_desc, self._descriptor(tile.columns), out, x if bias is None else bias,
            out if residual is None else residual, num_rows, self.columns,
            triton.cdiv(self.depth, _DEPTH * tile.split), out.stride(-2),
            out.stride(-2) if residual is None else residual.stride(0), out.stride(0),
            ROWS=tile.rows, COLUMNS=tile.columns, STAGES=tile.num_stages, GATE=gate or "",
            HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, CHAINED=chained, launch_pdl=chained,
            num_warps=tile.rows // 16,  # each warp has 16 rows
        )  # fmt: skip

    def _descriptor(self, columns: int) -> TensorDescriptor:
        if columns not in self._descriptors:
            shape, strides = [self._halves, self.columns, self.depth], [self.columns * self.depth, self.depth, 1]
            box = [self._halves, columns, _DEPTH]
            self._descriptors[columns] = TensorDescriptor(self._weight, shape, strides, box, _WEIGHT_LAYOUT)
        return self._descriptors[columns]


def choose_tile(num_rows: int, columns: int, depth: int, *, gated: bool = False, in_parts: bool = False) -> Tile | None:
    """The tile that beat cuBLAS on an H100 for this many rows, or None. columns: of the result.

    Measured with cold weights in chained graphs, including the norm after a product in parts. At 16 rows an 8B's
    products take 1.02 (gate and up) to 1.34 (o) times as long as reading their weights at 3 TB/s; a 0.6B's, of 4 to 5
    us each, 1.2 (gate and up) to 3.3 (o) times. Past 64 rows every program reads so much of x that only products with
    split inputs, or those that save a kernel, clearly beat cuBLAS. A 0.6B takes at 128 rows 0.96 of cuBLAS's time for
    qkv, 0.91 for gate and up, 0.85 for o, 0.86 for down; at 256 0.88 for o, 0.83 for down. Larger models: 0.85 to 1.0.
    """
    if num_rows > MAX_ROWS or columns < 1024 or depth < 1024 or depth % 8:
        return None
    if gated:
        return _gated_tile(num_rows, columns)
    if in_parts:
        return _tile_in_parts(num_rows, columns, depth)
    if num_rows > 128 or columns < 3072 or (num_rows > 64 and columns * depth > 8 << 20):
        return None
    return Tile(64, 32, 7) if num_rows <= 64 and columns <= 4096 and depth >= 2048 else Tile(64, 64, 7)


def _gated_tile(num_rows: int, columns: int) -> Tile | None:
    if num_rows > 128:
        return None
    if num_rows <= (64 if columns <= 4096 else 32):
        return Tile(64, 32, 6)
    if columns <= 4096:
        return Tile(64, 32, 3)
    return Tile(64, 64, 4) if num_rows <= 64 else Tile(128, 64, 3)


def _tile_in_parts(num_rows: int, columns: int, depth: int) -> Tile | None:
    if num_rows <= 64:
        return Tile(64, 64, 7, MAX_SPLIT)
    if columns <= 1024:
        return Tile(64, 32, 7 if depth > 2048 and num_rows <= 128 else 4, MAX_SPLIT)
    if num_rows > 128 or (columns > 2048 and depth <= 2 * columns):
        return None
    if columns > 2048:
        return Tile(128, 64, 4, MAX_SPLIT)
    return Tile(64, 32, 4, MAX_SPLIT) if depth <= 4096 else Tile(128, 32, 5, MAX_SPLIT)


@gluon.jit(do_not_specialize=["num_rows", "num_turns"])
def _tile_kernel(
    x_desc, weight_desc, out_ptr, bias_ptr, residual_ptr,
    num_rows, columns, num_turns, out_stride, residual_stride, part_stride,
    ROWS: gl.constexpr, COLUMNS: gl.constexpr, STAGES: gl.constexpr, GATE: gl.constexpr,
    HAS_BIAS: gl.constexpr, HAS_RESIDUAL: gl.constexpr, CHAINED: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    """One tile of one part, in num_turns stages of inputs."""
    HALVES: gl.constexpr = weight_desc.block_type.shape[0]
    DEPTH: gl.constexpr = x_desc.block_type.shape[1]
    BOX: gl.constexpr = x_desc.block_type.shape[0]
    BYTES: gl.constexpr = (BOX + HALVES * COLUMNS) * DEPTH * 2
    m0, n0, part = gl.program_id(0) * ROWS, gl.program_id(1) * COLUMNS, gl.program_id(2)
    k0 = part * num_turns * DEPTH
    xs = gl.allocate_shared_memory(x_desc.dtype, [STAGES, ROWS, DEPTH], x_desc.layout)
    ws = gl.allocate_shared_memory(x_desc.dtype, [STAGES, HALVES, COLUMNS, DEPTH], weight_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
    for stage in range(STAGES):
        wanted = stage < num_turns
        mbarrier.expect(full.index(stage), BYTES, pred=wanted)
        load_box(weight_desc, [0, n0, k0 + stage * DEPTH], full.index(stage), ws.index(stage), pred=wanted)
    wait_for_previous(CHAINED)
    for stage in range(STAGES):
        to = xs.index(stage).slice(0, BOX)
        load_box(x_desc, [m0, k0 + stage * DEPTH], full.index(stage), to, pred=stage < num_turns)

    m = m0 + gl.arange(0, ROWS, gl.SliceLayout(1, _accumulator(COLUMNS, num_warps)))
    n = n0 + gl.arange(0, COLUMNS, gl.SliceLayout(0, _accumulator(COLUMNS, num_warps)))
    mask = (m < num_rows)[:, None] & (n < columns)[None, :]
    m = m.to(gl.int64)
    y = gl.zeros([ROWS, HALVES * COLUMNS], gl.float32, _accumulator(HALVES * COLUMNS, num_warps))
    if HAS_RESIDUAL:  # loaded while the rows are on their way
        y += gl.load(residual_ptr + m[:, None] * residual_stride + n[None, :], mask, 0.0).to(gl.float32)
    for turn in range(num_turns):
        stage = turn % STAGES
        mbarrier.wait(full.index(stage), (turn // STAGES) & 1)
        w = ws.index(stage).reshape([HALVES * COLUMNS, DEPTH]).permute((1, 0))
        y = warpgroup_mma(xs.index(stage), w, y, is_async=True)
        y = warpgroup_mma_wait(1, deps=(y,))
        barrier()  # all warps are done with the turn before this one, so its stage may be refilled
        ahead = turn + STAGES - 1
        freed = ahead % STAGES
        wanted = (turn > 0) & (ahead < num_turns)
        mbarrier.expect(full.index(freed), BYTES, pred=wanted)
        at = k0 + ahead * DEPTH
        load_box(weight_desc, [0, n0, at], full.index(freed), ws.index(freed), pred=wanted)
        load_box(x_desc, [m0, at], full.index(freed), xs.index(freed).slice(0, BOX), pred=wanted)
    y = warpgroup_mma_wait(0, deps=(y,))

    y = _finish(y, bias_ptr, n, columns, COLUMNS, GATE, HAS_BIAS, num_warps)
    at = out_ptr + part.to(gl.int64) * part_stride + m[:, None] * out_stride + n[None, :]
    gl.store(at, y.to(out_ptr.dtype.element_ty), mask)


@gluon.jit
def _finish(
    y, bias_ptr, n, columns, COLUMNS: gl.constexpr, GATE: gl.constexpr, HAS_BIAS: gl.constexpr, num_warps: gl.constexpr
):  # fmt: skip
    """Bias and gate: from [rows, COLUMNS] or, gate columns first, from [rows, 2 COLUMNS], to [rows, COLUMNS]."""
    if GATE != "":
        layout: gl.constexpr = _accumulator(COLUMNS, num_warps)
        y, up = y.reshape([y.shape[0], 2, COLUMNS]).permute((0, 2, 1)).split()
        y, up = gl.convert_layout(y, layout), gl.convert_layout(up, layout)
    if HAS_BIAS:
        y += gl.load(bias_ptr + n, n < columns, 0.0).to(gl.float32)[None, :]
        if GATE != "":
            up += gl.load(bias_ptr + columns + n, n < columns, 0.0).to(gl.float32)[None, :]
    if GATE != "":
        y = activate(y, GATE) * up
    return y


@gluon.constexpr_function
def _accumulator(columns: int, num_warps: int) -> gl.NVMMADistributedLayout:
    return gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[num_warps, 1], instr_shape=[16, columns, 16])
