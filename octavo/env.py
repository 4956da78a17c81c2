"""The few environment variables.

OCTAVO_CACHE_DIR   where built kernels, joined model files and derived tables are kept; default ~/.cache/octavo
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The cache folder, made if it is not there."""
    path = Path(os.environ.get("OCTAVO_CACHE_DIR") or Path.home() / ".cache" / "octavo")
    path.mkdir(parents=True, exist_ok=True)
    return path
