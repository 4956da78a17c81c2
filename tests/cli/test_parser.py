"""Command lines as people write them: where the model stands, how flags are spelled, what vLLM's flags do."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from octavo.cli import run_batch, serve
from octavo.cli.bench_vllm_flags import SERVE_FLAGS, THROUGHPUT_FLAGS
from octavo.cli.main import main, parser_of
from octavo.cli.parser import CommandParser
from octavo.cli.words import _SWITCHES, OF_ENGINES
from octavo.errors import ConfigError


def parser(*, takes_prompts: bool = False) -> CommandParser:
    made = CommandParser("try", "Try.")
    made.takes_model(takes_prompts=takes_prompts)
    made.add_argument("--max-model-len")
    made.add_argument("--stop", action="append", default=[])
    made.add_argument("--fast", action=argparse.BooleanOptionalAction, default=None)
    return made


@pytest.mark.parametrize(
    "argv", [["m"], ["--model", "m"], ["--model=m"], ["m", "--model", "m"], ["--max_model_len", "4k", "m"]]
)
def test_the_model_is_a_word_or_a_flag(argv: list[str]) -> None:
    assert parser().parse(argv).model == "m"
    assert parser(takes_prompts=True).parse([*argv, "Why?"]).prompt == ["Why?"]


@pytest.mark.parametrize(
    ("argv", "refusal"),
    [
        ([], "no model given"),
        ([""], "the model is ''"),
        (["m", "--model", "other"], "'m' as the first word and 'other' as a flag"),
        (["m", "more"], "unexpected argument 'more'"),
        (["m", "--max-model-length", "4"], r"no flag --max-model-length; did you mean --max-model-len\?"),
        (["m", "--fst"], r"no flag --fst; did you mean --fast\?"),
        (["m", "--no-fst"], r"did you mean --no-fast\? `"),
        (["m", "--max-model-len"], "expected one argument"),
    ],
)
def test_what_cannot_be_meant_is_refused(argv: list[str], refusal: str) -> None:
    with pytest.raises(ConfigError, match=refusal):
        parser().parse(argv)


def test_a_model_that_is_here_is_no_prompt() -> None:
    with pytest.raises(ConfigError, match="'smollm2' as the first word and 'm' as a flag"):
        parser(takes_prompts=True).parse(["smollm2", "Hi", "--model", "m"])
    assert parser(takes_prompts=True).parse(["and/or", "--model", "m"]).prompt == ["and/or"]


def test_underscores_are_dashes_in_names_only() -> None:
    args = parser().parse(["m", "--stop=a_b", "--stop", "c_d", "--no_fast"])
    assert (args.stop, args.fast) == (["a_b", "c_d"], False)
    args = parser(takes_prompts=True).parse(["m", "--", "--not_a_flag"])
    assert args.prompt == ["--not_a_flag"]


@pytest.mark.parametrize("words", [["-tp", "2"], ["-tp=2"], ["-tp2"], ["--tensor_parallel_size=2"]])
def test_vllms_short_names_of_our_flags_are_known(words: list[str]) -> None:
    made = parser_of("serve", serve)
    assert made.parse(["m", *words]).tensor_parallel_size == "2"
    words = [word.replace("-tp", "-pp").replace("tensor", "pipeline") for word in words]
    assert made.parse(["m", *words]).pipeline_parallel_size == "2"


@pytest.mark.parametrize(
    "words",
    [
        ["--decode-context-parallel-size", "1"],
        ["--decode_context_parallel_size=1"],
        ["-dcp", "1"],
        ["-dcp=1"],
        ["-O3"],
        ["-O", "3"],
        ["-cc.mode=3"],
        ["-cc.cudagraph_mode", "FULL"],
        ["-cc", '{"mode": 3}'],
        ["--multi-step-stream-outputs"],
        ["--no-multi-step-stream-outputs"],
        ["--trust-remote-code"],
        ["--no-enable-lora-bias"],
        ["--compilation-config.level", "3"],
        ["--compilation_config", '{"level": 3}'],
        ["--quantization-config", "None"],
    ],
)
def test_what_asks_for_nothing_is_taken_with_a_note(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    args = parser(takes_prompts=True).parse([*words, "m", "Why?"])
    assert (args.model, args.prompt) == ("m", ["Why?"])
    noted = capsys.readouterr().err
    assert noted.startswith("octavo: -")
    assert noted.count("\n") == 1
    assert "changes nothing here" in noted


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (
            ["--decode-context-parallel-size", "2"],
            "--decode-context-parallel-size 2 is not supported yet: tensor_parallel_size",
        ),
        (["-dcp=4"], "-dcp 4 is not supported yet"),
        (["--enable-lora-bias"], "--enable-lora-bias is not supported yet: an adapter adds scale"),
        (["--quantization-config", "awq"], "--quantization-config awq is not supported yet"),
        (["--logits-processor-pattern", "x"], "--logits-processor-pattern x is not supported yet"),
        (["--quantization-config"], "--quantization-config has no value"),
    ],
)
def test_what_vllm_has_and_octavo_lacks_is_said(words: list[str], refusal: str) -> None:
    with pytest.raises(ConfigError, match=refusal):
        parser().parse(["m", *words])


@pytest.mark.parametrize("words", [["-dp", "2"], ["-dp=2"], ["-dp2"], ["--data-parallel-size", "2"]])
def test_vllms_short_flags_are_those_that_octavo_has(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    made = parser(takes_prompts=True)
    made.add_argument("--data-parallel-size")
    args = made.parse([*words, "m", "Why?"])
    assert (args.data_parallel_size, args.prompt) == ("2", ["Why?"])
    assert capsys.readouterr().err == ""


def test_vllms_flags_are_not_taken_from_a_command_that_has_them() -> None:
    """The table lists only flags that Octavo lacks; `serve` has the server's flags."""
    made = parser_of("serve", serve)
    assert made.parse(["m", "--disable-log-stats", "--served-model-name", "a"]).disable_log_stats is True
    args = parser_of("run-batch", run_batch).parse(["m", "-i", "a", "-o", "b", "--disable-log-stats"])
    assert not hasattr(args, "disable_log_stats")


