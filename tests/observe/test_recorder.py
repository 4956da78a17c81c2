"""The flight recorder: files of whole runs, the ring on request, and what a fault leaves behind."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, SamplingParams
from octavo.cli import main as cli
from octavo.errors import ConfigError, EngineDeadError
from octavo.observe import recorder
from octavo.observe.event_log import EventLog
from octavo.observe.events import Arrived, BlockEvicted, EngineStarted, Event, EventsLost, Finished, Sampled, StepDone
from octavo.observe.flight_log import read_log, read_open_log
from octavo.observe.logging import LOGGER
from octavo.observe.recorder import FlightRecorder
from octavo.observe.snapshot import Snapshot
from tests.conftest import TinyFolder

STARTED = EngineStarted(time=0.0, num_blocks=10, block_size=16, block_bytes=1, num_groups=1, max_model_len=64)


def recorder_of(folder: Path, log: EventLog | None = None) -> tuple[EventLog, FlightRecorder]:
    log = EventLog(100) if log is None else log
    log.start(STARTED)
    return log, FlightRecorder(log, {"cache": {"block_size": 16}}, lambda: 0.0, lambda: folder)


def events_in(path: Path | str) -> list[Event]:
    return list(read_log(path)[1])


def test_a_file_has_all_events_from_the_first_on(tmp_path: Path) -> None:
    log, flight = recorder_of(tmp_path)
    flight.record(str(tmp_path / "run.olog"))
    events = [BlockEvicted(float(number), number) for number in range(1000)]
    for event in events:
        log.write(event)
    flight.close()
    header, found = read_log(tmp_path / "run.olog")
    assert list(found) == [STARTED, *events]
    assert (header.is_whole, header.started, header.config) == (True, STARTED, {"cache": {"block_size": 16}})
    flight.close()


def test_what_stands_in_the_way_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.olog"
    for number in range(3):
        log, flight = recorder_of(tmp_path)
        flight.record(str(path))
        log.write(BlockEvicted(1.0, number))
        flight.close()
    assert events_in(path)[-1] == BlockEvicted(1.0, 2)
    assert events_in(tmp_path / "run.olog.before")[-1] == BlockEvicted(1.0, 1)
    assert sorted(os.listdir(tmp_path)) == ["run.olog", "run.olog.before"]
    (tmp_path / "empty").touch()
    _, flight = recorder_of(tmp_path)
    flight.record(str(tmp_path / "empty"))
    flight.close()
    (tmp_path / "letter").write_text("Dear reader")
    with pytest.raises(ConfigError, match=r"'.*letter', where something else is"):
        recorder_of(tmp_path)[1].record(str(tmp_path / "letter"))
    assert (tmp_path / "letter").read_text() == "Dear reader"
    with pytest.raises(ConfigError, match="No such file or directory; choose another file"):
        recorder_of(tmp_path)[1].record(str(tmp_path / "missing" / "run.olog"))


def test_events_that_the_disk_is_too_slow_for_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "PATIENCE_S", 60.0)
    monkeypatch.setattr(recorder, "MAX_WAITING", 10)
    log, flight = recorder_of(tmp_path)
    flight.record(str(tmp_path / "run.olog"))
    for number in range(30):
        log.write(BlockEvicted(float(number), number))
    flight.close()
    found = events_in(tmp_path / "run.olog")
    assert len(found) == 11
    assert found[-1] == EventsLost(8.0, 21)


def test_a_full_disk_ends_the_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            if self.tell() > 100:
                raise OSError(28, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(recorder, "open_new", lambda path: Full())
    said: list[str] = []
    monkeypatch.setattr(LOGGER, "error", lambda text, *parts: said.append(text % parts))
    log, flight = recorder_of(tmp_path)
    flight.record("x.olog")
    log.write(BlockEvicted(1.0, 1))
    flight.close()
    log.write(BlockEvicted(2.0, 2))
    assert len(said) == 1
    assert "x.olog cannot be written any more: [Errno 28] No space left on device" in said[0]


def test_a_process_that_never_closes_its_engine_leaves_a_whole_file(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from octavo.observe.events import BlockEvicted
from tests.observe.test_recorder import recorder_of
log, flight = recorder_of(Path("."))
flight.record({str(tmp_path / "run.olog")!r})
log.write(BlockEvicted(1.0, 5))
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert events_in(tmp_path / "run.olog") == [STARTED, BlockEvicted(1.0, 5)]


def test_the_ring_is_read_as_a_log_without_tokens(tmp_path: Path) -> None:
    log, flight = recorder_of(tmp_path, EventLog(5, keeps_token_ids=True))
    log.write(Arrived(1.0, "a", 2, 1, prompt_token_ids=(7, 8)))
    log.write(Sampled(2.0, 1, (0,), 1, (), (9,)))
    header, events = read_open_log(io.BytesIO(flight.dump()), "ring")
    assert list(events) == [STARTED, Arrived(1.0, "a", 2, 1), Sampled(2.0, 1, (0,), 1)]
    assert (header.is_whole, header.has_token_ids) == (True, False)
    flight.save(str(tmp_path / "saved.olog"))
    header, events = read_log(tmp_path / "saved.olog")
    assert list(events) == list(log)
    assert header.has_token_ids
    for number in range(9):
        log.write(StepDone(3.0, number, 0.0, 0.0, 0.0, 1, 1))
    header, events = read_open_log(io.BytesIO(flight.dump()), "ring")
    assert [event.step for event in events if type(event) is StepDone] == [4, 5, 6, 7, 8]
    assert not header.is_whole


def test_a_fault_leaves_the_last_events_in_a_file_and_few_files_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "NUM_FAULTS_KEPT", 3)
    for number in range(5):
        log, flight = recorder_of(tmp_path)
        log.write(BlockEvicted(1.0, number))
        monkeypatch.setattr(os, "getpid", lambda number=number: number)
        said = flight.explain_fault(AssertionError("a wire came loose"))
        path = said.partition("its last events are in ")[2].partition(":")[0]
        assert said.startswith("the engine stopped: AssertionError('a wire came loose'); its last events are in /")
        assert events_in(path)[-1] == BlockEvicted(1.0, number)
        os.utime(path, (number, number))
    assert len(list((tmp_path / "events").iterdir())) == 3
    log, flight = recorder_of(tmp_path / "missing")
    assert "could not be saved: " in flight.explain_fault(EngineDeadError("the device is lost"))
    _, flight = recorder_of(tmp_path, EventLog(0))
    assert flight.explain_fault(EngineDeadError("the device is lost")) == "the device is lost"


def test_a_run_a_request_for_its_events_and_a_fault(
    tiny_folder: TinyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"skip_tokenizer_init": True, "num_threads": 1, "num_gpu_blocks_override": 40, "max_num_seqs": 4}
    llm = LLM(tiny_folder("llama"), record=str(tmp_path / "run.olog"), record_token_ids=True, **options)
    outputs = llm.generate([[3, 4, 5]] * 2, SamplingParams(max_tokens=5, ignore_eos=True), use_tqdm=False)
    llm.save_events(tmp_path / "ring.olog")
    header, found = read_log(tmp_path / "ring.olog")
    kept = list(found)
    assert [type(event) for event in kept] == [type(event) for event in llm.events]
    assert [event.prompt_token_ids for event in kept if type(event) is Arrived] == [(3, 4, 5)] * 2
    sampled = [event.token_ids for event in kept if type(event) is Sampled]
    assert list(zip(*sampled, strict=True)) == [tuple(one.outputs[0].token_ids) for one in outputs]
    assert header.config["cache"]["num_gpu_blocks_override"] == 40
    assert header.started.max_num_seqs == 4
    monkeypatch.setattr(llm._engine.core, "step", lambda: 1 / 0)
    with pytest.raises(EngineDeadError, match=r"the engine stopped: ZeroDivisionError.* events are in .*run\.olog: "):
        llm.generate([[3, 4, 5]], SamplingParams(max_tokens=5), use_tqdm=False)
    events = events_in(tmp_path / "run.olog")
    assert len([event for event in events if type(event) is Finished]) == 2
    assert type(events[-1]) is Arrived, "the last thing that happened before the fault"
    assert [type(event) for event in events[: len(kept)]] == [type(event) for event in kept]


def test_the_ring_can_be_followed_from_its_beginning(tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """It always has a snapshot, unless it has everything, and the snapshot is the engine's own state."""
    options = {"skip_tokenizer_init": True, "num_threads": 1, "num_gpu_blocks_override": 30, "max_num_seqs": 4}
    llm = LLM(tiny_folder("llama"), event_log_size=200, **options)
    core: Any = llm._engine.core
    lengths, seen = [], []
    begin_half = core._events.begin_half

    def look(snapshot: Snapshot) -> None:
        tables, cache = core.cache.tables, core.cache
        assert {one.sequence_id: one.tables for one in snapshot.sequences if one.tables} == {
            name: tuple(map(tuple, table.block_ids)) for name, table in tables.items()
        }
        assert snapshot.cached == tuple(cache.pool.cached)
        assert dict(zip(snapshot.tree_blocks, snapshot.tree_nodes, strict=True)) == cache.tree.nodes
        assert {one.request_id for one in snapshot.requests} == {one.request_id for one in snapshot.sequences}
        assert snapshot.num_waiting == sum(one.row < 0 for one in snapshot.sequences)
        seen.append(snapshot)
        begin_half(snapshot)

    monkeypatch.setattr(core._events, "begin_half", look)
    step = core.step

    def steps() -> object:
        updates = step()
        events = list(llm.events)
        lengths.append(len(events))
        assert any(type(event) in (Snapshot, EngineStarted) for event in events[:110])
        return updates

    monkeypatch.setattr(core, "step", steps)
    prompts = [[3 + number % 7] * (5 + number * 3 % 40) for number in range(24)]
    llm.generate(prompts, SamplingParams(max_tokens=12, n=2, ignore_eos=True), use_tqdm=False)
    assert len(seen) > 3
    assert max(lengths) <= 200
    llm.close()


