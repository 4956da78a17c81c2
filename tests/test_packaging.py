"""What pip and uv install from pyproject.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_package_itself_requires_no_tensor_library() -> None:
    project = SETTINGS["project"]
    assert not [one for one in project["dependencies"] if one.startswith(("torch", "triton", "transformers"))]
    assert {
        "gpu",
        "cuda",
        "reference",
        "bench",
        "test",
        "dev",
        "otel",
        "plot",
        "flash-attn",
        "docs",
        "distributed",
        "ray",
    } == set(project["optional-dependencies"])


def test_uv_installs_what_make_does() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert SETTINGS["tool"]["uv"]["constraint-dependencies"] == [line for line in lines if not line.startswith("#")]
