"""Files of events: what is written is read again, and nothing that a file may hold does harm."""

from __future__ import annotations

import contextlib
import gzip
import io
import random
import tracemalloc
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.config import SchedulerConfig
from octavo.errors import LogError
from octavo.observe import flight_log
from octavo.observe.events import (
    BlockEvicted,
    BlocksPublished,
    EngineStarted,
    Event,
    EventsLost,
    Refused,
    Scheduled,
    StepDone,
)
from octavo.observe.flight_log import FORMAT, LogHeader, LogWriter, read_log, read_open_log
from tests.simulate import Arrival, Simulator, make_request

STARTED = EngineStarted(time=1.0, num_blocks=40, block_size=16, block_bytes=64, num_groups=1, max_model_len=1024)
HEADER = LogHeader(version="9.8", written_at=1e9, clock=1.0, started=STARTED, config={"cache": {"block_size": 16}})


def written(*batches: list[Event], header: LogHeader = HEADER) -> bytes:
    file = io.BytesIO()
    writer = LogWriter(file, header)
    for batch in batches:
        writer.write(batch)
    return file.getvalue()


def read(data: bytes) -> list[Event]:
    return list(read_open_log(io.BytesIO(data), "a.log")[1])


@cache
def events_of_a_run() -> tuple[Event, ...]:
    """Forks, copies, prefix hits, evictions and preemptions."""
    draw = random.Random(1)
    simulator = Simulator(num_blocks=24, config=SchedulerConfig(max_num_seqs=6))
    arrivals = [
        Arrival(number, make_request(str(number), [draw.randrange(2)] * draw.randrange(5, 90), n=draw.choice([1, 2])))
        for number in range(30)
    ]
    simulator.run(arrivals)
    return tuple(simulator.events)


def test_a_run_is_read_as_it_was(tmp_path: Path) -> None:
    events = events_of_a_run()
    path = tmp_path / "run.log"
    path.write_bytes(written(list(events[:500]), list(events[500:])))
    header, found = read_log(path)
    assert header == HEADER
    assert header.wall_time(3.5) == 1e9 + 2.5
    pairs = list(zip(events, found, strict=True))
    assert [two for one, two in pairs if one != two and type(one) is not BlocksPublished] == []
    assert len({type(one) for one in events}) > 10


def test_hashes_are_told_apart_but_not_shown() -> None:
    events = [BlocksPublished(1.0, number, 0, 0, (7,), 0, (name,)) for number, name in enumerate([b"x", b"y", b"x"])]
    files = [read(written([*events[:1]], [*events[1:]])) for _ in range(2)]
    names = [[event.hashes[0] for event in file if type(event) is BlocksPublished] for file in files]
    for x, y, again in names:
        assert x == again != y
        assert x != b"x"
    assert names[0] != names[1]


def test_a_step_of_decodes_takes_a_few_bytes() -> None:
    ids = tuple(range(1000, 1256))
    steps = [Scheduled(step / 100, step, ids, tuple(step + i for i in ids), (1,) * 256, 0, 9) for step in range(400)]
    data = written(steps)
    assert read(data) == steps
    assert len(data) < 400 * 20


def kinds() -> list[type[Event]]:
    return [kind for kind in Event.__subclasses__() if kind.__module__ == "octavo.observe.events"]


def made(draw: random.Random, hint: Any) -> Any:
    """Any value of a type."""
    if hint is type(None):
        return None
    if hint is bool:
        return draw.random() < 0.5
    if hint is int:
        return draw.choice([0, 1, -1, draw.getrandbits(20), 2**64 - 1, -(2**63)])
    if hint is float:
        return draw.choice([0.0, -1.5, draw.random(), float("inf")])
    if hint is str:
        return "".join(draw.choices("ab\0é\u4e2d\U0001f600", k=draw.randrange(4)))
    if hint is bytes:
        return draw.randbytes(draw.randrange(20))
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return event_of(draw, hint)
    inner = get_args(hint)
    if get_origin(hint) is tuple:
        count = draw.randrange(4) if inner[-1] is Ellipsis else 0
        return tuple(made(draw, one) for one in (inner[:1] * count if inner[-1] is Ellipsis else inner))
    return made(draw, draw.choice(inner))


