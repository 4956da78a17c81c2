"""A run as trace JSON, which ui.perfetto.dev and chrome://tracing open.

engine      steps        │ step 12 ─────────────── │ step 13 ──
                         │ schedule │ execute │ up │               overlapped steps take two tracks in turn
            KV blocks    ▁▂▃▅▅▆       tokens  ▇▁▁▁▁                counters
sequences   a            │ waiting │ prefill 512 │ decode ──────
            b.0          ...
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from octavo.observe.events import StepDone
from octavo.viz.history import History, Line

_ENGINE, _SEQUENCES = 1, 2


def trace(history: History) -> dict[str, Any]:
    """The whole file, as values of JSON."""
    return {"traceEvents": list(_events(history)), "displayTimeUnit": "ms"}


def _events(history: History) -> Iterator[dict[str, Any]]:
    yield _named("process_name", _ENGINE, 0, "engine")
    yield _named("process_name", _SEQUENCES, 0, "sequences")
    sizes = history.frame.sizes
    num_tracks = max(2 if sizes.is_overlapped else 1, sizes.num_stages)
    for track in range(num_tracks):
        yield _named("thread_name", _ENGINE, 1 + track, "steps")
    begin = min([column.time for column in history.columns[:1]] + [_begin_of(done) for done in history.done.values()])
    for done in history.done.values():
        yield from _step(done, 1 + done.step % num_tracks, begin)
    for column in history.columns:
        for name, value in (
            ("KV blocks in use", column.num_used_blocks),
            ("tokens", column.num_tokens),
            ("sequences", column.num_sequences),
            ("waiting", column.num_waiting),
        ):
            yield {"ph": "C", "name": name, "pid": _ENGINE, "ts": _us(column.time - begin), "args": {name: value}}
    times = _times(history)
    for line in history.lines.values():
        yield _named("thread_name", _SEQUENCES, line.sequence_id + 1, line.name)
        yield from _line(line, times, begin)


def _step(done: StepDone, track: int, begin: float) -> Iterator[dict[str, Any]]:
    at = _begin_of(done) - begin
    counts = {"tokens": done.num_tokens, "sequences": done.num_seqs}
    yield _slice(f"step {done.step}", track, at, done.time - begin - at, counts)
    for name, seconds in (("schedule", done.schedule_s), ("execute", done.execute_s), ("update", done.update_s)):
        yield _slice(name, track, at, seconds, {})
        at += seconds


def _begin_of(done: StepDone) -> float:
    return done.time - done.schedule_s - done.execute_s - done.update_s


def _line(line: Line, times: list[float], begin: float) -> Iterator[dict[str, Any]]:
    told = {"request": line.request_id, "sequence": line.sequence_id}
    for span in line.spans:
        name = f"{span.kind} {span.num_tokens}" if span.kind in ("prefill", "again") else span.kind
        counts = {**told, "tokens": span.num_tokens} if span.num_tokens else told
        at, end = times[span.first] - begin, times[span.end] - begin
        yield _slice(name, line.sequence_id + 1, at, end - at, counts, _SEQUENCES)
    if line.end is not None:
        at = times[min(line.end[0], len(times) - 1)] - begin
        place = {"pid": _SEQUENCES, "tid": line.sequence_id + 1, "ts": _us(at)}
        yield {"ph": "i", "name": f"ended: {line.end[1]}", "s": "t", **place}


def _times(history: History) -> list[float]:
    """When each step was planned, and when the last one was done."""
    times = [column.time for column in history.columns]
    last = history.columns[-1]
    end = history.done[last.step].time if last.step in history.done else last.time
    return [*times, end]


def _slice(
    name: str, track: int, at: float, seconds: float, told: dict[str, Any], process: int = _ENGINE
) -> dict[str, Any]:
    place = {"pid": process, "tid": track, "ts": _us(at), "dur": max(_us(seconds), 0.0)}
    return {"ph": "X", "name": name, **place, "args": told}


def _named(kind: str, process: int, track: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": track, "args": {"name": name}}


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)
