"""octavo chat and octavo complete against a server with a scripted engine."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from octavo.cli.main import main
from octavo.cli.terminal_text import visible
from octavo.errors import EngineDeadError
from octavo.sampling_params import SamplingParams
from octavo.server.app import create_app
from octavo.server.settings import ServerSettings
from tests.cli.test_run import Terminal
from tests.server.live_server import serve
from tests.server.scripted_engine import WORDS, ScriptedEngine

SAID = "".join(WORDS)

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def address(engine: ScriptedEngine) -> Iterator[str]:
    with serve(create_app(engine, ServerSettings(served_model_name=("tiny", "other"), api_key=("sesame",)))) as found:
        yield found


@pytest.fixture
def ask(address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ask:
    """octavo ... --url -> exit code, standard output and error."""
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    def run(*argv: str, typed: Iterator[str] | None = None) -> tuple[int, str, str]:
        if typed is not None:
            monkeypatch.setattr(sys, "stdin", Terminal())
            monkeypatch.setattr("builtins.input", lambda prompt: _next(typed))
        code = main([*argv, "--url", f"{address}/v1"])
        return (code, *capsys.readouterr())

    return run


def _next(typed: Iterator[str]) -> str:
    try:
        return next(typed)
    except StopIteration:
        raise EOFError from None


def asked(engine: ScriptedEngine) -> list[str]:
    """The prompts that the engine received, as text."""
    assert engine.tokenizer is not None
    return [engine.tokenizer.decode(list(one.prompt_token_ids), skip_special_tokens=False) for one in engine.requests]


def test_one_message_is_answered_with_what_was_asked_for(ask: Ask, engine: ScriptedEngine) -> None:
    code, out, _ = ask("chat", "-q", "Hi", "--system-prompt", "Be brief.", "--temperature", "0.25", "--seed", "7")
    assert (code, out) == (0, SAID + "\n")
    (prompt,) = asked(engine)
    assert "system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>" in prompt
    params = engine.requests[0].sampling_params
    assert (params.temperature, params.seed) == (0.25, 7)


def test_a_chat_remembers_until_it_is_reset(ask: Ask, engine: ScriptedEngine) -> None:
    lines = iter(["A?", "B?", "/reset", "C?", "/help", "/exit", "never read"])
    code, out, err = ask("chat", "--system-prompt", "Be brief.", "--model-name", "other", typed=lines)
    assert (code, out) == (0, (SAID + "\n") * 3)
    first, second, third = asked(engine)
    assert first.count("<|im_start|>user") == 1
    assert f"A?<|im_end|>\n<|im_start|>assistant\n{SAID}<|im_end|>\n<|im_start|>user\nB?<|im_end|>" in second
    assert "A?" not in third
    assert "C?" in third
    assert all("Be brief." in prompt for prompt in (first, second, third))
    assert "/reset" in err
    assert next(lines) == "never read"


def test_ctrl_c_stops_the_answer_at_the_server_and_not_the_chat(ask: Ask, engine: ScriptedEngine) -> None:
    engine.pause = 30.0

    def interrupt(number: int, frame: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def once_it_answers(number: int, frame: object) -> None:
        """Even if the machine is slow to start, the first word comes at once and the next after the pause."""
        signal.signal(signal.SIGALRM, interrupt if engine.live else once_it_answers)
        signal.setitimer(signal.ITIMER_REAL, 0.7 if engine.live else 0.05)

    def typed() -> Iterator[str]:
        signal.signal(signal.SIGALRM, once_it_answers)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        yield "Count."
        deadline = time.monotonic() + 10
        while engine.live and time.monotonic() < deadline:
            time.sleep(0.01)
        assert engine.live == 0, "the server still answers what nobody reads"
        engine.pause = 0.0
        yield "Again."
        yield "/exit"

    code, out, _ = ask("chat", typed=typed())
    assert (code, out) == (0, f"{WORDS[0]}\n{SAID}\n")
    assert f"<|im_start|>assistant\n{WORDS[0]}<|im_end|>" in asked(engine)[1]


def test_a_chat_outlives_an_answer_that_fails(ask: Ask, engine: ScriptedEngine) -> None:
    engine.fault, engine.fault_at = EngineDeadError("it fell over"), 2

    def typed() -> Iterator[str]:
        yield "A?"
        engine.fault = None
        yield "B?"
        yield "/exit"

    code, out, err = ask("chat", typed=typed())
    assert (code, out) == (0, f"{''.join(WORDS[:2])}\n{SAID}\n")
    assert "stopped in the middle of the answer: it fell over" in err
    assert "A?" not in asked(engine)[-1]


def test_without_a_person_a_failure_ends_the_chat(
    ask: Ask, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.fault = EngineDeadError("it fell over")
    monkeypatch.setattr(sys, "stdin", io.StringIO("A?\nB?\n"))
    code, _, err = ask("chat")
    assert code == 2
    assert err.startswith("octavo: error: the server answered 503: it fell over")
    assert len(engine.requests) == 1


def test_prompts_from_a_pipe_are_completed_as_they_are(
    ask: Ask, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("  One, two,\n\nA, B,\n"))
    code, out, _ = ask("complete", "--max-tokens", "3")
    assert (code, out) == (0, "".join(WORDS[:3]) + "\n" + "".join(WORDS[:3]) + "\n")
    assert asked(engine) == ["  One, two,", "A, B,"]
    assert ask("complete", "-q", "One,")[:2] == (0, SAID + "\n")


def test_a_key_is_asked_for(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    code, _, err = ask("chat", "-q", "Hi")
    assert code == 2
    assert "the server answered 401: " in err
    assert "--api-key" in err
    assert ask("chat", "-q", "Hi", "--api-key", "sesame")[0] == 0
    assert "no header can carry" in ask("chat", "-q", "Hi", "--api-key", "k\n")[2]


def test_a_refusal_is_told_in_the_servers_words(ask: Ask) -> None:
    code, _, err = ask("chat", "-q", "Hi", "--model-name", "nobody")
    assert code == 2
    assert "the server answered 404: the model 'nobody' is not served here; allowed is 'tiny' or 'other'" in err


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://127.0.0.1:1/v1", "no server answers at http://127.0.0.1:1/v1"),
        ("localhost:8000", "allowed is an address such as"),
        ("http://localhost:port/v1", "allowed is an address such as"),
    ],
)
def test_an_address_where_nobody_is(url: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "-q", "Hi", "--url", url]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_what_is_no_openai_server_is_recognised(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "-q", "Hi", "--url", address, "--api-key", "sesame"]) == 2
    assert f"--url is {address}, and OpenAI's API is usually under /v1" in capsys.readouterr().err


def test_what_a_model_says_cannot_move_the_cursor() -> None:
    assert visible("a\x1b[2J\tb\r\n\x9b") == "a\\x1b[2J\tb\\x0d\n\\x9b"


def makers_say_nothing(engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    info = replace(engine.model_info, default_sampling_params=SamplingParams())
    monkeypatch.setattr(ScriptedEngine, "model_info", property(lambda self: info))


def test_a_chat_asks_as_people_want_where_the_models_makers_say_nothing(
    ask: Ask, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recommendations are the server's defaults, which the client does not override."""
    assert ask("chat", "-q", "Hi")[0] == 0
    makers_say_nothing(engine, monkeypatch)
    assert ask("chat", "-q", "Hi")[0] == 0
    assert ask("chat", "-q", "Hi", "--min-p", "0.5", "--temperature", "1")[0] == 0
    shown = [
        (one.sampling_params.temperature, one.sampling_params.top_p, one.sampling_params.min_p)
        for one in engine.requests
    ]
    assert shown == [(0.5, 1.0, 0.0), (0.7, 0.95, 0.05), (1.0, 0.95, 0.5)]


