"""Perplexity, divergence and questions: against transformers' logits, and any option or file without surprises."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import transformers  # noqa: E402

from octavo.bench.quality import windows  # noqa: E402
from octavo.bench.questions import read_questions  # noqa: E402
from octavo.bench.scoring_model import ScoringModel  # noqa: E402
from octavo.cli.main import main  # noqa: E402
from octavo.errors import ConfigError  # noqa: E402
from tests.tiny_models import make_tiny_model, with_tokenizer  # noqa: E402

TEXT = "the cat sat on the mat and the dog ran to the tree " * 12
WORDS = ["<unk>", *dict.fromkeys(TEXT.split())]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, `dense` and `int8`, and a text."""
    root = tmp_path_factory.mktemp("evaluation")
    with_tokenizer(make_tiny_model("gemma3", root / "dense"), WORDS[1:])
    assert main(["quantize", str(root / "dense"), str(root / "int8"), "--scheme", "int8", "--no-calibration"]) == 0
    (root / "text").write_text(TEXT)
    return root


def evaluated(capsys: pytest.CaptureFixture[str], *words: object) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["eval", *map(str, words), "--json", "--backend", "reference"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["models"]
    return found


def test_every_token_is_scored_once_with_half_a_window_before_it(root: Path) -> None:
    model = ScoringModel(str(root / "dense"), 16, backend="reference")
    tokens = model.tokenizer.encode(TEXT)
    for count in (2, 15, 16, 17, 24, 25, 100):
        parts = windows(model.tokenizer, TEXT, 16, count)
        scored = [token for part in parts for token in part.token_ids[part.first :]]
        assert scored == tokens[1:count]
        assert all(part.first >= 8 for part in parts[1:])
        assert all(len(part.token_ids) <= 16 for part in parts)


def test_perplexity_and_divergence_are_those_of_transformers(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = [WORDS.index(word) for word in TEXT.split()][:60]
    auto: Any = transformers.AutoModelForCausalLM
    theirs = auto.from_pretrained(root / "dense", dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens])).logits[0].log_softmax(-1)
    loss = -expected[:-1].gather(1, torch.tensor(tokens[1:])[:, None]).mean().item()
    words = ("--text", root / "text", "--num-tokens", 60, "--context", 64)
    dense, int8 = evaluated(capsys, root / "int8", "--reference", root / "dense", *words)
    assert dense["text"]["num_tokens"] == 59
    assert dense["text"]["loss"] == pytest.approx(loss, abs=2e-4)
    quantised = ScoringModel(str(root / "int8"), 64, backend="reference")
    q = torch.tensor(np.concatenate(list(quantised.logprobs(tokens))))
    divergence = torch.nn.functional.kl_div(q, expected[:-1], log_target=True, reduction="batchmean").item()
    assert int8["text"]["divergence"] == pytest.approx(divergence, abs=2e-4)
    assert 0 < int8["text"]["divergence"] < 0.1
    taken = (expected[:-1] - q).gather(1, torch.tensor(tokens[1:])[:, None])
    assert int8["text"]["change_error"] == pytest.approx(taken.std(correction=0).item() / 59**0.5, abs=1e-4)
    assert int8["text"]["same_best"] > 0.9


