"""RankSums: adds up what ranks have computed on GPUs: over peer memory, and large messages of many ranks by NCCL.

    linear | all_reduce, add_rms_norm | linear       one kernel over peer memory, or NCCL and the norm

A step of few sequences has messages of some kilobytes, whose cost is latency; a chunk of a prompt has megabytes, whose
cost is bandwidth. Two ranks send each other whole messages, which take no more bytes than parts of them would. All
ranks have messages of the same size, so they choose alike.
"""

from __future__ import annotations

import torch

from octavo.distributed.collectives import Collectives
from octavo.kernels.cuda.driver import GPU
from octavo.kernels.cuda.sizes import MAX_PEERS, peer_slots
from octavo.kernels.cuda_cpp.all_reduce import PeerAllReduce
from octavo.kernels.cuda_cpp.compile import find_nvcc
from octavo.kernels.cuda_cpp.peer_memory import PeerMemory, PeerMemoryError
from octavo.kernels.triton.elementwise import norm
from octavo.kernels.triton.sampling.edited_rows import SamplingWorkspace
from octavo.kernels.triton.sampling.parted_draw import PartedDraw
from octavo.kernels.triton.sampling.parted_top_k import PartedTopK


class RankSums:
    """most_bytes: of a message over peer memory, by `sizes.peer_bytes`; 0: none go there. num_bytes: what they take on
    this rank's GPU. is_fixed: sums must have the same bits whatever a message's size. Tells the ranks' link what
    carries them, and why not peer memory."""

    def __init__(
        self, ranks: Collectives, dtype: torch.dtype, gpu: GPU, device: torch.device, most_bytes: int, *,
        is_fixed: bool = False,
    ) -> None:  # fmt: skip
        self._ranks, self._device, self._chained = ranks, device, gpu.chains
        self._peers: PeerAllReduce | None = None
        self.num_bytes = 0
        if not ranks.can_capture:  # on the host, for ranks that share a GPU
            return
        reason = "a deterministic engine adds up in one order" if is_fixed else None
        reason = reason if most_bytes else "disable_custom_all_reduce is set"
        try:
            self._peers, self.num_bytes = _meet(ranks, dtype, gpu, device, most_bytes, reason)
            ranks.link = "peer memory" if ranks.size == 2 else f"peer memory, and {ranks.link} for large messages"
        except PeerMemoryError as error:
            ranks.link = f"{ranks.link}, not over peer memory: {error}"

    def prepare_norm(self, width: int) -> None:
        """Compile what `add_rms_norm` needs for rows of this width."""
        if self._peers is not None:
            self._peers.prepare_norm(width)

    def all_reduce(self, x: torch.Tensor) -> None:
        """Replace x, contiguous, by the sum of all ranks', the same bits on each."""
        if self._peers is not None and self._peers.takes(x):
            self._peers.all_reduce(x)
        else:
            self._ranks.all_reduce(x)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
    ) -> None:
        """residual += the sum of all ranks' x; out = rms_norm(residual). `out` may be x, which is overwritten."""
        if self._peers is not None and self._peers.takes_norm(x):
            self._peers.add_rms_norm(x, residual, weight, eps, out)
        else:
            self.all_reduce(x)
            norm.add_rms_norm(x, residual, weight, eps, out, chained=self._chained)

    def parted_draws(
        self, max_entries: int, vocab_size: int, workspace: SamplingWorkspace
    ) -> tuple[PartedDraw, PartedTopK]:
        """A rank's part of draws from logits of which each rank has a part: without filters, and with filters that keep
        few tokens."""
        given = (self._ranks.rank, self._ranks.size, vocab_size, max_entries, self._device, self.all_reduce, workspace)
        made = PartedDraw(*given, chained=self._chained), PartedTopK(*given, chained=self._chained)
        self.num_bytes += sum(tensor.nbytes for each in made for tensor in each.tensors)
        return made


def _meet(
    ranks: Collectives, dtype: torch.dtype, gpu: GPU, device: torch.device, most_bytes: int, reason: str | None
) -> tuple[PeerAllReduce, int]:
    """All ranks do it together. Raises PeerMemoryError on all of them, or on none."""
    if reason is None and ranks.size > MAX_PEERS:
        reason = f"that is for up to {MAX_PEERS} ranks"
    if reason is None and find_nvcc() is None:
        reason = "its kernel is compiled by nvcc, which is not here: pip install 'octavo[cuda]'"
    if ranks.smallest(int(reason is None))[0] == 0:
        raise PeerMemoryError(reason or "another rank cannot use it")
    memory = PeerMemory(ranks, 4 * peer_slots(ranks.size, most_bytes)[0])
    return PeerAllReduce(memory, ranks.rank, dtype, gpu, device, most_bytes), memory.num_bytes
