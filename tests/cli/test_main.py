"""The command line's entry: help, version, refusals, exit codes."""

import io
import sys
from types import SimpleNamespace

import pytest

import octavo
from octavo.cli import main as cli
from octavo.errors import ConfigError


def test_no_command_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert f"  {command} " in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"octavo {octavo.__version__}\n"


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name != "help"])
def test_help_of_every_command_fits_a_screen_and_can_be_had_in_full(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([*command.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: octavo {command}")
    assert shown.count("\n") <= 40
    assert [line for line in shown.splitlines() if len(line) > 80 and not may_be_long(line)] == []
    assert cli.main(["help", *command.split()]) == 0
    assert capsys.readouterr().out == shown
    assert cli.main([*command.split(), "--help=all"]) == 0
    assert "--debug" in capsys.readouterr().out


def may_be_long(line: str) -> bool:
    """A command line to copy, and a flag's choices."""
    return (line.startswith("octavo ") and "  " not in line) or (line.startswith("  --") and line.endswith(("}", "]")))


def test_the_overview_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_help_about_a_word_or_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--help=ssl"]) == 0
    shown = capsys.readouterr().out
    assert "--ssl-keyfile" in shown
    assert "--max-num-seqs" not in shown
    assert cli.main(["help", "run", "CacheConfig"]) == 0
    shown = capsys.readouterr().out
    assert "--block-size" in shown
    assert "--max-num-seqs" not in shown
    assert cli.main(["serve", "--help=frobnicate"]) == 2
    assert "--help=all shows them all" in capsys.readouterr().err


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words, hint in (
        (["frobnicate"], "allowed are bench cost, bench latency, "),
        (["bench", "serv"], "did you mean 'bench serve'?"),
    ):
        assert cli.main(words) == 2
        assert f"no command {' '.join(words)!r}; {hint}" in capsys.readouterr().err


@pytest.mark.parametrize(("fault", "code"), [(ConfigError("no"), 2), (KeyboardInterrupt(), 130)])
def test_faults_become_exit_codes(
    fault: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: object) -> int:
        raise fault

    command = SimpleNamespace(add_arguments=lambda parser: None, run=run, __doc__="")
    monkeypatch.setattr(cli, "import_module", lambda name: command)
    assert cli.main(["run"]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_DEBUG", "1")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(octavo.OctavoError):
        cli.main(["run", "smollm2", "-i", "no/such/file"])


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "smollm2", "-i", "no/such/file"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("octavo: error: --input no/such/file cannot be read")
    assert error.count("\n") == 1


def test_what_was_typed_does_nothing_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "a\nb\x1b[31m\udcff\u00e9"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(r"octavo: error: a\nb\x1b[31m\udcff\u00e9 cannot be listed".replace(r"\u00e9", "\u00e9"))
    assert error.count("\n") == 1


def test_prompts_and_input_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "smollm2", "Hi", "-i", "x"]) == 2
    assert "allowed is one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ("serve", "--tool-call-parser", "hermez"),
        ("serve", "--responses-store", "."),
        ("serve", "--tokenizer", "./none"),
        ("run-batch", "-i", "none", "-o", "none", "--tool-call-parser", "hermez"),
    ],
)
def test_a_wrong_name_is_refused_before_a_model_is_loaded(
    flags: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.cli.serve.Supervisor", None)
    assert cli.main([flags[0], "none", *flags[1:]]) == 2
    assert f"{flags[-2].strip('-').replace('-', '_')} is '{flags[-1]}', which" in capsys.readouterr().err