@pytest.mark.parametrize("is_recorded", [False, True], ids=["ring", "file"])
@pytest.mark.parametrize(
    "fault", [MemoryError("no room"), EngineDeadError("the workers are lost")], ids=["error", "death"]
)
def test_what_an_engine_leaves_when_it_stops_can_be_told_drawn_and_replayed(
    fault: Exception,
    is_recorded: bool,
    tiny_folder: TinyFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {"skip_tokenizer_init": True, "num_threads": 1, "num_gpu_blocks_override": 40, "max_num_seqs": 4}
    llm = LLM(tiny_folder("llama"), record=str(tmp_path / "run.olog") if is_recorded else None, **options)
    monkeypatch.setattr(llm._engine.recorder, "_fault_folder", lambda: tmp_path)
    core: Any = llm._engine.core
    step, num_steps = core.step, itertools.count()
    monkeypatch.setattr(core, "step", lambda: step() if next(num_steps) < 6 else throw(fault))
    with pytest.raises(EngineDeadError) as caught:
        llm.generate([[3, 4, 5]] * 3, SamplingParams(max_tokens=20, n=2, ignore_eos=True), use_tqdm=False)
    path = str(caught.value).partition("its last events are in ")[2].partition(":")[0]
    assert path.endswith("run.olog" if is_recorded else ".olog")
    assert cli.main(["explain", "--log", path]) == 0
    listed = capsys.readouterr().out
    name = next(event.request_id for event in events_in(path) if isinstance(event, Arrived))
    assert cli.main(["explain", name, "--log", path]) == 0
    assert "its first token" in capsys.readouterr().out, listed
    page = tmp_path / "fault.html"
    assert cli.main(["viz", path, "-o", str(page), "--text"]) == 0
    assert "<html" in page.read_text()
    assert cli.main(["replay", path]) == 0
    assert "all decided as they were" in capsys.readouterr().out


def throw(fault: Exception) -> None:
    raise fault
