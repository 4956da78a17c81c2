"""What a model's makers recommend for sampling, under SamplingParams' names.

The values are checked as a request's are. One that no request may have is an error that names the file, not the
request that happens to come first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.errors import InvalidRequestError, ModelLoadError
from octavo.sampling_params import SamplingParams
from octavo.shown import cut, shown


def checked_defaults(path: Path, values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """names: the file's keys -> SamplingParams' fields. A null counts as left out."""
    defaults: dict[str, Any] = {}
    for key, name in names.items():
        value = values.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ModelLoadError(f"{path}: {key} is {shown(value)}; allowed: a number")
        try:
            checked: dict[str, Any] = {name: value}
            SamplingParams(**checked)
        except (InvalidRequestError, OverflowError) as error:
            raise ModelLoadError(f"{path}: {key} cannot be a default: {cut(str(error))}; correct the file") from None
        defaults[name] = value
    return defaults
