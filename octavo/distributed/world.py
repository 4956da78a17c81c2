"""World: the ranks of one model, and which of them a worker is.

    rank            0    1    2    3
    tensor rank     0    1    2    3          ranks that share every layer: tensor_parallel_size of them

Every rank is a process with a device of its own. All run the same steps and meet in collectives (`collectives.py`), so
each draws the same tokens, and one of them, rank 0, reports them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from octavo.errors import BackendUnavailableError, EngineDeadError


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    rank: int = 0
    tensor_parallel_size: int = 1

    @property
    def size(self) -> int:
        return self.tensor_parallel_size

    @property
    def tensor_rank(self) -> int:
        return self.rank % self.tensor_parallel_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where the ranks of a model find each other. port: of the first rank's store. listener: the first rank's file
    descriptor, which listens on that port. time_limit: seconds that a rank waits for the others."""

    port: int
    listener: int
    time_limit: float


class CollectiveError(EngineDeadError):
    """A rank waited too long for another, or the other has ended. Its own part of the model can do nothing more."""


def check_collectives() -> None:
    """Raise BackendUnavailableError if ranks cannot exchange results here."""
    if find_spec("torch") is None:
        raise BackendUnavailableError(
            "several ranks exchange their results with torch.distributed, and torch is not installed: "
            "pip install 'octavo[distributed]', or leave tensor_parallel_size at 1"
        )
