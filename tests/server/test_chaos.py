"""Streams read, left and refused at once, an engine killed in the middle: nothing is lost, wrong or left behind."""

import time
from pathlib import Path

import pytest

from tests.server.chaos import PATIENCE_S, storm


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc")
def test_a_storm(tmp_path: Path) -> None:
    begin = time.monotonic()
    ends = storm(tmp_path, 60)
    # seconds on a quiet machine; a reader who waits in vain gives up only after PATIENCE_S
    assert time.monotonic() - begin < PATIENCE_S / 2, "those who come again after the engine's death wait for nothing"
    assert ends["engine killed"] == 1
    assert ends["read"] > 20
    assert ends["503"] + ends["error in a stream"] > 0, "nobody noticed that the engine was killed"
