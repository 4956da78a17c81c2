"""The defaults of `octavo run`: answers are varied and bounded, and say how they ended."""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from octavo.cli import run as run_command
from octavo.cli.main import main, parser_of
from octavo.cli.run import ONE_SHOT_MAX_TOKENS, RAW_MAX_TOKENS, _engine_options, _reader
from octavo.cli.run_requests import RequestReader
from octavo.cli.sampling_flags import for_people
from octavo.llm import LLM
from octavo.sampling_params import SamplingParams


def reader(
    *argv: str, recommended: SamplingParams | None = None, is_chat: bool = False, template: bool = True
) -> RequestReader:
    """The parameters for a model with these recommendations and a user with these flags."""
    tokenizer = SimpleNamespace(chat_template="..." if template else None, encode_chat=lambda messages: [1])
    llm = SimpleNamespace(
        get_tokenizer=lambda: tokenizer, get_default_sampling_params=lambda: recommended or SamplingParams()
    )
    return _reader(cast(LLM, llm), arguments(*argv), is_chat)


def arguments(*argv: str) -> argparse.Namespace:
    return parser_of("run", cast(Any, run_command)).parse(["smollm2", *argv])


def test_answers_are_sampled_as_people_want_unless_somebody_says_otherwise() -> None:
    params = reader().sampling_params
    assert (params.temperature, params.top_p, params.min_p) == (0.7, 0.95, 0.05)
    params = reader("--temperature", "0").sampling_params
    assert (params.temperature, params.top_p, params.min_p) == (0.0, 0.95, 0.05)
    makers = SamplingParams(temperature=0.6, top_k=20)
    params = reader(recommended=makers).sampling_params
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.6, 20, 1.0, 0.0)
    assert for_people(SamplingParams(repetition_penalty=1.1)).repetition_penalty == 1.1


def test_a_fresh_seed_each_start_is_told_and_can_be_given_again(capsys: pytest.CaptureFixture[str]) -> None:
    seeds = {reader().seed for _ in range(4)}
    assert len(seeds) == 4
    seed = reader("-v").seed
    assert f"--seed {seed} reproduces these answers" in capsys.readouterr().err
    again = reader("--seed", str(seed), "-v")
    assert again.seed == seed
    assert again.from_text("a", 2).sampling_params.seed == seed + 2  # type: ignore[operator]
    capsys.readouterr()
    reader("-v", "--temperature", "0")
    assert "seed" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("is_chat", "template", "most"),
    [
        (False, True, ONE_SHOT_MAX_TOKENS),
        (True, True, None),
        (False, False, RAW_MAX_TOKENS),
        (True, False, RAW_MAX_TOKENS),
    ],
)
def test_an_answer_has_an_end_as_help_says(
    is_chat: bool, template: bool, most: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reader(is_chat=is_chat, template=template).sampling_params.max_tokens == most
    makers = SamplingParams(max_tokens=7)
    assert reader(recommended=makers, is_chat=is_chat, template=template).sampling_params.max_tokens == 7
    assert reader("--max-tokens", "7", is_chat=is_chat, template=template).sampling_params.max_tokens == 7
    capsys.readouterr()
    assert main(["run", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "(default: 1,024, 128 without chat template, in a chat up to the context length)" in shown


def test_a_base_model_is_told_from_a_chat_model(capsys: pytest.CaptureFixture[str]) -> None:
    reader()
    reader("--raw", template=False)
    assert "no chat template" not in capsys.readouterr().err
    assert reader(template=False).encode_chat is None
    assert "smollm2 has no chat template: it continues text" in capsys.readouterr().err


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("B, C, D,\n"))


@pytest.mark.usefixtures("piped")
def test_a_piped_text_joins_the_prompt_and_a_cut_answer_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.jsonl"
    assert main(["run", "smollm2", "--raw", "Z,", "A,", "--ignore-eos", "--max-tokens", "2", "-o", str(path)]) == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["Z,\n\nB, C, D,", "A,\n\nB, C, D,"]
    assert "octavo: 2 of 2 answers were cut at 2 tokens; --max-tokens allows more" in capsys.readouterr().err


def test_an_answer_that_fills_the_context_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    words = ["--raw", "Once", "--ignore-eos", "--temperature", "0", "--max-model-len", "16"]
    assert main(["run", "smollm2", *words]) == 0
    assert "octavo: the answer was cut after 15 tokens, where the context is full" in capsys.readouterr().err


def test_bad_lines_and_options_are_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(self: object, *args: object, **options: object) -> None:
        raise AssertionError("nothing was to be loaded")

    monkeypatch.setattr("octavo.llm.LLM.__init__", load)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    path = tmp_path / "asked.jsonl"
    path.write_text('{"prompt": "a"}\n{"promt": "b"}\n')
    assert main(["run", "smollm2", "-i", str(path)]) == 2
    assert f"{path}, line 2: unknown key 'promt'" in capsys.readouterr().err
    assert main(["run", "smollm2", "Hi", "--top-p", "7"]) == 2
    assert "top_p is 7" in capsys.readouterr().err


def test_one_stream_at_a_time_is_computed_precisely() -> None:
    assert _engine_options(arguments("Hi"), is_alone=True)["activation_dtype"] == "int16"
    assert "activation_dtype" not in _engine_options(arguments("Hi", "--n", "4"), is_alone=True)
    assert "activation_dtype" not in _engine_options(arguments("Hi", "Ho"), is_alone=False)
    assert _engine_options(arguments("Hi", "--activation-dtype", "int8"), is_alone=True)["activation_dtype"] == "int8"
