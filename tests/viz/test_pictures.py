"""Views as SVG and PNG, a run as a trace, a step as text: they show what the frame has."""

from __future__ import annotations

import itertools
import json
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest

from octavo.observe.events import Scheduled
from octavo.pictures.picture import COLOURS, MARGIN, Box, Picture, Stroke, Words, svg
from octavo.pictures.png import png
from octavo.viz.block_tables import block_tables
from octavo.viz.history import History, history_of
from octavo.viz.memory_map import cells_of, memory_map
from octavo.viz.numbers import numbers
from octavo.viz.perfetto import trace
from octavo.viz.prefix_tree import places_of, prefix_tree
from octavo.viz.schedule import schedule
from octavo.viz.terminal import text
from tests.viz.runs import LARGE, RandomRun, large_run

VIEWS = {
    "memory": memory_map,
    "tables": lambda history: block_tables(history, 0),
    "schedule": schedule,
    "tree": lambda history: prefix_tree(history, 0),
    "numbers": numbers,
}


@pytest.fixture(scope="module")
def run() -> RandomRun:
    run = RandomRun(0)
    for _ in run.steps(60):
        pass
    return run


@pytest.fixture(scope="module")
def history(run: RandomRun) -> History:
    """Up to the step with the most blocks."""
    steps = [event for event in run.simulator.events if isinstance(event, Scheduled)]
    return history_of(run.started, run.simulator.events, min(steps, key=lambda step: step.num_free_blocks).step)


def texts(picture: Picture) -> list[str]:
    return [shape.text for shape in picture.shapes if isinstance(shape, Words)]


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_is_an_svg_that_stays_in_its_frame(history: History, view: str) -> None:
    picture = VIEWS[view](history)
    root = ElementTree.fromstring(svg(picture))
    assert root.tag.endswith("svg")
    used = set(re.findall(r"var\(--(\w+)\)", svg(picture)))
    assert used <= COLOURS.keys()
    for shape in picture.shapes:
        match shape:
            case Box():
                assert shape.x >= MARGIN - 1
                assert shape.x + shape.width <= picture.width
                assert shape.y + shape.height <= picture.height
            case Stroke():
                assert all(0 <= x <= picture.width and 0 <= y <= picture.height for x, y in shape.points)
            case Words():
                room = picture.width - shape.x if shape.align == "start" else shape.x
                assert 0 <= 5 * len(shape.text) <= room + 30, shape.text


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_is_a_png(history: History, view: str) -> None:
    pytest.importorskip("matplotlib")
    data = png(VIEWS[view](history))
    assert data.startswith(b"\x89PNG")
    assert len(data) > 5000


def test_the_memory_map_has_each_block_and_how_many_share_it(history: History) -> None:
    said, cells = texts(memory_map(history)), cells_of(history.frame)
    assert {str(block_id) for block_id in cells} <= set(said)
    shared = Counter(f"× {len(cell.owners)}" for cell in cells.values() if len(cell.owners) > 1)
    assert shared
    assert Counter(words for words in said if words.startswith("×")) == shared


def test_the_tables_have_each_entry(history: History) -> None:
    said = Counter(texts(block_tables(history, 0)))
    entries = Counter(str(block) for tables in history.frame.tables.values() for block in tables[0])
    longest = max(len(tables[0]) for tables in history.frame.tables.values())
    assert said >= entries + Counter(str(place) for place in range(longest))


def test_the_tree_puts_children_behind_their_parents(history: History) -> None:
    places, num_rows = places_of(history.frame, 0)
    assert sorted(block for place in places for block in place.block_ids) == sorted(history.frame.nodes)
    assert len({(place.row, place.column) for place in places}) == len(places), "no two on one place"
    for place in places:
        assert place.row < num_rows
        if place.parent is not None:
            assert place.column == place.parent.column + 1
            assert place.row >= place.parent.row


def test_lines_tell_what_each_step_computed(run: RandomRun) -> None:
    history = history_of(run.started, run.simulator.events)
    steps = [event for event in run.simulator.events if isinstance(event, Scheduled)]
    assert [column.num_tokens for column in history.columns] == [sum(step.num_tokens) for step in steps]
    for line in history.lines.values():
        spans = line.spans
        assert all(before.end <= after.first for before, after in itertools.pairwise(spans))
        computed = sum(
            sum(n for one, n in zip(step.sequence_ids, step.num_tokens, strict=True) if one == line.sequence_id)
            for step in steps
        )
        assert sum(span.num_tokens for span in spans) == computed
        assert line.end is not None
    kinds = {span.kind for line in history.lines.values() for span in line.spans}
    assert kinds >= {"waiting", "prefill", "decode", "preempted", "again"}


def test_a_trace_has_all_steps_and_sequences_in_order_of_time() -> None:
    history = history_of(LARGE, large_run(80))
    events = json.loads(json.dumps(trace(history)))["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    steps = [event for event in slices if event["name"].startswith("step ")]
    assert [event["name"] for event in steps] == [f"step {number}" for number in range(1, 81)]
    assert all(event["ts"] >= 0 and event["dur"] >= 0 for event in slices)
    for track in range(1, 65):
        mine = [
            (event["ts"], event["ts"] + event["dur"]) for event in slices if event["pid"] == 2 and event["tid"] == track
        ]
        assert all(before[1] <= after[0] + 1e-3 for before, after in itertools.pairwise(mine))
    names = {event["args"]["name"] for event in events if event["name"] == "thread_name" and event["pid"] == 2}
    assert names == {line.name for line in history.lines.values()}


def test_the_text_fits_a_terminal_and_has_the_same_blocks(history: History) -> None:
    said = text(history, 0, 80)
    assert max(map(len, said.splitlines())) <= 100
    head, _, _ = said.partition("\n\n")
    signs = "".join(line[7:] for line in head.splitlines()[1:-1])
    cells, frame = cells_of(history.frame), history.frame
    for block_id, sign in enumerate(signs[: frame.sizes.num_blocks], 1):
        cell = cells.get(block_id)
        if cell is None:
            assert sign == (":" if block_id in frame.nodes else ".")
        else:
            assert sign.isdigit() == (len(cell.owners) > 1)
    assert f"{len(cells)} of {frame.sizes.num_blocks} in use" in said


def test_pictures_of_a_large_run_are_bounded(tmp_path: Path) -> None:
    history = history_of(LARGE, large_run(300))
    for draw in VIEWS.values():
        assert len(svg(draw(history))) < 3e6
