"""The numbers of a step, in words and as a picture above the curves of all steps."""

from __future__ import annotations

from collections.abc import Callable

from octavo.observe.frames import Frame
from octavo.pictures.picture import HEAD, MARGIN, Box, Picture, Stroke, Words
from octavo.viz.history import History, StepColumn
from octavo.viz.memory_map import cells_of

_WIDTH, _ROW, _CURVE = 900, 24, 70
_MOST_POINTS = 850
_CURVES: tuple[tuple[str, Callable[[StepColumn], int]], ...] = (
    ("blocks in use", lambda column: column.num_used_blocks),
    ("sequences in the batch", lambda column: column.num_sequences),
    ("tokens computed", lambda column: column.num_tokens),
    ("waiting sequences", lambda column: column.num_waiting),
)


def numbers_of(frame: Frame) -> list[tuple[str, str]]:
    """(label, text) each."""
    cells, size, sizes = cells_of(frame), frame.block_size, frame.sizes
    held, entries = len(cells), sum(frame.ref_counts)
    slots = sum(cell.filled for cell in cells.values())
    holders = sum(any(tables) for tables in frame.tables.values())
    contiguous = holders * sizes.num_groups * -(-sizes.max_model_len // size)
    tokens = sum(grant.num_tokens for grant in frame.batch.values())
    waste = 1 - slots / (held * size) if held else 0.0
    return [
        ("blocks", f"{held:,} of {sizes.num_blocks:,} in use, {held / sizes.num_blocks:.1%}"),
        ("waste", f"{waste:.1%} of the slots in them hold no token"),
        ("contiguous", f"{contiguous:,} blocks, had each sequence reserved max_model_len"),
        ("sharing", f"saves {1 - held / entries if entries else 0.0:.1%}: {held:,} blocks in place of {entries:,}"),
        ("step", f"{tokens:,} tokens of {len(frame.batch):,} sequences; {len(frame.waiting):,} wait"),
    ]


def numbers(history: History) -> Picture:
    columns = history.columns
    picture = Picture(f"Numbers at step {columns[-1].step:,}", "below: all steps up to this one", _WIDTH)
    y = float(HEAD)
    for label, told in numbers_of(history.frame):
        picture.shapes += [Words(MARGIN, y, label, 12, "quiet"), Words(MARGIN + 90, y, told, 12.5)]
        y += _ROW
    for title, value in _CURVES:
        y += 26
        _curve(picture, title, [value(column) for column in columns], y)
        y += _CURVE
    picture.height = y + MARGIN
    return picture


def _curve(picture: Picture, title: str, values: list[int], top: float) -> None:
    each = -(-len(values) // _MOST_POINTS)
    peaks = [max(values[at : at + each]) for at in range(0, len(values), each)]
    most, unit = max(1, *peaks), (_WIDTH - 2 * MARGIN) / len(peaks)
    for at, peak in enumerate(peaks):
        high = peak / most * (_CURVE - 8)
        picture.shapes.append(Box(MARGIN + at * unit, top + _CURVE - high, max(unit, 0.6), high, "prefill"))
    base = top + _CURVE
    picture.shapes += [
        Stroke(((MARGIN, base), (_WIDTH - MARGIN, base)), "edge"),
        Words(MARGIN, top - 6, title, 11.5, "quiet"),
        Words(_WIDTH - MARGIN, top - 6, f"at most {most if any(peaks) else 0:,}", 10.5, "quiet", "end"),
    ]
