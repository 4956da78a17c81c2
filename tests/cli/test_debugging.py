"""docs/debugging.md is correct: a debugger stops in a layer for a real request, and a traced step reports every op."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.warm_python import WarmPython

ROOT = Path(__file__).parent.parent.parent
REQUEST = ("-m", "octavo", "run", "smollm2", "Hi", "--max-tokens", "1", "--temperature", "0")
COMMAND_LINE = "import sys; from octavo.cli.main import main; sys.exit(main())"
LINE = re.compile(r"^(\w+) +(\S.*?)? +(?:\[[\d, ]+\] )*-> (?:\[[\d, ]+\] *)+norm [\d.e+ -]+$", re.MULTILINE)


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *argv]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, cwd=ROOT)


def pages_breakpoint() -> str:
    """The page's session, as commands of pdb."""
    found = re.search(r'-c "(break [^"]+)"', (ROOT / "docs/debugging.md").read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


def test_the_breakpoint_is_where_the_gate_is_multiplied() -> None:
    place = re.fullmatch(r"break (\S+):(\d+), .*", pages_breakpoint())
    assert place is not None
    assert "ops.gated_activation" in (ROOT / place[1]).read_text(encoding="utf-8").splitlines()[int(place[2]) - 1]


#: pdb by its name, and pdb in a Python that has torch already: with a breakpoint set, an import takes twice the time
PDB = ("-m", "pdb")
PDB_BESIDE_TORCH = ("-c", "import torch, pdb; pdb.main()")


@pytest.mark.parametrize(
    ("pdb", "flags"),
    [(PDB_BESIDE_TORCH, ("--backend", "reference")), (PDB, ("--backend", "cpu", "--trace-ops"))],
    ids=["reference", "cpu"],
)
def test_a_breakpoint_in_a_layer_stops_for_a_request(pdb: tuple[str, ...], flags: tuple[str, ...]) -> None:
    seen = ("p tuple(x.shape)", "p self.gate_up.parts[0].name", "where", "quit")
    commands = [word for one in (pages_breakpoint(), "continue", *seen) for word in ("-c", one)]
    shown = run(*pdb, *commands, *REQUEST, *flags).stdout
    assert "(31, 576)" in shown
    assert "'model.layers.0.mlp.gate_proj.weight'" in shown
    assert re.search(r"engine/core\.py.*worker/.*layers/blocks\.py", shown, re.DOTALL)


def test_a_traced_step_has_a_line_for_every_op(python: WarmPython) -> None:
    command = (*REQUEST[2:], "--backend", "cpu")
    plain, traced = (python.run(COMMAND_LINE, *command, *flags) for flags in ([], ["--trace-ops"]))
    assert traced.stdout == plain.stdout
    ops = [name for name, _ in LINE.findall(traced.stderr)]
    assert ops[:3] == ["embedding", "rms_norm", "linear"]
    assert ops.count("paged_attention") == 30
    assert "model.layers.29.mlp.down_proj" in traced.stderr