def test_every_switch_is_in_the_table() -> None:
    assert OF_ENGINES.keys() | SERVE_FLAGS.keys() | THROUGHPUT_FLAGS.keys() >= _SWITCHES


def write(folder: Path, text: str) -> str:
    path = folder / "server.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


FILE = """
model: small
port: 9000
max_model_len: 4k
served-model-name: [a, b]
enable-prefix-caching: false
enable-log-requests: true
decode-context-parallel-size: 1
api-key: null
"""


def test_a_file_of_flags_is_read_and_the_command_line_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = parser_of("serve", serve)
    args = made.parse(["--config", write(tmp_path, FILE)])
    assert (args.model, args.port, args.max_model_len) == ("small", "9000", "4k")
    assert (args.served_model_name, args.enable_prefix_caching, args.enable_log_requests) == (["a", "b"], False, True)
    assert not hasattr(args, "api_key")
    assert "--decode-context-parallel-size 1 changes nothing" in capsys.readouterr().err
    for model in (["big"], ["--model", "big"]):
        words = [*model, "--config", write(tmp_path, FILE), "--port=1", "--served_model_name", "c"]
        args = made.parse([*words, "--enable-prefix-caching"])
        assert (args.model, args.port, args.served_model_name) == ("big", "1", ["c"])
        assert args.enable_prefix_caching is True


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("prot: 1", r"no flag --prot; did you mean --port\?"),
        ("port: 1\nport: 2", "line 2: port appears twice"),
        ("max-model-len: 1\nmax_model_len: 2", "line 2: max_model_len appears twice"),
        ("- port", "holds a list"),
        ("port: [", "is not valid YAML"),
        ("config: other.yaml", "belongs on the command line"),
        ("quantization_config: awq", "--quantization-config awq is not supported yet"),
        ("port:\n  a: 1", "port is '{\"a\": 1}'"),
    ],
)
def test_what_is_wrong_in_a_file_names_the_file(
    text: str, refusal: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, text)
    assert main(["serve", "m", "--config", path]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert re.search(refusal, shown), shown
    assert "server.yaml" in shown or "port is" in shown


def test_a_file_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "m", "--config", "no/such.yaml"]) == 2
    assert "--config no/such.yaml cannot be read" in capsys.readouterr().err
