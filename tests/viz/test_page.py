"""The page in a real browser: it replays what frames.py does, opens a large run soon, and obeys slider and pointer."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo.engine.snapshot import take_snapshot
from octavo.observe.events import Arrived, EngineStarted, Event, Scheduled, Started
from octavo.observe.frames import Frame
from octavo.viz.deltas import Deltas, deltas_of
from octavo.viz.page import render
from tests.server.browser import CHROMEDRIVER, CHROMIUM, Browser
from tests.viz.runs import LARGE, RandomRun, large_run

needs_browser = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="chromium and chromedriver are not installed"
)

#: a frame as values of JSON, made by the page's script
TOLD = """
const told = (state) => ({
  tables: [...state.tables].filter(([, tables]) => tables.some((table) => table.length)).sort(([a], [b]) => a - b),
  refs: [...state.refs], waiting: [...state.waiting].sort((a, b) => a - b),
  running: [...state.running].sort((a, b) => a - b),
  batch: [...state.batch].map(([id, [start, tokens]]) => [id, start, tokens]).sort(([a], [b]) => a - b),
  computed: [...state.computed].filter(([id]) => state.running.has(id)).sort(([a], [b]) => a - b),
  nodes: [...state.nodes].map(([block, { group, depth, before, content }]) =>
    [block, group, depth, data.contents[before] ?? "", data.contents[content]]).sort(([a], [b]) => a - b),
});
"""


def told(frame: Frame) -> dict[str, Any]:
    """The same, made from a frame of ours."""
    return {
        "tables": [
            [name, [list(table) for table in tables]] for name, tables in sorted(frame.tables.items()) if any(tables)
        ],
        "refs": list(frame.ref_counts),
        "waiting": sorted(frame.waiting),
        "running": sorted(frame.running),
        "batch": [[name, grant.start, grant.num_tokens] for name, grant in sorted(frame.batch.items())],
        "computed": [[name, number] for name, number in sorted(frame.num_computed.items()) if name in frame.running],
        "nodes": [
            [block, node.group, node.depth, node.parent.hex()[:8], node.content.hex()[:8]]
            for block, node in sorted(frame.nodes.items())
        ],
    }


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(scope="module")
def run_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run with a bit of everything."""
    return write(tmp_path_factory.mktemp("pages"), recorded(RandomRun(0), 60)[0])


def recorded(run: RandomRun, num_steps: int) -> tuple[Deltas, list[dict[str, Any]]]:
    """A run as the page has it, and our frames of it."""
    deltas, seen = Deltas(run.started), []
    run.simulator.events.listen(deltas.follow)
    for _ in run.steps(num_steps):
        seen.append(told(deltas.frame))
    deltas.frame.batch = {}
    return deltas, [*seen, told(deltas.frame)]


def write(folder: Path, deltas: Deltas, title: str = "a run") -> str:
    path = folder / "run.html"
    path.write_text(render(deltas, title))
    return path.as_uri()


def middle(browser: Browser, view: str, x: float, y: float) -> tuple[float, float]:
    """Where a place of a view is in the window, once it is scrolled into sight."""
    script = "const box = $(arguments[0]); box.scrollIntoView({block: 'center'}); return box.getBoundingClientRect()"
    edge = browser.run(script, view)
    return edge["left"] + x, edge["top"] + y


def test_it_loads_nothing_and_markup_stays_text() -> None:
    evil = '</script><img src=x onerror="alert(1)">'
    log = [Arrived(0.0, evil, 5, 1, sequence_id=0), Started(0.0, 0, evil, 0), Scheduled(0.0, 1, (0,), (0,), (5,), 0, 9)]
    page = render(deltas_of(EngineStarted(0.0, 9, 16, 1, 1, 64), log), f"<b>{evil}")
    assert page.count("<img") == page.count("<b>") == 0
    assert re.findall(r"""\s(?:src|href|action)\s*=\s*["'](?!data:)""", page) == []
    assert not re.search(r"@import|url\(|innerHTML|fetch\(", page)
    assert "default-src 'none'; script-src 'sha256-" in page


@needs_browser
@pytest.mark.parametrize("seed", range(6))
def test_its_script_replays_what_frames_does(browser: Browser, tmp_path: Path, seed: int) -> None:
    """At every step, whether one goes to it step by step or from elsewhere."""
    deltas, frames = recorded(RandomRun(seed), 70)
    browser.open(write(tmp_path, deltas))
    for order in (range(len(frames)), range(len(frames) - 1, -1, -7)):
        script = TOLD + "return arguments[0].map((frame) => JSON.stringify(told(replay.seek(frame))))"
        for place, found in zip(order, browser.run(script, list(order)), strict=True):
            assert json.loads(found) == frames[place], f"frame {place}"
    assert browser.console() == []


@needs_browser
def test_a_page_may_begin_later(browser: Browser, tmp_path: Path) -> None:
    run = RandomRun(0)
    _, frames = recorded(run, 50)
    later = deltas_of(run.started, run.simulator.events, 20, 40)
    assert later.steps == list(range(20, 41))
    browser.open(write(tmp_path, later))
    script = TOLD + "return data.steps.map((step, frame) => JSON.stringify(told(replay.seek(frame))))"
    assert list(map(json.loads, browser.run(script))) == frames[19:40]


