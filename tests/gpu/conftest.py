"""Fixtures for tests of a GPU's code."""

from __future__ import annotations

import pytest


@pytest.fixture
def interpreter(inline_executor: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of this process take Triton's interpreter for their GPU, if there is none."""
    from tests.gpu.device import interpreted

    interpreted(monkeypatch)
