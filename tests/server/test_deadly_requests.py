"""A request that kills the engine gets an error the second time and is then refused; others keep the server."""

from pathlib import Path
from typing import Any

import pytest

from octavo.errors import InvalidRequestError
from octavo.observe.event_log import EventLog
from octavo.observe.events import Finished, Forked, Scheduled, Started
from octavo.processes.household import MAX_TRIES, Restarts
from octavo.processes.probation import ALL_S, ALONE_S, MAX_DEATHS, MEMORY_S, Held, Probation, Suspects
from octavo.processes.step_record import StepRecord, who_was_computed
from octavo.processes.transport import AddRequest, pack_request
from octavo.request import Request, Sequence, SequenceId
from tests.conftest import EXECUTOR
from tests.server.faults.sitecustomize import DEADLY
from tests.server.live import FAULTS, LiveServer, Stream, live, read_answer, until
from tests.simulate import make_request

LONG = {"prompt": "Once", "params": {"temperature": 0, "max_tokens": 1500, "ignore_eos": True}}
SHORT = {"prompt": "The capital of France is", "params": {"temperature": 0, "max_tokens": 4}}


def deadly(variant: int) -> dict[str, Any]:
    return {"prompt": [1, DEADLY, variant], "params": {"temperature": 0, "max_tokens": 4}}


def send(server: LiveServer, **fields: Any) -> tuple[int, dict[str, Any]]:
    until(server.is_healthy)
    stream = Stream(server, **fields)
    line = stream.start()
    stream.close()
    return stream.status, line


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc")
def test_a_request_that_kills_the_engine_is_not_fed_to_a_third_one(tmp_path: Path) -> None:
    with live(tmp_path, path=[FAULTS]) as server:
        bystander = Stream(server, **LONG)
        bystander.start()
        status, line = send(server, **deadly(0))
        assert status == 503
        assert ("signal 11 (SIGSEGV)" if EXECUTOR is None else "exit code 1") in line["error"]
        assert "engine is down" in bystander.rest()[-1]["error"]
        bystander.close()

        # The deadly request is sent again together with the bystander: only the one at fault is accused again.
        until(server.is_healthy)
        bystander = Stream(server, **LONG)
        bystander.start()
        status, line = send(server, **deadly(0))
        assert status == 400
        assert "the engine died 2 times while it computed this request" in line["error"]
        assert "engine is down" in bystander.rest()[-1]["error"]
        bystander.close()
        assert send(server, **LONG)[0] == 200
        engine = server.children()["engine"]
        for _ in range(3):
            status, line = send(server, **deadly(0))
            assert (status, "so it is not tried again" in line["error"]) == (400, True)
        assert read_answer(server, **SHORT).startswith(" Paris")
        assert server.children()["engine"] == engine


# The parts


def add_request(name: str, variant: int = 0, key: int = 0) -> AddRequest:
    return pack_request(key, make_request(name, [1, 2, variant]), None)


def started(message: AddRequest, at: float | None) -> Request:
    request = make_request(message.request_id, message.prompt_token_ids)
    request.first_scheduled_time = at
    return request


def test_what_is_asked_makes_the_fingerprint_and_nothing_else() -> None:
    one = pack_request(1, make_request("a", [1, 2], seed=3), None)
    same = pack_request(2, make_request("b", [1, 2], seed=4, priority=1, cache_salt="x"), {"traceparent": "y"})
    assert one.fingerprint == same.fingerprint
    assert pack_request(1, make_request("a", [2, 1]), None).fingerprint != one.fingerprint
    assert pack_request(1, make_request("a", [1, 2], top_k=5), None).fingerprint != one.fingerprint


def test_a_record_holds_who_is_computed_and_outlives_its_writer(tmp_path: Path) -> None:
    path, log = str(tmp_path / "step"), EventLog(0)
    record = StepRecord(path, log)
    for name in ("a", "b"):
        record.expect(name, name * 32)

    def step(number: int, *ids: int) -> None:
        log.write(Scheduled(0.0, number, ids, (), (), 0, 0))

    def written() -> list[str]:
        return [line[0] for line in Path(path).read_text().splitlines()]

    log.write(Started(0.0, 0, "a", 0))
    log.write(Started(0.0, 5, "b", 1))
    assert written() == []
    step(1, 0)
    assert written() == ["a"]
    step(2, 5)
    assert sorted(written()) == ["a", "b"], "the step before may still run"
    step(3, 5)
    assert written() == ["b"]
    log.write(Forked(0.0, 0, 1, "a", 0))
    log.write(Finished(0.0, 5, "b", "stop", 1))
    step(4, 1)
    assert written() == ["a"]
    record.drop("a")
    step(5, 1)
    assert written() == []
    record.expect("a", "a" * 32)
    record.drop("b")
    step(6, 1)
    record.close()
    assert who_was_computed(path) == ["a" * 32]
    assert who_was_computed(path) == [], "it was used up"