def test_each_turn_has_a_seed_of_its_own_and_the_first_can_be_given_again(
    ask: Ask, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    makers_say_nothing(engine, monkeypatch)
    _, _, told = ask("chat", "-v", typed=iter(["A?", "/reset", "A?", "/exit"]))
    first, second = (one.sampling_params.seed for one in engine.requests)
    assert f"octavo: --seed {first} reproduces these answers" in told
    assert first is not None
    assert second == first + 1


def test_a_piped_text_joins_the_message_and_words_with_a_slash_are_sent(
    ask: Ask, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a report\n"))
    assert ask("chat", "-q", "Sum up:")[0] == 0
    assert ask("chat", "other", typed=iter(["/etc/hosts?", "  indented", "/exit"]))[0] == 0
    prompts = asked(engine)
    assert "<|im_start|>user\nSum up:\n\na report<|im_end|>" in prompts[0]
    assert "<|im_start|>user\n/etc/hosts?<|im_end|>" in prompts[1]
    assert "<|im_start|>user\n  indented<|im_end|>" in prompts[2]


def test_a_cut_answer_says_so_through_a_pipe_too(ask: Ask) -> None:
    code, _, told = ask("chat", "-q", "Hi", "--max-tokens", "2")
    assert code == 0
    assert told == "octavo: the answer was cut at the token limit; --max-tokens may raise it\n"
