"""What quantising changed, by layer: the error of its matrices, relative to the size of their numbers.

relative error    sqrt(sum of (quantised - dense)^2 / sum of dense^2), of the numbers
of products       the same of the products with the inputs of the calibration text
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import sqrt
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.models.quantized_copy import MatrixError, Squares


@dataclass(slots=True)
class Report:
    """scheme: its name, for people. dense_bytes, num_bytes: of the weights, dense and quantised."""

    scheme: str
    dense_bytes: int
    num_bytes: int = 0
    errors: list[MatrixError] = field(default_factory=list)

    def add(self, error: MatrixError | None) -> None:
        """None: of a tensor that is no matrix of a layer."""
        if error is not None:
            self.errors.append(error)

    @property
    def size_line(self) -> str:
        share = self.num_bytes / max(1, self.dense_bytes)
        return f"{self.num_bytes / 1e6:,.1f} MB of weights, {share:.0%} of the dense {self.dense_bytes / 1e6:,.1f} MB"

    def lines(self) -> list[str]:
        from octavo.models.quantized_copy import layer_of

        layers: dict[int, list[MatrixError]] = {}
        for error in self.errors:
            layers.setdefault(layer_of(error.name), []).append(error)
        of_products = f"  {'of products':>11}" if any(error.products for error in self.errors) else ""
        title = f"{'layer':>5}  {'relative error':>14}{of_products}  largest in"
        head = [f"{len(self.errors)} matrices as {self.scheme}", "", title]
        rows = [_row(str(layer), layers[layer], bool(of_products)) for layer in sorted(layers)]
        return [*head, *rows, _row("all", self.errors, bool(of_products))] if len(rows) > 1 else [*head, *rows]

    def facts(self) -> dict[str, Any]:
        sizes = {"dense_bytes": self.dense_bytes, "num_bytes": self.num_bytes}
        facts: dict[str, Any] = {**sizes, "relative_error": _of_numbers(self.errors)}
        facts["matrices"] = {error.name: _of_numbers([error]) for error in self.errors}
        if any(error.products for error in self.errors):
            facts["products"] = {error.name: _of_products([error]) for error in self.errors if error.products}
        return facts


def _row(name: str, errors: list[MatrixError], has_products: bool) -> str:
    measure = _of_products if has_products else _of_numbers
    worst = max(errors, key=lambda error: measure([error]))
    where = worst.name.removesuffix(".weight")
    where = where if name == "all" else re.split(r"\.\d+\.", where, maxsplit=1)[-1]
    of_products = f"  {_of_products(errors):>11.3%}" if has_products else ""
    return f"{name:>5}  {_of_numbers(errors):>14.3%}{of_products}  {where} ({measure([worst]):.3%})"


def _of_numbers(errors: list[MatrixError]) -> float:
    return _relative([error.numbers for error in errors])


def _of_products(errors: list[MatrixError]) -> float:
    return _relative([error.products for error in errors if error.products])


def _relative(squares: list[Squares]) -> float:
    changes, whole = (sum(each[i] for each in squares) for i in (0, 1))
    return sqrt(max(0.0, changes) / whole) if whole else 0.0
