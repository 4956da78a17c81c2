"""The folder of an adapter that a client names: inside another folder, and reached without links."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from octavo.errors import InvalidRequestError
from octavo.lora.adapter_config import CONFIG_NAME
from octavo.lora.folder import WEIGHTS_NAME
from octavo.shown import shown


def folder_in(root: str, path: str) -> Path:
    """The folder of an adapter that a client names, which must be inside the root, without links on the way. Raises
    InvalidRequestError, and looks at nothing outside."""
    inside = Path(root).resolve()
    named = inside / path
    if "\0" in path or ".." in named.parts or not named.is_relative_to(inside) or named == inside:
        raise InvalidRequestError(f"lora_path is {shown(path)}, allowed are folders inside lora_root, without '..'")
    below = named.relative_to(inside).parts
    steps = [inside.joinpath(*below[: count + 1]) for count in range(len(below))]
    for step in (*steps, named / CONFIG_NAME, named / WEIGHTS_NAME):
        try:
            mode = os.lstat(step).st_mode
        except OSError as error:
            raise InvalidRequestError(f"lora_path is {shown(path)}: {step.name}: {error.strerror}") from None
        if stat.S_ISLNK(mode):
            raise InvalidRequestError(f"lora_path is {shown(path)}, in which {step.name} is a link; allowed are none")
    return named