def test_a_model_has_lost_nothing_against_itself(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--text", root / "text", "--context", 16, "--num-tokens", 40)
    first, again = evaluated(capsys, root / "dense", "--reference", root / "dense", *words)
    assert first["text"]["perplexity"] == again["text"]["perplexity"]
    assert [again["text"][key] for key in ("change_error", "divergence", "same_best")] == [0, 0, 1]


def test_a_question_is_answered_with_the_likelier_choice(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ScoringModel(str(root / "dense"), 64, backend="reference")
    (rows,) = model.logprobs(model.tokenizer.encode("the cat sat on"))
    (after,) = model.logprobs(model.tokenizer.encode("the cat sat on the"), first=4)
    assert len(rows) == 3
    *others, best = sorted((word for word in WORDS if len(word) == 3), key=lambda word: after[0][WORDS.index(word)])
    asked = [{"question": "the cat sat on", "choices": [f" {other}", f" {best}"], "answer": 1} for other in others]
    asked.append({"question": "the cat sat on", "choices": [f" {best}", f" {others[0]}"], "answer": 1})
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, asked)))
    (found,) = evaluated(capsys, root / "dense", "--text", "none", "--context", 64, "--questions", path)
    assert (found["num_questions"], found["num_right"]) == (len(asked), len(asked) - 1)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 1 is not JSON"),
        ("[1]", "allowed is an object with question, choices and answer"),
        ('{"question": "a", "choices": ["b", "c"]}', "allowed is an object with question, choices and answer"),
        ('{"question": "", "choices": ["b", "c"], "answer": 0}', "question is '', allowed is a text"),
        ('{"question": "a", "choices": ["b"], "answer": 0}', "allowed are 2 to 64 texts"),
        ('{"question": "a", "choices": ["b", 3], "answer": 0}', "allowed are 2 to 64 texts"),
        ('{"question": "a", "choices": ["b", "c"], "answer": 2}', "answer is 2, allowed is 0 to 1"),
        ('{"question": "a", "choices": ["b", "c"], "answer": true}', "answer is True, allowed is 0 to 1"),
        ("\n", "has no question"),
    ],
)
def test_a_malformed_question_is_refused_with_its_line(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(line)
    with pytest.raises(ConfigError, match=problem):
        read_questions(str(path), 10)


def test_any_bytes_are_questions_or_refused(tmp_path: Path) -> None:
    good = json.dumps({"question": "a é", "choices": ["b", "c"], "answer": 1}).encode()
    path = tmp_path / "questions.jsonl"
    read = 0
    for number in range(300):
        draw = random.Random(number)
        content = bytearray(good)
        for _ in range(draw.randint(0, 3)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content)
        try:
            read += len(read_questions(str(path), 5))
        except ConfigError:
            continue
    assert read > 30


def test_packaged_questions(root: Path) -> None:
    pytest.importorskip("bfcl_eval")
    questions = read_questions("bfcl", 1000)
    assert len(questions) == 200
    assert all(0 <= one.answer < len(one.choices) for one in questions)


def test_any_command_line_evaluates_or_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    flags = {
        "--reference": ("dense", "int8", "none-here", "", "\0"),
        "--text": ("text", "text", "none", "/", "", "missing", "dense/model.safetensors"),
        "--num-tokens": ("2", "20", "0", "-1", "1", "x"),
        "--context": ("16", "64", "0", "7", "9" * 30, "257", "x"),
        "--questions": ("missing", "text", "", "/"),
        "--num-questions": ("2", "0", "x"),
        "--quantization": ("int8", "fp9", ""),
        "--dtype": ("float32", "float16", "int8"),
        "--backend": ("reference", "none"),
    }
    done = 0
    for number in range(24):
        draw = random.Random(number)
        words = [
            draw.choice(["dense", "int8", "dense", "missing"]),
            "--text",
            "text",
            "--num-tokens",
            "30",
            "--context",
            "32",
        ]
        for flag in draw.sample(sorted(flags), draw.randint(0, 3)):
            words += [flag, draw.choice(flags[flag][: draw.choice((2, 9))])]
        code = main(["eval", *words, "--backend", "reference"])
        refusals = [line for line in capsys.readouterr().err.splitlines() if line.startswith("octavo: error: ")]
        assert (code, len(refusals)) in ((0, 0), (2, 1)), (words, refusals)
        done += code == 0
    assert done > 5


def test_what_cannot_be_compared_is_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(*words: object) -> str:
        assert main(["eval", *map(str, words), "--backend", "reference"]) == 2
        return capsys.readouterr().err

    other = make_tiny_model("llama", tmp_path / "other", vocab_size=170)
    with_tokenizer(other, WORDS[1:])
    text = ("--text", root / "text", "--num-tokens", 30, "--context", 32)
    assert "have different tokenizers or vocabularies" in refusal(other, "--reference", root / "dense", *text)
    assert "--text is 'none' and there are no --questions" in refusal(other, "--text", "none")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    assert "GB are free: set --num-tokens lower" in refusal(root / "int8", "--reference", root / "dense", *text)
