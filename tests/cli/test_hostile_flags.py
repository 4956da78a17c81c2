"""Any flag of any command with any value runs or is refused in one line. Nothing is loaded, sent or served here."""

from __future__ import annotations

import io
import random
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from octavo.cli.main import COMMANDS, main, parser_of
from octavo.engine.options import engine_config
from octavo.errors import ConfigError

NUM_TRIES = 40
NAMES = [name for name in COMMANDS if name != "help"]
VALUES = (
    *("", " ", "-", "--", "-1", "0", "1", "7", "1e400", "-1e400", "nan", "inf", "9" * 50, "1" + "0" * 5000, "4k", "4Q"),
    *("é", "\udcff", "{", "[" * 3000, "[1]", "null", "true", "no", "/", "/none/x", ".", "a b", "=", ",", "1,2", "0x10"),
    *(
        "1_000",
        "%s%n",
        "a=b",
        "ttft:x",
        "ttft:1",
        ":",
        "x" * 5000,
        "line\nline",
        "smollm2",
        "linear",
        "chat",
        '{"a": 1}',
    ),
)
STOPPED = "stopped before anything is done"


@pytest.fixture(autouse=True)
def nothing_is_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever would load, listen or connect raises instead, after checking its options."""
    import octavo.cli.serve as serve

    def load(self: object, model: str, **options: Any) -> None:
        engine_config(model=model, **options)
        raise ConfigError(STOPPED)

    def stop(*args: Any, **options: Any) -> Any:
        raise ConfigError(STOPPED)

    monkeypatch.setattr("octavo.llm.LLM.__init__", load)
    monkeypatch.setattr("octavo.async_llm.AsyncLLM.__init__", load)
    monkeypatch.setattr("octavo.cli.serve.Supervisor.run", stop)
    monkeypatch.setattr(serve, "log_to_stderr", lambda name: None)
    monkeypatch.setattr("octavo.models.hub._ask", stop)
    monkeypatch.setattr("octavo.cli.bench_startup.start_once", stop)
    monkeypatch.setattr("octavo.bench.offline.HuggingFaceModel.__init__", stop)
    monkeypatch.setattr("octavo.cli.bench_serve.Server", stop)
    monkeypatch.setattr("octavo.cli.bench_serve.first_model", lambda target: "tiny")
    monkeypatch.setattr("octavo.cli.server_api.ServerApi._connect", stop)
    monkeypatch.setattr("octavo.cli.doctor.SECTIONS", {"backends": lambda: iter(())})
    monkeypatch.setattr("octavo.cli.doctor_memory.compare", stop)
    monkeypatch.setattr("octavo.bench.sharing.count_saving", stop)
    monkeypatch.setattr("octavo.bench.scoring_model.ScoringModel.__init__", stop)
    monkeypatch.setattr("octavo.executor.executor.executor_here", stop)
    monkeypatch.setattr("octavo.cli.kernels_build._cpu_work", stop)
    monkeypatch.setattr("octavo.cli.kernels_test._devices", stop)
    monkeypatch.setattr("octavo.cli.kernels_bench._backend", stop)
    monkeypatch.setattr("octavo.cli.kernels_new._ROOT", tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("text\n"))
    monkeypatch.chdir(tmp_path)


def words(name: str, draw: random.Random) -> list[str]:
    """A command line of the command's own flags, and of some that it lacks."""
    parser = parser_of(name, import_module(f"octavo.cli.{name.replace(' ', '_').replace('-', '_')}"))  # type: ignore[arg-type]
    flags = [flag for action in parser._actions for flag in action.option_strings if flag != "--debug"]
    found = ["smollm2"] * draw.randint(0, 1)
    for _ in range(draw.randint(1, 4)):
        misspelt = draw.choice(flags or ["--a-b"]).replace("-", "_")
        flag = draw.choice([*flags, misspelt, "--quantization", "-tp", "--no-such"])
        value = draw.choice(VALUES)
        found += draw.choice([[flag, value], [f"{flag}={value}"], [flag], [value]])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_command_line_is_done_or_refused_in_a_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(NUM_TRIES):
        argv = [*name.split(), *words(name, random.Random(f"{name} {number}"))]
        code = main(argv)
        shown = capsys.readouterr().err
        refusals = [line for line in shown.splitlines() if line.startswith("octavo: error: ")]
        assert code in (0, 1, 2), argv
        assert (code == 2) == (len(refusals) == 1), (argv, shown)
        assert all(line.startswith("octavo: ") for line in shown.splitlines()), (argv, shown)
