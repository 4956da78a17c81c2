"""`octavo quantize` with any options: it writes a whole model or refuses in a line, and leaves nothing half done."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

pytest.importorskip("gguf")
pytest.importorskip("torch")

from octavo.cli.main import main
from tests.models.gguf_files import TINY_LLAMA, tiny_llama_tensors, write_gguf
from tests.quantization.folders import dense_model, folder_of, opened
from tests.tiny_models import with_tokenizer

NUM_TRIES = 40
FLAGS = {
    "--scheme": ("fp8", "int8", "int4", "int4", "INT8", "", "q4_0", "q8_0"),
    "--group-size": ("32", "64", "128", "0", "-1", "9" * 40, "x", ""),
    "--dtype": ("auto", "float32", "bfloat16", "float16", "fp8", ""),
    "--calibration": ("text", "text", "none", ".", "\0", ""),
    "--num-calibration-samples": ("40", "2", "1", "-1", "9" * 30, "x"),
    "--max-seq-length": ("40", "2", "1", "-1", "9" * 30, "x"),
    "--asymmetric": (None,),
    "--token-weights": ("equal", "gradient", "", "x"),
    "--no-calibration": (None,),
    "--ignore": ("down_proj", "model.layers.0", "model", "lm_head", "re:.*", "", "\0"),
    "--report": ("report.json", "none/report.json", ".", "\0", ""),
}


def test_any_command_line_writes_a_model_or_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "models"
    gguf = write_gguf(tmp_path / "tiny.gguf", "llama", TINY_LLAMA, tiny_llama_tensors())
    dense = str(with_tokenizer(dense_model(root), "abc"))
    sources = [*[dense] * 12, str(folder_of(root, "gptq") / "quantised"), str(gguf), "/none", "", "\0"]
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "text").write_text("a b c " * 40)
    written = 0
    for number in range(NUM_TRIES):
        draw = random.Random(number)
        words = [draw.choice(sources), draw.choice([*["out"] * 9, "out.gguf", "none/out", ".", "", "x" * 300, "a\0b"])]
        if words == [str(gguf), "out.gguf"]:
            words += ["--scheme", draw.choice(("q4_0", "q8_0", "q5_1"))]
        for flag in [*draw.sample(sorted(FLAGS), draw.randint(0, 2)), *["--scheme"] * draw.randint(0, 3)]:
            value = draw.choice(FLAGS[flag][: draw.choice((2, 9))])
            words += [flag] if value is None else [flag, value]
        if "--calibration" not in words:
            words += ["--no-calibration"] * draw.randint(0, 1) or ["--calibration", "text"]
        code = main(["quantize", *words])
        refusals = [line for line in capsys.readouterr().err.splitlines() if line.startswith("octavo: error: ")]
        assert (code, len(refusals)) in ((0, 0), (2, 1)), (words, refusals)
        left = {path.name for path in work.iterdir()} - {"report.json", "text"}
        assert left in (set(), {"out"}, {"out.gguf"}), words
        if code == 0:
            written += 1
            made = opened(*map(Path, left))
            assert made.architecture.quantization is not None or "Q4_0" in made.dtypes or "Q8_0" in made.dtypes, words
        shutil.rmtree("out", ignore_errors=True)
        Path("out.gguf").unlink(missing_ok=True)
    assert written > 5