@needs_browser
def test_a_page_of_the_last_events_only(browser: Browser, tmp_path: Path) -> None:
    """A ring that has lost its beginning goes on from a snapshot."""
    run, events, frames = RandomRun(0), list[Event](), []
    for number, _ in enumerate(run.steps(50)):
        if number == 25:
            events.append(take_snapshot(0.0, run.simulator.scheduler, run.simulator.cache))
            run.simulator.events.listen(events.append)
            frame = Frame(run.started)
            frame.follow(events[0])
            run.simulator.events.listen(frame.follow)
        elif number > 25:
            frames.append(told(frame))
    browser.open(write(tmp_path, deltas_of(run.started, events)))
    script = TOLD + "return data.steps.map((step, frame) => JSON.stringify(told(replay.seek(frame))))"
    assert list(map(json.loads, browser.run(script))) == frames
    assert browser.console() == []


@needs_browser
def test_the_figures_are_those_of_the_frames(browser: Browser, tmp_path: Path) -> None:
    run, slots = RandomRun(2), []
    deltas = Deltas(run.started)
    run.simulator.events.listen(deltas.follow)
    for _ in run.steps(60):
        frame = deltas.frame
        filled = [max(frame.filled(name, place) for name, _, place in held) for held in frame.owners().values()]
        slots.append([len(filled), sum(filled), sum(frame.ref_counts), len(frame.batch)])
    browser.open(write(tmp_path, deltas))
    script = "return replay.figures.map(({used, slots, entries, sequences}) => [used, slots, entries, sequences])"
    assert browser.run(script)[:-1] == slots


@needs_browser
def test_a_large_run_is_small_and_opens_soon(browser: Browser, tmp_path: Path) -> None:
    """64 sequences, 2,000 steps, 5,000 blocks: under 5 MB and under 2 s, and a step is drawn in less than a frame."""
    url = write(tmp_path, deltas_of(LARGE, large_run()))
    assert (tmp_path / "run.html").stat().st_size < 5e6
    browser.resize(1280, 800)
    begin = time.perf_counter()
    browser.open(url)
    assert browser.run("return data.steps.length") == 2000
    assert time.perf_counter() - begin < 2 * 2.5  # other tests run beside it
    took = browser.run(
        """const times = [];
        for (let i = 0; i < 40; i += 1) {
            const begin = performance.now();
            go(i * 997 % 2000);
            times.push(performance.now() - begin);
        }
        return times.sort((a, b) => a - b)[20]"""
    )
    assert took < 100


@needs_browser
def test_slider_and_keys_go_through_the_steps(browser: Browser, run_page: str) -> None:
    browser.resize(1280, 800)
    browser.open(run_page)
    browser.run("go(5); document.activeElement.blur()")
    browser.type("\ue014\ue014\ue012")  # right, right, left
    assert browser.run("return scene.at") == 6
    assert browser.run("return $('where').textContent").startswith("step 7 of ")
    edge = browser.run("return $('scrub').getBoundingClientRect()")
    browser.point(edge["left"] + edge["width"] / 2, edge["top"] + edge["height"] / 2, click=True)
    at, last = browser.run("return [scene.at, replay.last]")
    assert abs(at - last / 2) < last / 20
    assert browser.run("return $('where').textContent").startswith(f"step {at + 1} of ")
    assert "step" in browser.run("return $('now').textContent")
    browser.run("$('play').click()")
    browser.until("return scene.at > arguments[0]", at)
    browser.run("$('play').click()")


@needs_browser
def test_the_pointer_tells_what_a_block_is_and_who_holds_it(browser: Browser, run_page: str) -> None:
    browser.resize(1280, 800)
    browser.open(run_page)
    frame = browser.run("return replay.figures.findIndex((figures) => figures.entries > figures.used)")
    browser.run("go(arguments[0])", frame)
    block = browser.run("return [...scene.owners].find(([, owners]) => owners.length > 1)[0]")
    side, columns = browser.run("return [memory.side, memory.columns]")
    x, y = (block - 1) % columns * side + side / 2, (block - 1) // columns * side + side / 2
    browser.point(*middle(browser, "memory", x, y))
    browser.until("return !$('tip').hidden")
    said = browser.run("return $('tip').textContent")
    owners = browser.run("return scene.owners.get(arguments[0]).map(([id]) => nameOf(id))", block)
    assert said.startswith(f"Block {block}")
    assert f"Held by {len(owners)} sequences" in said
    assert all(owner in said for owner in owners)
    assert "Positions " in said
    assert browser.run("return scene.lit.sequences.size") == len(owners)
    browser.point(*middle(browser, "news", 5, 5))
    browser.until("return $('tip').hidden && scene.lit === null")


@needs_browser
def test_a_click_on_the_schedule_goes_to_its_step(browser: Browser, run_page: str) -> None:
    browser.resize(1280, 800)
    browser.open(run_page)
    browser.point(*middle(browser, "budget", 400, 60), click=True)
    assert browser.run("return scene.at === frameAt(400, budget)")


@needs_browser
@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_nothing_is_cut_or_empty(browser: Browser, run_page: str, width: int) -> None:
    """No text is wider than its box, nothing is wider than the window, and every picture has something in it."""
    browser.resize(width, 900)
    browser.open(run_page)
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    cut = """return [...document.querySelectorAll('h1, h2, p, li, dt, dd, small, output, button')].filter((one) =>
        one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).display !== 'inline')
        .map((one) => one.textContent)"""
    assert browser.run(cut) == []
    blank = """return ['memory', 'tables', 'schedule', 'budget', 'tree'].filter((id) => {
        const canvas = $(id).querySelector('canvas'), {width, height} = canvas;
        return !canvas.getContext('2d').getImageData(0, 0, width, height).data.some((value) => value); })"""
    assert browser.run(blank) == []
    assert browser.console() == []
