"""Stage links: how hidden states pass from a stage of a pipeline to the next.

    stage 0    compute 1 │ compute 2 │ compute 3              send: x is copied, and leaves while the next step computes
                          ╲ 1         ╲ 2
    stage 1                compute 1   │ compute 2            receive: what follows on the device waits for it

HostLink is gloo's: through the host's memory, also for stages that share a GPU. GPULink is NCCL's, in stream order: the
host waits for nothing. Each neighbour has a process group of its own, so that a send never waits behind a receive.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch.distributed import distributed_c10d

from octavo.distributed.world import World

distributed: Any = distributed_c10d  # stubs lack the process groups
Met = Callable[[Callable[[], Any]], Any]  # calls, and raises CollectiveError if the others do not come


class StageLink(Protocol):
    """To the ranks of the stages before and after that have the same tensor rank."""

    def send(self, x: torch.Tensor, room: torch.Tensor | None = None) -> None:
        """Give x, contiguous, to the next stage; later work may overwrite it. room: of x's shape and type, at the same
        place in every call, where a device keeps x until it is taken."""

    def receive(self, x: torch.Tensor) -> None:
        """Fill x, contiguous, with the next one of the stage before."""

    def close(self) -> None: ...


class HostLink:
    """group: gloo's, of all ranks of all stages."""

    def __init__(self, world: World, group: Any, met: Met) -> None:
        self._group, self._met = group, met
        self._before = world.rank - world.tensor_parallel_size
        self._after = world.rank + world.tensor_parallel_size
        self._most_sent = world.pipeline_parallel_size  # steps in flight
        self._sent: deque[tuple[Any, torch.Tensor]] = deque()

    def send(self, x: torch.Tensor, room: torch.Tensor | None = None) -> None:
        """Waits for the earliest one given if there are more than the steps in flight."""
        if len(self._sent) == self._most_sent:
            earliest, _ = self._sent.popleft()
            self._met(earliest.wait)
        own = torch.empty(x.shape, dtype=x.dtype).copy_(x)
        self._sent.append((self._met(lambda: self._group.send([own], self._after, 0)), own))

    def receive(self, x: torch.Tensor) -> None:
        near = x if x.device.type == "cpu" else torch.empty(x.shape, dtype=x.dtype)
        self._met(lambda: self._group.recv([near], self._before, 0).wait())
        if near is not x:
            x.copy_(near)

    def close(self) -> None:
        self._sent.clear()


class GPULink:
    """store: where the ranks meet. Raises CollectiveError if a neighbour does not come."""

    def __init__(self, world: World, store: Any, device: torch.device, limit: timedelta, met: Met) -> None:
        self._met = met
        self._sent: Any = None  # the work of the last send
        name, stage = f"of tensor rank {world.tensor_rank}", world.stage
        #: in the order of the stages, since each meets its neighbour
        self._before = self._joined(distributed.PrefixStore(f"link {stage - 1} {name}", store), 1, limit, stage > 0)
        self._after = self._joined(
            distributed.PrefixStore(f"link {stage} {name}", store), 0, limit, not world.is_last_stage
        )
        word = torch.zeros(1, device=device)  # connects now, and so allocates what NCCL needs before the weights
        if self._before is not None:
            self.receive(word)
        if self._after is not None:
            self.send(word, torch.empty_like(word))
        torch.cuda.synchronize(device)

    def send(self, x: torch.Tensor, room: torch.Tensor | None = None) -> None:
        assert room is not None, "later work overwrites x before it is taken"
        if self._sent is not None:
            self._met(self._sent.wait)  # the stream waits, the host does not
        room.copy_(x)
        self._sent = self._met(lambda: self._after.send([room], 1, 0))

    def receive(self, x: torch.Tensor) -> None:
        self._met(lambda: self._before.recv([x], 0, 0).wait())

    def close(self) -> None:
        for group in (self._before, self._after):
            if group is not None:
                group.abort()
        self._sent = self._before = self._after = None

    def _joined(self, store: Any, rank: int, limit: timedelta, is_wanted: bool) -> Any:
        """The process group with a neighbour."""
        if not is_wanted:
            return None
        options = distributed.ProcessGroupNCCL.Options()
        options._timeout = limit
        return self._met(lambda: distributed.ProcessGroupNCCL(store, rank, 2, options))
