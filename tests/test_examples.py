"""The examples run unchanged and print something."""

from pathlib import Path

import pytest

from tests.warm_python import WarmPython

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(ROOT.glob("examples/*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example: Path, python: WarmPython) -> None:
    done = python.run(example.read_text(encoding="utf-8"), name=str(example), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2
