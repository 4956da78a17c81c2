"""octavo viz: pages of logs, the steps that were asked for, and what it says of files that are none."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, get_args

import pytest
from msgspec.structs import fields

from octavo.cli.main import main
from octavo.errors import LogError
from octavo.observe import events
from octavo.observe.events import EngineStarted, Event
from octavo.observe.flight_log import LogHeader, LogWriter
from octavo.viz.deltas import deltas_of
from octavo.viz.page import render
from tests.viz.runs import RandomRun


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = RandomRun(0)
    for _ in run.steps(50):
        pass
    path = tmp_path_factory.mktemp("logs") / "a run.olog"
    with path.open("wb") as file:
        config = {"model": {"model": "/models/tiny"}}
        header = LogHeader(version="0", written_at=0.0, clock=0.0, started=run.started, config=config)
        LogWriter(file, header).write(run.simulator.events)
    return path


def data_of(path: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="run">(.*?)</script>', path.read_text(), re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_a_page_lies_beside_its_log(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["viz", str(log)]) == 0
    page = log.with_suffix(".html")
    num_steps = len(data_of(page)["steps"])
    assert re.search(rf"a run\.html shows {num_steps} steps of \d+ requests: open it", capsys.readouterr().err)
    assert "<title>tiny, a run.olog</title>" in page.read_text()


def test_steps_and_title_can_be_chosen(log: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["viz", str(log), "--steps", "20:30", "-o", str(page), "--title", "Ten steps & more"]) == 0
    assert data_of(page)["steps"] == list(range(20, 31))
    assert "<title>Ten steps &amp; more</title>" in page.read_text()


def test_views_trace_and_text_come_instead_of_the_page(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = ["--svg", "a.svg", "--png", "a.png", "--view", "tree", "--perfetto", "a.json", "--text", "--step", "9"]
    assert main(["viz", str(log), *wanted]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("memory at step 9: ")
    assert "Prefix tree at step 9" in Path("a.svg").read_text()
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(Path("a.json").read_text())["traceEvents"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.png", "a.svg"]
    assert main(["viz", str(log), "--svg", "b.svg", "--view", "schedule", "--steps", "10:20"]) == 0
    assert "Schedule of steps 10 to 20" in Path("b.svg").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["LOG", "--text", "--step", "0"], "--step is 0, allowed are the log's steps, 1 to "),
        (["LOG", "--text", "--group", "3"], "--group is 3, allowed is 0 to 0"),
        (["LOG", "--svg", "LOG"], "is the file that FILE reads"),
        (["LOG", "--perfetto", "/nowhere/trace.json"], "--perfetto /nowhere/trace.json cannot be written"),
        (["nowhere.olog"], "cannot be opened"),
        (["LOG", "--steps", "9"], "--steps is '9', allowed is FIRST:LAST"),
        (["LOG", "--steps", "9:3"], "--steps is '9:3', allowed is FIRST:LAST"),
        (["LOG", "--steps", "100000:"], "has no step of these"),
        (["LOG", "-o", "LOG"], "is the file that FILE reads"),
        (["LOG", "-o", "/nowhere/page.html"], "--output /nowhere/page.html cannot be written"),
        (["http://127.0.0.1:1"], "no events came from http://127.0.0.1:1/events"),
        (["http://"], "the address is 'http://'"),
    ],
)
def test_what_it_refuses(log: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = log.read_bytes()
    assert main(["viz", *[str(log) if word == "LOG" else word for word in words]]) == 2
    assert message in capsys.readouterr().err
    assert log.read_bytes() == before


def test_the_last_steps_of_a_server(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_allowed = self.headers.get("Authorization") == "Bearer key"
            self.send_response(200 if is_allowed and self.path == "/events" else 401)
            self.end_headers()
            if is_allowed:
                self.wfile.write(log.read_bytes())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    url, page = f"http://127.0.0.1:{server.server_port}/v1", tmp_path / "page.html"
    assert main(["viz", url, "-o", str(page), "--api-key", "key"]) == 0
    assert data_of(page)["steps"]
    assert main(["viz", url, "-o", str(page), "--api-key", "other"]) == 2
    assert "answered 401" in capsys.readouterr().err
    server.shutdown()


def test_a_broken_log_is_a_log_or_an_error(log: Path, tmp_path: Path) -> None:
    whole, dice, page = log.read_bytes(), random.Random(0), tmp_path / "page.html"
    for _ in range(40):
        broken = bytearray(whole)
        for _ in range(dice.randint(1, 3)):
            broken[dice.randrange(len(broken))] = dice.randrange(256)
        path = tmp_path / "broken.olog"
        path.write_bytes(broken[: dice.choice([len(broken), dice.randrange(len(broken))])])
        assert main(["viz", str(path), "-o", str(page)]) in (0, 2)


def wild_events(dice: random.Random) -> Iterator[Event]:
    """Events of all kinds that no engine would write."""
    numbers = [*range(10), *range(5), *dice.sample([-(2**60), -1, 10, 2**31, 2**60], 1)]
    made: dict[Any, Any] = {
        int: lambda: dice.choice(numbers),
        float: lambda: dice.choice([-1.0, 0.0, 1e300]),
        str: lambda: dice.choice(["", "a", "b", "</script>", "window", "finished"]),
        bool: lambda: dice.random() < 0.5,
        bytes: lambda: dice.randbytes(2),
        type(None): lambda: None,
    }

    def make(kind: Any) -> Any:
        if kind in made:
            return made[kind]()
        parts = get_args(kind)
        if parts[-1:] == (...,):
            return tuple(make(parts[0]) for _ in range(dice.randint(0, 3)))
        return make(dice.choice(parts)) if type(None) in parts else tuple(map(make, parts))

    kinds = [
        kind for kind in Event.__subclasses__() if kind.__module__ == events.__name__ and kind is not EngineStarted
    ]
    for _ in range(dice.choice([1, 3, 10, 60])):
        kind = dice.choice(kinds)
        yield kind(**{field.name: make(field.type) for field in fields(kind)})


def test_events_that_no_engine_wrote_are_drawn_or_an_error() -> None:
    sizes, refusals = EngineStarted(0.0, 9, 4, 1, 2, 64, windows=(8, None)), []
    for seed in range(300):
        try:
            render(deltas_of(sizes, wild_events(random.Random(seed))), "wild")
        except LogError as error:
            refusals.append(str(error))
    assert 0 < len(refusals) < 300
    assert all(refusals)


@pytest.mark.parametrize("field", ["num_blocks", "block_size", "num_groups", "max_model_len"])
def test_sizes_that_no_engine_has_are_refused(field: str) -> None:
    for value in (-1, 0, 2**62):
        sizes = {"num_blocks": 9, "block_size": 4, "block_bytes": 1, "num_groups": 1, "max_model_len": 64, field: value}
        with pytest.raises(LogError, match=field):
            deltas_of(EngineStarted(time=0.0, **sizes), [])
