"""The tables of docs/models.md that the code makes: `python -m tests.support_tables` writes them into the page."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from octavo.kernels.inventory import CODES, multiplies, multiplies_blocks
from octavo.kernels.registry import BACKENDS
from octavo.kernels.tensor import BLOCK_DTYPES
from octavo.models.registry import FAMILIES
from octavo.models.supported import METHODS, families_as

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- made by python -m tests.support_tables -->\n", "<!-- end of what is made -->\n"


def page() -> str:
    """The page's text, with today's tables."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}{tables()}{END}{rest.split(END)[1]}"


def tables() -> str:
    families = [(f"`{family}`", *(_backends(family, method) for method in METHODS)) for family in sorted(FAMILIES)]
    kept = {label: [multiplies(backend, form) for backend in BACKENDS] for label, form in CODES.items()}
    kept |= {dtype: [multiplies_blocks(backend, dtype) for backend in BACKENDS] for dtype in sorted(BLOCK_DTYPES)}
    rows = [(label, *("as they are" if one else "made dense" for one in each)) for label, each in kept.items()]
    return f"\n{_table(('family', *METHODS), families)}\n{_table(('codes', *BACKENDS), rows)}\n"


def _backends(family: str, method: str) -> str:
    found = [backend for backend in BACKENDS if family in families_as(method, backend)]
    return "all" if len(found) == len(BACKENDS) else ", ".join(found) or "-"


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