def event_of(draw: random.Random, kind: type[Event]) -> Event:
    fields = {name: made(draw, hint) for name, hint in get_type_hints(kind).items()}
    if kind is Scheduled:
        num_rows = draw.randrange(4)
        for name in ("sequence_ids", "num_before", "num_tokens"):
            fields[name] = tuple(draw.choices((1, 2, 3, 300), k=num_rows))
        fields["ahead"] = draw.randrange(3)
    return kind(**fields)


@pytest.mark.parametrize("seed", range(5))
def test_any_events_are_read_as_they_were(seed: int) -> None:
    draw = random.Random(seed)
    events = [event_of(draw, draw.choice(kinds())) for _ in range(1000)]
    found = read(written(events))
    assert [type(one) for one in found] == [type(one) for one in events]
    assert [two for one, two in zip(events, found, strict=True) if one != two and not hasattr(one, "hashes")] == []


def test_an_event_that_cannot_be_stored_is_counted() -> None:
    events = [Refused(1.0, "\ud800", "invalid"), Refused(2.0, "b", "invalid"), BlockEvicted(3.0, 2**64)]
    assert read(written(events)) == [EventsLost(1.0, 1), events[1], EventsLost(3.0, 1)]


def test_a_log_that_was_cut_off_can_be_read_up_to_there() -> None:
    events = list(events_of_a_run()[:60])
    data = written(events[:20], events[20:40], events[40:])
    whole = read(data)
    header_end = len(written())
    lengths = set()
    for end in range(len(data)):
        if end < header_end:
            with pytest.raises(LogError, match="ends in its header"):
                read(data[:end])
        else:
            found = read(data[:end])
            assert found == whole[: len(found)]
            lengths.add(len(found))
    assert lengths == {0, 20, 40}


def test_a_damaged_log_is_an_error_of_our_own() -> None:
    draw = random.Random(3)
    good = written(list(events_of_a_run()[:80]), list(events_of_a_run()[80:100]))
    for _ in range(600):
        damaged = bytearray(good)
        for _ in range(draw.randrange(1, 4)):
            damaged[draw.randrange(len(good))] = draw.randrange(256)
        with contextlib.suppress(LogError):
            read(bytes(damaged))


MEMBERS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([kind.__name__ for kind in kinds()] + ["Unknown", 5]),
    st.lists(MEMBERS, max_size=8),
    st.booleans(),
    st.binary(max_size=30),
)
def test_members_with_a_right_checksum_and_any_content(name: str, values: list, is_list: bool, tail: bytes) -> None:
    content = msgspec.msgpack.encode([[name, *values]] if is_list else [name, *values])
    start = written()
    for member in (content, tail):
        with contextlib.suppress(LogError):
            assert all(isinstance(event, Event) for event in read(start + gzip.compress(member)))
        with contextlib.suppress(LogError):
            read(gzip.compress(member) + gzip.compress(content))


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    def refusal(data: bytes) -> str:
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(LogError) as caught:
            list(read_log(tmp_path / "x")[1])
        return str(caught.value)

    assert "there is nothing to read" in refusal(b"")
    assert "is no event log" in refusal(b"GGUF and so on")
    assert "is no event log" in refusal(gzip.compress(b"\x80"))
    newer = written(header=msgspec.structs.replace(HEADER, octavo_log=FORMAT + 1))
    assert f"of format {FORMAT + 1}, written by Octavo '9.8'" in refusal(newer)
    assert "columns of different lengths" in refusal(
        written() + gzip.compress(msgspec.msgpack.encode([["Scheduled", 1.0, 1, [1, 2], [3], [4, 5], 0, 0]]))
    )
    assert "is damaged" in refusal(written() + gzip.compress(b"\x91" * 100_000))
    with pytest.raises(LogError, match="cannot be opened: No such file"):
        read_log(tmp_path / "missing")
    with pytest.raises(LogError, match="cannot be opened: Is a directory"):
        read_log(tmp_path)


def test_a_small_file_cannot_unpack_to_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight_log, "MAX_MEMBER_BYTES", 1 << 20)
    bomb = written() + gzip.compress(bytes(1 << 24))
    tracemalloc.start()
    with pytest.raises(LogError, match="more than 1,048,576 bytes"):
        read(bomb)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_large_batch_is_cut_into_members() -> None:
    events: list[Event] = [StepDone(float(number), number, 0.0, 0.0, 0.0, 1, 1) for number in range(20_000)]
    data = written(events)
    assert data.count(b"\x1f\x8b\x08") > 3
    assert read(data) == events
