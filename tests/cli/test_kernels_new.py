"""`octavo kernels new`: in a copy of the tree, the written op compiles, is listed, passes its tests and is timed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.cli import kernels_new
from octavo.cli.main import main
from octavo.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the command changes and what then runs, with its compiled modules."""
    root = tmp_path_factory.mktemp("checkout")
    for folder in ("octavo", "csrc", "tests"):
        shutil.copytree(ROOT / folder, root / folder)
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


def octavo(tree: Path, *argv: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, "-m", "octavo", "kernels", *argv]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_new_ops_compile_and_pass(tree: Path) -> None:
    """With one tensor and two numbers, and with two tensors."""
    new = {"scaled": "-x / 2 * scale + 1e-3 * shift", "mix": "x * weight + (1 - weight) * y", "halved": "x / 2"}
    for name, formula in new.items():
        out = octavo(tree, "new", name, formula)
        assert f"Now: octavo kernels test {name}" in out
        assert out.count("\n\n") == len(kernels_new._PLACES)
    listed = octavo(tree, "list", *new)
    for path in ("reference/ops.py", "elementwise/elementwise.py", "elementwise.cpp"):
        assert listed.count(f"{path}:") == len(new)
    assert "has no kernel" not in listed
    lint = [sys.executable, "-m", "ruff"]
    if shutil.which("ruff") is not None:
        for how in (["check", "-q"], ["format", "--check", "-q"]):
            subprocess.run([*lint, *how, "octavo/kernels", "tests/kernels"], cwd=tree, check=True)
    tested = octavo(tree, "test", "mix")  # the tests go through every case of the table
    assert "0.7, 64 columns" in tested
    assert "tests use mix" in tested
    assert "TOO LARGE" not in tested
    assert "256 x 2048" in octavo(tree, "bench", "mix", "--backend", "cpu")


def test_a_dry_run_writes_nothing(tree: Path) -> None:
    before = {path: (tree / path).read_text() for path, _, _ in kernels_new._PLACES}
    out = octavo(tree, "new", "cubed", "x * x * x", "--dry-run")
    assert "def cubed(self, x: Consumed) -> Tensor:" in out
    assert before == {path: (tree / path).read_text() for path in before}


@pytest.mark.parametrize(
    ("name", "formula", "problem"),
    [
        ("Scaled", "x * scale", "the op's name is 'Scaled'"),
        ("lambda", "x", "the op's name is 'lambda'"),
        ("softcap", "x", "there is an op 'softcap' already"),
        ("apply", "x", "there is an op 'apply' already"),
        ("attention", "x", "there is an op 'attention' already"),
        ("scaled", "y * scale", "use x in it"),
        ("scaled", "x * a + b * c", "with the numbers a, b, c; allowed are two at most"),
        ("scaled", "x * Scale", "a number is called 'Scale'"),
        ("scaled", "x * over", "a number is called 'over'"),
        ("scaled", "x * " + "1" * 60, "the formula has 64 characters, allowed are 50"),
        *(
            ("scaled", formula, "allowed are names, numerals, + - * / and parentheses")
            for formula in (
                *(
                    "",
                    "x ** 2",
                    "exp(x)",
                    "x if y else 1",
                    "x +",
                    "x; y",
                    "x[0]",
                    "'x'",
                    "x * True",
                    "x * 1j",
                    "x * 1e999",
                ),
                *("- -x", "__import__('os')", "(x\n+ y)", "x\0", "x * 1e31", "lambda: x", "+x"),
            )
        ),
    ],
)
def test_refusals(name: str, formula: str, problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        kernels_new._new_op(name, formula)
    assert problem in str(raised.value)


def test_numerals_keep_their_digits() -> None:
    new = kernels_new._new_op("scaled", "x * 0.123456789 - (y - 3)")
    assert new.text() == "x * 0.123456789 - (y - 3)"
    assert "return x * 0.123456789f - (y - 3.0f);" in kernels_new._cpu(new)


def test_a_wheel_has_nowhere_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels_new, "_ROOT", tmp_path)
    assert main(["kernels", "new", "scaled", "x * scale"]) == 2
    assert "is no checkout" in capsys.readouterr().err
