"""Messages for a front end that does not read are bounded, and it learns what it missed; answers are rate-limited."""

import threading
from typing import Any

import pytest
import zmq

from octavo.processes import outbox as outbox_module
from octavo.processes import transport
from octavo.processes.outbox import INTERVAL_S, Outbox, Questions
from octavo.processes.transport import Down, GivenUp, Refusal, Reply, SequenceNews, StepNews, decode_down


class Socket:
    """Takes messages, or raises the given error."""

    def __init__(self) -> None:
        self.fault: zmq.ZMQError | None = None
        self.sent: list[tuple[bytes, Down]] = []

    def send_multipart(self, parts: tuple[bytes, bytes], flags: int) -> None:
        if self.fault is not None:
            raise self.fault
        self.sent.append((parts[0], decode_down(parts[1])))


class Engine:
    """Forgets the requests 1 and 2 of any front end, once."""

    def __init__(self) -> None:
        self.socket: Any = Socket()
        self.forgotten: list[bytes] = []
        self.outbox = Outbox(self.socket, self.forget)

    def forget(self, front_end: bytes) -> list[int]:
        self.forgotten.append(front_end)
        return [1, 2] if self.forgotten.count(front_end) == 1 else []


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "RETRY_S", 0.0)


def test_who_reads_again_is_told_all_that_ended_without_a_word() -> None:
    engine = Engine()
    engine.outbox.retry()
    assert engine.outbox.seconds_left is None
    engine.socket.fault = zmq.Again()
    engine.outbox.send(b"x", StepNews(0.0, [3], [], [9], [SequenceNews(4, 0, [9], 1, "stop")]))
    engine.outbox.send(b"x", Refusal(5, "busy"))
    engine.outbox.send(b"x", Reply(6, b""))
    engine.outbox.retry()
    assert engine.outbox.seconds_left is not None
    engine.socket.fault = None
    engine.outbox.retry()
    engine.outbox.retry()
    assert engine.socket.sent == [(b"x", GivenUp([1, 2, 3, 4, 5, 6]))], "1 and 2 were running"
    assert engine.outbox.seconds_left is None


def test_who_is_gone_is_not_told_for_ever() -> None:
    engine = Engine()
    engine.socket.fault = zmq.Again()
    engine.outbox.send(b"x", Reply(6, b""))
    engine.socket.fault = zmq.ZMQError(zmq.EHOSTUNREACH)
    engine.outbox.retry()
    assert engine.outbox.seconds_left is None
    engine.outbox.send(b"y", Reply(6, b""))
    assert engine.forgotten == [b"x", b"y"]
    engine.socket.fault = zmq.Again()
    engine.outbox.send(b"z", Reply(6, b""))
    engine.outbox.front_end_gone(b"z")
    assert engine.outbox.seconds_left is None


def test_who_is_gone_is_told_of_once_and_only_if_it_had_requests(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "octavo")
    engine = Engine()
    engine.socket.fault = zmq.ZMQError(zmq.EHOSTUNREACH)
    for _ in range(3):
        engine.outbox.send(b"x", Reply(6, b""))
    assert [text.rpartition(": ")[2] for text in caplog.messages] == ["2 requests aborted"]


def test_bytes_that_wait_are_bounded_as_messages_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_UNREAD_SIZE", 10_000)
    engine = Engine()
    large = Reply(7, b"a" * 4000)
    for _ in range(3):
        engine.outbox.send(b"x", large)
        engine.outbox.send(b"reads", large)
        engine.outbox.was_read(b"reads", 4000)
    assert engine.forgotten == []
    engine.outbox.send(b"x", large)
    engine.outbox.send(b"reads", large)
    assert engine.forgotten == [b"x"]
    engine.outbox.was_read(b"x", 12_000)
    engine.outbox.send(b"x", large)
    assert engine.forgotten == [b"x"]


def test_however_often_somebody_asks_there_is_one_answer_an_interval_and_it_is_fresh() -> None:
    now, num_made = 100.0, 0
    sent: list[tuple[bytes, int, bytes]] = []

    def make() -> bytes:
        nonlocal num_made
        num_made += 1
        return b"%d" % num_made

    questions = Questions({"metrics": make}, {}, lambda *answer: sent.append(answer), lambda: now)
    questions.answer()
    assert questions.seconds_left is None
    questions.ask(b"x", 1, "metrics")
    assert questions.seconds_left == 0.0
    questions.answer()
    assert sent == [(b"x", 1, b"1")], "at once"
    for number in range(2, 50):
        questions.ask(b"x", number, "metrics")
        questions.ask(b"gone", number, "metrics")
        questions.answer()
    questions.front_end_gone(b"gone")
    assert len(sent) == 1
    assert questions.seconds_left == pytest.approx(INTERVAL_S)
    now += INTERVAL_S
    questions.answer()
    assert sent[1:] == [(b"x", number, b"2") for number in range(2, 50)]


def test_a_slow_answer_is_made_meanwhile_and_shared_by_all_who_wait() -> None:
    begun, may_end, sent = [], threading.Event(), []

    def make() -> bytes:
        begun.append(True)
        may_end.wait(10)
        return b"slow"

    questions = Questions({"quick": lambda: b"quick"}, {"slow": make}, lambda *answer: sent.append(answer), lambda: 0.0)
    questions.ask(b"x", 1, "slow")
    questions.answer()
    for number in (2, 3):
        questions._next_at = 0.0
        questions.ask(b"x", number, "slow")
        questions.ask(b"x", 10 + number, "quick")
        questions.answer()
    assert sent == [(b"x", 12, b"quick"), (b"x", 13, b"quick")]
    assert questions.seconds_left is not None, "it looks again"
    may_end.set()
    questions._made["slow"].result(10)
    questions._next_at = 0.0
    questions.answer()
    assert sent[2:] == [(b"x", number, b"slow") for number in (1, 2, 3)]
    assert len(begun) == 1
    assert questions.seconds_left is None
