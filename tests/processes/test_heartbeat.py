"""When the engine's loop sends heartbeats, and how long its parent waits for the next one."""

import socket

from octavo.channel import Channel, Note
from octavo.processes.heartbeat import COMPILING_S, INTERVAL_S, NUM_COMPILING_STEPS, Heartbeat


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def pair() -> tuple[Channel, Channel]:
    ours, theirs = socket.socketpair()
    return Channel(ours), Channel(theirs)


def test_it_speaks_once_an_interval() -> None:
    mine, parents = pair()
    time = Time()
    heartbeat = Heartbeat(mine, 300.0, time)
    for _ in range(5):
        heartbeat.turn()
    assert [note.kind for note in parents.receive()] == ["alive"]
    assert heartbeat.seconds_left == INTERVAL_S
    time.now += INTERVAL_S
    heartbeat.turn()
    assert len(parents.receive()) == 1


def test_first_steps_have_more_time_and_their_end_is_told_at_once() -> None:
    mine, parents = pair()
    heartbeat = Heartbeat(mine, 8.0, Time())
    assert heartbeat.patience_s == COMPILING_S
    for _ in range(NUM_COMPILING_STEPS + 3):
        heartbeat.turn()
        heartbeat.step_done()
    assert [note.seconds for note in parents.receive()] == [COMPILING_S, 8.0]
    assert heartbeat.seconds_left == 2.0, "four times in a short timeout"


def test_turned_off_it_says_nothing_and_wakes_nobody() -> None:
    mine, parents = pair()
    heartbeat = Heartbeat(mine, 0.0, Time())
    heartbeat.turn()
    assert parents.receive() == []
    assert (heartbeat.seconds_left, heartbeat.patience_s) == (None, 0.0)


def test_a_parent_that_does_not_read_does_not_stop_the_loop() -> None:
    mine, parents = pair()
    for _ in range(10_000):
        mine.offer(Note("alive", seconds=5.0))
    told = parents.receive()
    assert 0 < len(told) < 10_000
    mine.offer(Note("alive", seconds=6.0))
    assert [note.seconds for note in parents.receive()] == [6.0]
