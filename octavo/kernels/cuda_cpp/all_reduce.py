"""PeerAllReduce: launches csrc/cuda/all_reduce.cu, the sum of all ranks' tensors over peer memory."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int, c_int64, c_void_p
from functools import cache

import torch

from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda.sizes import MAX_PEERS, one_shot_bytes, peer_slots
from octavo.kernels.cuda_cpp.compile import compile_kernel
from octavo.kernels.cuda_cpp.module import Kernel
from octavo.kernels.cuda_cpp.peer_memory import PeerMemory

_ELEMENTS = {torch.float32: "float", torch.float16: "Fp16", torch.bfloat16: "Bf16"}
_PACKET_BYTES = 16
_MAX_THREADS = 512
_MAX_PER_THREAD = 8


def compile_all_reduce(num_ranks: int, dtype: torch.dtype, capability: tuple[int, int], per_thread: int = 1) -> bytes:
    """per_thread: packets of a row that a thread of the kernel with a norm has."""
    macros: dict[str, str | int] = {"RANKS": num_ranks, "ELEMENT": _ELEMENTS[dtype], "PER_THREAD": per_thread}
    macros["RESIDENT"] = _resident(num_ranks, per_thread)
    return compile_kernel("all_reduce", macros, capability)


def _resident(num_ranks: int, per_thread: int) -> int:
    """Thread blocks of a multiprocessor at once: two, where a thread's packets are few enough for its registers."""
    return 2 if num_ranks == 2 and per_thread <= 2 else 1


class PeerAllReduce:
    """memory: of at least `peer_slots` for messages of most_bytes, whole packets; two ranks exchange larger ones in
    pieces. All ranks make the same calls. one_shot: messages up to this size are added up whole on each rank; others in
    parts, which ranks then tell each other. dtype: of what is normed; sums may be float32, too."""

    def __init__(
        self, memory: PeerMemory, rank: int, dtype: torch.dtype, gpu: GPU, device: torch.device, most_bytes: int,
        one_shot: int | None = None,
    ) -> None:  # fmt: skip
        self._memory, self._rank, self._dtype, self._gpu = memory, rank, dtype, gpu
        self._size = len(memory.addresses)
        assert self._size <= MAX_PEERS, f"{self._size} ranks of up to {MAX_PEERS}"
        assert 4 * peer_slots(self._size, most_bytes)[0] <= memory.num_bytes, "the slots are in the memory"
        self.most_bytes = most_bytes
        self._one_shot = one_shot_bytes(self._size) if one_shot is None else one_shot
        self._calls = torch.zeros(2, dtype=torch.int32, device=device)
        self._slots = (c_void_p * self._size)(*memory.addresses)
        self._struct = _reduction_of(self._size)
        self._norms: dict[int, Kernel] = {}
        self._plain = {each: self._kernel("octavo_all_reduce", each, 1) for each in {dtype, torch.float32}}

    def takes(self, x: torch.Tensor) -> bool:
        """Whether `all_reduce` does."""
        is_small = x.nbytes <= self.most_bytes or self._size == 2
        return x.dtype in self._plain and is_small and x.nbytes > 0 and x.nbytes % _PACKET_BYTES == 0

    def takes_norm(self, x: torch.Tensor) -> bool:
        """Whether `add_rms_norm` does."""
        packets, rest = divmod(x.shape[1] * x.element_size(), _PACKET_BYTES)
        return rest == 0 and packets <= _MAX_THREADS * _MAX_PER_THREAD and self.takes(x)

    def prepare_norm(self, width: int) -> None:
        """Compile what `add_rms_norm` needs for rows of this width."""
        per_thread = self._per_thread(width)
        if per_thread <= _MAX_PER_THREAD and per_thread not in self._norms:
            self._norms[per_thread] = self._kernel("octavo_all_reduce_norm", self._dtype, per_thread)

    def all_reduce(self, x: torch.Tensor) -> None:
        """Replace x, contiguous, by the sum of all ranks'."""
        flat, most = x.view(-1), self.most_bytes // x.element_size()
        for first in range(0, len(flat), most):
            piece = flat[first : first + most]
            packets = piece.nbytes // _PACKET_BYTES
            threads = 128
            while threads < _MAX_THREADS and packets > threads * self._gpu.num_multiprocessors:
                threads *= 2
            self._launch(self._plain[x.dtype], 1, threads, threads, piece, piece, None, None, 0.0)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
    ) -> None:
        """residual += the sum of all ranks' x [T, H]; out = rms_norm(residual). All contiguous; `out` may be x."""
        packets, per_thread = x.shape[1] * x.element_size() // _PACKET_BYTES, self._per_thread(x.shape[1])
        threads, num_rows = -(-packets // (32 * per_thread)) * 32, self.most_bytes // (packets * _PACKET_BYTES)
        kernel = self._norms[per_thread]
        for first in range(0, len(x), num_rows):
            piece, beside, to = (each[first : first + num_rows] for each in (x, residual, out))
            self._launch(kernel, per_thread, threads, packets, piece, to, beside, weight, eps)

    def _launch(
        self, kernel: Kernel, per_thread: int, threads: int, row_packets: int, x: torch.Tensor, out: torch.Tensor,
        residual: torch.Tensor | None, weight: torch.Tensor | None, eps: float,
    ) -> None:  # fmt: skip
        packets = x.nbytes // _PACKET_BYTES
        beside = (None if each is None else each.data_ptr() for each in (residual, weight))
        given = self._struct(
            self._slots, self._calls.data_ptr(), x.data_ptr(), out.data_ptr(), *beside,
            self.most_bytes // _PACKET_BYTES, packets, row_packets, self._rank, int(x.nbytes > self._one_shot), eps,
        )  # fmt: skip
        blocks = min(-(-packets // row_packets), _resident(self._size, per_thread) * self._gpu.num_multiprocessors)
        stream = torch.cuda.current_stream().cuda_stream
        kernel.launch(blocks, threads, (given,), shared_bytes=0, stream=stream, chained=self._gpu.chains)

    def _per_thread(self, width: int) -> int:
        """A power of two, so that few kernels serve all widths."""
        packets = -(-width * self._dtype.itemsize // _PACKET_BYTES)
        return 1 << max(0, -(-packets // _MAX_THREADS) - 1).bit_length()

    def _kernel(self, name: str, dtype: torch.dtype, per_thread: int) -> Kernel:
        return Kernel(compile_all_reduce(self._size, dtype, self._gpu.capability, per_thread), name)


@cache
def _reduction_of(num_ranks: int) -> type[Structure]:
    """`Reduction` of csrc/cuda/all_reduce.h."""

    class Reduction(Structure):
        _fields_ = (
            ("slots", c_void_p * num_ranks),
            *((name, c_void_p) for name in ("calls", "x", "out", "residual", "weight")),
            *((name, c_int64) for name in ("capacity", "num_packets")),
            *((name, c_int) for name in ("row_packets", "rank", "splits")),
            ("eps", c_float),
        )

    return Reduction
