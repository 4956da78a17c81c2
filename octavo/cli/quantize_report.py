"""What quantising changed, by layer: the error of its matrices, relative to the size of their numbers.

relative error    sqrt(sum of (quantised - dense)^2 / sum of dense^2)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import sqrt
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.models.quantized_copy import MatrixError


@dataclass(slots=True)
class Report:
    """dense_bytes, num_bytes: of the weights, dense and quantised."""

    dense_bytes: int
    num_bytes: int = 0
    errors: list[MatrixError] = field(default_factory=list)

    def add(self, error: MatrixError) -> None:
        self.errors.append(error)

    @property
    def size_line(self) -> str:
        share = self.num_bytes / max(1, self.dense_bytes)
        return f"{self.num_bytes / 1e6:,.1f} MB of weights, {share:.0%} of the dense {self.dense_bytes / 1e6:,.1f} MB"

    def lines(self, scheme: str) -> list[str]:
        layers: dict[int, list[MatrixError]] = {}
        for error in self.errors:
            layers.setdefault(_layer(error.name), []).append(error)
        head = [f"{len(self.errors)} matrices as {scheme}", "", f"{'layer':>5}  {'relative error':>14}  largest in"]
        rows = [_row(str(layer), layers[layer]) for layer in sorted(layers)]
        return [*head, *rows, _row("all", self.errors)] if len(rows) > 1 else [*head, *rows]

    def facts(self) -> dict[str, Any]:
        matrices = {error.name: _relative([error]) for error in self.errors}
        sizes = {"dense_bytes": self.dense_bytes, "num_bytes": self.num_bytes}
        return {**sizes, "relative_error": _relative(self.errors), "matrices": matrices}


def _row(name: str, errors: list[MatrixError]) -> str:
    worst = max(errors, key=lambda error: _relative([error]))
    where = worst.name.removesuffix(".weight")
    where = where if name == "all" else re.split(r"\.\d+\.", where, maxsplit=1)[-1]
    return f"{name:>5}  {_relative(errors):>14.3%}  {where} ({_relative([worst]):.3%})"


def _relative(errors: list[MatrixError]) -> float:
    changes, numbers = (sum(error.squared[i] for error in errors) for i in (0, 1))
    return sqrt(changes / numbers) if numbers else 0.0


def _layer(name: str) -> int:
    found = re.search(r"\.(\d+)\.", name)
    assert found is not None, "only matrices of layers are quantised"
    return int(found[1])