def test_an_idle_engine_s_record_accuses_nobody(tmp_path: Path) -> None:
    path, log = str(tmp_path / "step"), EventLog(0)
    record = StepRecord(path, log)
    record.expect("a", "a" * 32)
    log.write(Started(0.0, 0, "a", 0))
    log.write(Scheduled(0.0, 1, (0,), (), (), 0, 0))
    record.rest()
    record.close()
    assert who_was_computed(path) == []


def test_deaths_are_counted_by_request_forgotten_after_a_while_and_cleared_by_an_answer() -> None:
    suspects = Suspects()
    assert suspects.accuse(["a", "b"], 0.0) == []
    assert suspects.accuse(["b", "c"], 1.0) == ["b"]
    assert suspects.num_deaths(1.0) == {"a": 1, "b": 2, "c": 1}
    suspects.clear("c")
    assert suspects.accuse(["c"], 2.0) == []
    assert suspects.num_deaths(1.5 + MEMORY_S) == {"c": 1}
    assert suspects.accuse(["a"], 10.0 + MEMORY_S) == []


def test_many_different_requests_do_not_fill_the_memory() -> None:
    suspects = Suspects()
    for number in range(100):
        suspects.accuse([f"{number}-{one}" for one in range(100)], 0.0)
    assert len(suspects.num_deaths(0.0)) == 4096


def test_those_on_probation_are_tried_one_at_a_time() -> None:
    now = 0.0
    first, second, other = add_request("first", 1), add_request("second", 2, key=7), add_request("other", 3)
    probation = Probation({first.fingerprint: 1, second.fingerprint: 1}, lambda: now)
    assert not probation.holds(b"x", first)
    probation.tries(first, request := started(first, None))
    assert not probation.holds(b"x", other), "nobody suspects it"
    assert probation.holds(b"x", second)
    now = 100.0
    assert probation.take_next() is None, "the first has not been computed yet"
    request.first_scheduled_time = now
    now += ALONE_S
    assert probation.take_next() == Held(b"x", second)
    now_tried = started(second, now)
    assert probation.tries(second, now_tried) is request, "it is excused"
    assert probation.holds(b"y", first)
    probation.ended(now_tried)
    assert probation.take_next() == Held(b"y", first)
    assert probation.tries(first, request) is None


def test_of_many_on_probation_one_that_has_a_token_makes_room_sooner() -> None:
    now = 0.0
    messages = [add_request(f"{number}", number) for number in range(100)]
    probation = Probation({message.fingerprint: 1 for message in messages}, lambda: now)
    probation.tries(messages[0], request := started(messages[0], now))
    assert probation.holds(b"x", messages[1])
    now = 1.01 * ALL_S / 100
    assert not probation.has_next, "it may be at the prompt that engines die"
    request.sequences.append(Sequence(SequenceId(0), request, 0, [*request.prompt_token_ids, 5]))
    assert probation.has_next


def test_those_who_wait_on_probation_can_leave() -> None:
    names = ("tried", "by key", "by name", "of another", "of the lost")
    messages = [add_request(name, 1, key) for key, name in enumerate(names)]
    probation = Probation({messages[0].fingerprint: 1}, lambda: 0.0)
    probation.tries(messages[0], started(messages[0], 0.0))
    fronts = (b"x", b"x", b"x", b"y", b"z")
    assert all(probation.holds(front, message) for front, message in zip(fronts[1:], messages[1:], strict=True))
    assert [held.message for held in probation.take_held(b"x", 1)] == [messages[1]]
    assert [held.message for held in probation.take_held_by_id("by name")] == [messages[2]]
    assert [held.message for held in probation.take_held(b"z")] == [messages[4]]
    assert probation.clear(messages[0].fingerprint)
    assert not probation.clear(messages[0].fingerprint)


def test_after_two_deaths_a_request_is_refused() -> None:
    message = add_request("a")
    Probation({message.fingerprint: MAX_DEATHS - 1}, lambda: 0.0).check(message)
    with pytest.raises(InvalidRequestError, match="change its prompt or sampling parameters, or come again in 10 min"):
        Probation({message.fingerprint: MAX_DEATHS}, lambda: 0.0).check(message)


def test_deaths_at_requests_do_not_use_up_the_restarts() -> None:
    restarts = Restarts()
    assert [restarts.next_delay(0.0, is_excused=True) for _ in range(7)] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert None not in [restarts.next_delay(0.0) for _ in range(MAX_TRIES)]
    assert restarts.next_delay(0.0) is None
