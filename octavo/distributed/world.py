"""World: the ranks of one model, and which of them a worker is.

    rank            0    1    2    3
    stage           0    0    1    1          consecutive layers: pipeline_parallel_size stages
    tensor rank     0    1    0    1          ranks that share every layer of a stage: tensor_parallel_size of them

Every rank is a process with a device of its own, on one machine or on several: its local rank is its number among those
on its machine, which share cores, memory and GPUs. All run the same steps. Those of a stage meet in collectives
(`collectives.py`), and give their results to the next stage. Those of the last stage draw the same tokens, and the
first of them, the reporter, tells the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from octavo.errors import BackendUnavailableError, ConfigError, EngineDeadError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRanks:
    """A rank's number among those on its machine, and how many those are."""

    rank: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    rank: int = 0
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    here: LocalRanks | None = None  # None: all are on this machine

    @property
    def local(self) -> LocalRanks:
        return self.here or LocalRanks(rank=self.rank, size=self.size)

    @property
    def size(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def sizes(self) -> str:
        """The options that made it as large as it is, for errors."""
        tensor, stages = self.tensor_parallel_size, self.pipeline_parallel_size
        if stages == 1:
            return f"tensor_parallel_size is {tensor}"
        if tensor == 1:
            return f"pipeline_parallel_size is {stages}"
        return f"tensor_parallel_size {tensor} times pipeline_parallel_size {stages} is {self.size}"

    @property
    def tensor_rank(self) -> int:
        return self.rank % self.tensor_parallel_size

    @property
    def stage(self) -> int:
        return self.rank // self.tensor_parallel_size

    @property
    def is_last_stage(self) -> bool:
        return self.stage == self.pipeline_parallel_size - 1

    @property
    def reporter(self) -> int:
        """The rank whose results count."""
        return self.size - self.tensor_parallel_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where the ranks of a model find each other. host, port: of the first rank's store. listener: the first rank's
    file descriptor, which listens there. time_limit: seconds that a rank waits for the others. own_host: this rank's
    address, at which the others reach it."""

    port: int
    listener: int
    time_limit: float
    host: str = LOOPBACK
    own_host: str = LOOPBACK


class CollectiveError(EngineDeadError):
    """A rank waited too long for another, or the other has ended. Its own part of the model can do nothing more."""


def check_alike(kinds: Sequence[str], world: World) -> None:
    """Raise ConfigError if the ranks' GPUs differ. kinds: by rank; empty: not a GPU."""
    ranks: dict[str, list[int]] = {}
    for rank, kind in enumerate(kinds):
        ranks.setdefault(kind, []).append(rank)
    if len(ranks) == 1:
        return
    shown = "; ".join(f"{kind}: {_ranks(numbers)}" for kind, numbers in ranks.items())
    raise ConfigError(
        f"{world.sizes}, but the GPUs of its ranks differ ({shown}), and all would wait for the slowest and have the "
        "KV blocks of the smallest: show GPUs of one kind in CUDA_VISIBLE_DEVICES; allowed with these are up to "
        f"{max(map(len, ranks.values()))} ranks"
    )


def _ranks(numbers: Sequence[int]) -> str:
    return f"rank{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"


def check_ray() -> None:
    """Raise BackendUnavailableError if ranks cannot run on a Ray cluster from here."""
    if find_spec("ray") is None:
        raise BackendUnavailableError(
            "distributed_executor_backend='ray' needs Ray, which is not installed: pip install 'octavo[ray]', here and "
            "on every machine of the cluster"
        )


def check_collectives() -> None:
    """Raise BackendUnavailableError if ranks cannot exchange results here."""
    if find_spec("torch") is None:
        raise BackendUnavailableError(
            "several ranks exchange their results with torch.distributed, and torch is not installed: "
            "pip install 'octavo[distributed]', or leave tensor_parallel_size and pipeline_parallel_size at 1"
        )
