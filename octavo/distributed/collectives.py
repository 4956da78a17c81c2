"""Collectives: what the ranks of a model do together, by torch.distributed: gloo on hosts, NCCL between GPUs.

    all_reduce    [1 2] + [3 4]  ->  [4 6] on each rank       a layer's partial products
    gather        [1 2], [3 4]   ->  [1 2; 3 4] on each       parts of the vocabulary
    exchange      [1 2], [3 4]   ->  [1 3], [2 4]             what each rank has for each other one
    smallest      5, 3           ->  3                        sizes on which ranks of all stages must agree

All ranks of a stage call the same ones in the same order. One waits for the others for a limited time; after that, or
when another rank has ended, CollectiveError is raised, and no rank can go on. Stages have links (`stage_link.py`).

The process groups belong to this object: nothing is registered with torch.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch.distributed import distributed_c10d

from octavo.distributed.stage_link import GPULink, HostLink, StageLink
from octavo.distributed.world import CollectiveError, Meeting, World

distributed: Any = distributed_c10d  # stubs lack the process groups
stores: Any = torch.distributed
Number = TypeVar("Number", bound=np.generic)
_WORD_BYTES = 96


class Collectives:
    """rank, size: of the ranks that share every layer. device: of the tensors that are added up, for NCCL; None: gloo,
    which takes tensors of any device and copies a GPU's. can_capture: a CUDA graph can hold what a step of these ranks
    does together. link: the library that carries it. on_one_machine: all ranks are on this one. stages: to the
    neighbouring stages; None: there is one. in_order: sums are made in the order of ranks; libraries choose one by a
    tensor's size."""

    def __init__(self, world: World, meeting: Meeting, device: str | None = None, *, in_order: bool = False) -> None:
        self.rank, self.size = world.tensor_rank, world.tensor_parallel_size
        self._adds_itself = in_order and self.size > 2  # of two numbers there is one sum
        self.can_capture = device is not None or self.size == 1
        self.on_one_machine = world.local.size == world.size
        self.link = "gloo" if device is None else "NCCL"
        self._rests = False
        self._sum, self._together = distributed.AllreduceOptions(), distributed.AllgatherOptions()
        self._apart = distributed.AllToAllOptions()
        for options in (self._sum, self._together, self._apart):
            options.asyncOp = False  # on the caller's stream, which a graph may capture
        self._limit = timedelta(seconds=meeting.time_limit)
        store = self._met(lambda: self._store(world, meeting))
        own = distributed.PrefixStore(f"hosts of stage {world.stage}", store)
        self._hosts = self._everyone = self._met(lambda: self._gloo(own, self.rank, self.size, meeting.own_host))
        self._num_everyone = world.size
        self.stages: StageLink | None = None
        if world.pipeline_parallel_size > 1:
            every = distributed.PrefixStore("hosts of all stages", store)
            self._everyone = self._met(lambda: self._gloo(every, world.rank, world.size, meeting.own_host))
            self.stages = HostLink(world, self._everyone, self._met)
        self._group = self._hosts
        if device is not None:
            self._join_gpus(world, store, torch.device(device))

    def all_reduce(self, x: torch.Tensor) -> None:
        """Replace x, contiguous, by the sum of all ranks'."""
        if self._rests:
            return
        near = self._near(x)
        if self._adds_itself:
            self._add_up(near)
        else:
            self._met(lambda: _wait(self._group.allreduce([near], self._sum)))
        if near is not x:
            x.copy_(near)

    def _add_up(self, x: torch.Tensor) -> None:
        parts = torch.empty((self.size, *x.shape), dtype=x.dtype, device=x.device)
        self.gather(x, parts)
        total = parts[0].float()
        for part in parts[1:]:
            total += part
        x.copy_(total)

    def all_reduce_floats(self, address: int, count: int) -> None:
        """`all_reduce` of float32 numbers in the host's memory."""
        memory = (ctypes.c_float * count).from_address(address)
        self.all_reduce(torch.frombuffer(memory, dtype=torch.float32))

    def gather_arrays(self, x: NDArray[Number]) -> NDArray[Number]:
        """`gather` of arrays in the host's memory, which are contiguous."""
        together = np.empty((self.size, *x.shape), x.dtype)
        if not self._rests:
            near, near_out = torch.from_numpy(x), torch.from_numpy(together)
            self._met(lambda: _wait(self._hosts._allgather_base(near_out.view(-1), near.view(-1), self._together)))
        return together

    def gather(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """All ranks' x [...], which have one shape -> out [size, ...]; both contiguous."""
        if self._rests:
            return
        near, near_out = self._near(x), self._near(out)
        self._met(lambda: _wait(self._group._allgather_base(near_out.view(-1), near.view(-1), self._together)))
        if near_out is not out:
            out.copy_(near_out)

    def exchange(self, x: torch.Tensor, counts: list[int], out: torch.Tensor, out_counts: list[int]) -> None:
        """x: what goes to each rank, in their order, counts elements each; out gets what comes from each. All flat."""
        near, near_out = self._near(x), self._near(out)
        given = (near_out, near, out_counts, counts, self._apart)
        self._met(lambda: _wait(self._group.alltoall_base(*given)))
        if near_out is not out:
            out.copy_(near_out)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Inside this context collectives do nothing: a rank rehearses alone."""
        self._rests = True
        try:
            yield
        finally:
            self._rests = False

    def of_first(self, numbers: Sequence[int]) -> list[int]:
        """The numbers of a stage's first rank; the others may have other ones, and fewer or more."""
        count = torch.tensor([len(numbers)])
        self._met(lambda: _wait(self._hosts.broadcast([count])))
        told = torch.zeros(int(count), dtype=torch.int64)
        if self.rank == 0:
            told.copy_(torch.tensor(numbers))
        self._met(lambda: _wait(self._hosts.broadcast([told])))
        return [int(number) for number in told]

    def smallest(self, *numbers: int) -> list[int]:
        """For each number, the smallest of all ranks', of every stage."""
        return self._smallest(self._everyone, numbers)

    def smallest_of_stage(self, *numbers: int) -> list[int]:
        """The same of the ranks of this stage."""
        return self._smallest(self._hosts, numbers)

    def _smallest(self, group: Any, numbers: Sequence[int]) -> list[int]:
        options = distributed.AllreduceOptions()
        options.reduceOp = distributed.ReduceOp.MIN
        told = torch.tensor(numbers, dtype=torch.int64)
        self._met(lambda: _wait(group.allreduce([told], options)))
        return told.tolist()

    def words(self, own: str) -> list[str]:
        """What each rank of the world calls itself, cut to 96 bytes."""
        told = np.zeros(_WORD_BYTES, np.uint8)
        packed = np.frombuffer(own.encode()[:_WORD_BYTES], np.uint8)
        told[: len(packed)] = packed
        together = torch.zeros(self._num_everyone * _WORD_BYTES, dtype=torch.uint8)
        self._met(lambda: _wait(self._everyone._allgather_base(together, torch.from_numpy(told), self._together)))
        rows = together.view(-1, _WORD_BYTES).numpy()
        return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in rows]

    def close(self) -> None:
        """Leave the others without a word. No collective can be called afterwards."""
        if self._group is not self._hosts:
            self._group.abort()
        if self.stages is not None:
            self.stages.close()
        del self._group, self._hosts, self._everyone

    def _near(self, x: torch.Tensor) -> torch.Tensor:
        """x where the process group takes it: gloo's is the host."""
        return x.cpu() if self._group is self._hosts and x.device.type != "cpu" else x

    def _store(self, world: World, meeting: Meeting) -> Any:
        is_first = world.rank == 0
        return stores.TCPStore(
            meeting.host,
            meeting.port,
            world.size,
            is_master=is_first,
            timeout=self._limit,
            master_listen_fd=meeting.listener if is_first else None,
        )

    def _gloo(self, store: Any, rank: int, size: int, host: str) -> Any:
        options = distributed.ProcessGroupGloo._Options()
        options._timeout = self._limit
        options._devices = [distributed.ProcessGroupGloo.create_device(hostname=host)]
        return distributed.ProcessGroupGloo(store, rank, size, options)

    def _join_gpus(self, world: World, store: Any, device: torch.device) -> None:
        os.environ.setdefault("NCCL_NVLS_ENABLE", "0")  # NVLink multicast, which many machines do not let programs use
        os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "0")  # it would ask a store that may have ended
        torch.cuda.set_device(device)
        if self.size > 1:
            own = distributed.PrefixStore(f"gpus of stage {world.stage}", store)
            self._group = self._met(lambda: self._nccl(own, device))
        if world.pipeline_parallel_size > 1:
            self.stages = GPULink(world, store, device, self._limit, self._met)

    def _nccl(self, store: Any, device: torch.device) -> Any:
        options = distributed.ProcessGroupNCCL.Options()
        options._timeout = self._limit
        group = distributed.ProcessGroupNCCL(store, self.rank, self.size, options)
        group.eager_connect_single_device(device)
        return group

    def _met(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except RuntimeError as error:
            raise CollectiveError(
                f"rank {self.rank} of {self.size} could not exchange results with the others, for which it waits "
                f"{self._limit.total_seconds():g} s: {str(error).splitlines()[0]}"
            ) from error


def _wait(work: Any) -> None:
    """None: the backend has queued the work where it belongs."""
    if work is not None:
        work.wait()
