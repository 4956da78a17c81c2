"""What ranks answer to one message, taken together, without any process."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing import Pipe
from typing import Any

import pytest

from octavo.distributed.world import CollectiveError
from octavo.errors import EngineDeadError, ModelLoadError, OutOfMemoryError
from octavo.executor import ranks
from octavo.executor.ranks import Ranks
from octavo.executor.remote import Remote


class SaidRemote:
    """A rank whose messages are written already."""

    def __init__(self, rank: int, *messages: object, is_stopped: bool = False) -> None:
        self.rank, self.name, self.place = rank, f"worker {rank}", ""
        self.connection, self._theirs = Pipe()
        for message in messages:
            self._theirs.send(message)
        self.process = self
        self.was_killed = False
        self._is_stopped = is_stopped

    receive = Remote.receive

    def is_stopped(self) -> bool:
        return self._is_stopped

    def _talk(self, action: Any) -> Any:
        return action()

    def kill(self) -> None:
        self.was_killed = True


def answers(remotes: Sequence[SaidRemote], limit: float | None = 0.05) -> list[Any]:
    together = Ranks()
    for remote in remotes:
        together.add(remote)  # type: ignore[arg-type]
    try:
        return together.answers(limit)
    except EngineDeadError:
        assert all(remote.was_killed for remote in remotes)
        with pytest.raises(EngineDeadError):
            together.answers(limit)
        raise


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "GRACE_S", 0.05)


def test_the_first_ranks_answer_comes_first() -> None:
    assert answers([SaidRemote(0, "a"), SaidRemote(1, 7)]) == ["a", 7]


def test_a_fault_of_all_ranks_is_raised_and_they_live() -> None:
    remotes = [SaidRemote(rank, IndexError("row 9")) for rank in range(3)]
    with pytest.raises(IndexError, match="row 9"):
        answers(remotes)
    assert not any(remote.was_killed for remote in remotes)


def test_a_fault_of_one_rank_ends_the_engine_and_names_it() -> None:
    with pytest.raises(EngineDeadError, match="worker 1 failed in a step of all ranks: too much"):
        answers([SaidRemote(0, 5), SaidRemote(1, OutOfMemoryError("too much"))])
    with pytest.raises(EngineDeadError, match="worker 1 failed in a step of all ranks: KeyError: 3"):
        answers([SaidRemote(0, CollectiveError("waited")), SaidRemote(1, KeyError(3))])


def test_a_silent_rank_is_named_whatever_the_others_say() -> None:
    with pytest.raises(EngineDeadError, match="worker 1 gave no answer for 240 s: it hangs"):
        answers([SaidRemote(0, CollectiveError("waited")), SaidRemote(1), SaidRemote(2, CollectiveError("waited"))])
    with pytest.raises(EngineDeadError, match=r"worker 2 gave no answer .*: a signal has stopped it"):
        answers([SaidRemote(0), SaidRemote(1), SaidRemote(2, is_stopped=True)])


def test_what_keeps_one_rank_from_starting_is_raised_as_it_is() -> None:
    with pytest.raises(ModelLoadError, match="cut off"):
        answers([SaidRemote(0), SaidRemote(1, ModelLoadError("cut off"))], limit=None)
