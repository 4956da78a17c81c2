"""The memory map: every block of KV memory as a cell, in the colour of the sequence that holds it.

■ held      ◧ held, half filled      ▣ shared by several      ▨ cached: free, but can be found      □ free
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.observe.frames import NULL_BLOCK, Frame
from octavo.pictures.picture import HEAD, MARGIN, Box, Picture, Stroke, Words, colour_of, text_on
from octavo.viz.history import History

_WIDTH, _HEIGHT = 900, 460
_LARGEST, _SMALLEST, _LABELLED = 36, 4, 28


@dataclass(frozen=True, slots=True)
class Cell:
    """A block that somebody holds. owners: sequences, the first one gives the colour. filled: slots with a token."""

    owners: tuple[int, ...]
    filled: int


def cells_of(frame: Frame) -> dict[int, Cell]:
    """Every owned block."""
    cells = {}
    for block_id, held in frame.owners().items():
        filled = max(frame.filled(sequence_id, place) for sequence_id, _, place in held)
        cells[block_id] = Cell(tuple(sorted({sequence_id for sequence_id, _, _ in held})), filled)
    return cells


def num_shown(frame: Frame) -> int:
    """Up to the last block that is in use or cached, if the rest is much: a pool is often larger than a run."""
    used = [block_id for block_id, count in enumerate(frame.ref_counts) if count and block_id != NULL_BLOCK]
    highest = max([*used, *frame.nodes], default=0)
    return min(frame.sizes.num_blocks, -(-(highest + 1) // 10) * 10)


def memory_map(history: History) -> Picture:
    frame = history.frame
    cells, count = cells_of(frame), num_shown(frame)
    side = _side_of(count)
    columns = (_WIDTH - 2 * MARGIN) // side
    rest = frame.sizes.num_blocks - count
    shared = sum(len(cell.owners) > 1 for cell in cells.values())
    note = f"{len(cells):,} of {frame.sizes.num_blocks:,} blocks of {frame.block_size} tokens are held"
    note += f", {shared:,} of them shared" if shared else ""
    note += f"; {rest:,} more, which are not drawn, are free" if rest else ""
    picture = Picture(f"KV memory at step {frame.step:,}", note, _WIDTH)
    for block_id in range(1, count + 1):
        x, y = MARGIN + (block_id - 1) % columns * side, HEAD + (block_id - 1) // columns * side
        _draw(picture, frame, block_id, cells.get(block_id), (x + 1.0, y + 1.0, side - (2.0 if side > 5 else 1.0)))
    bottom = HEAD + -(-count // columns) * side + 22
    _legend(picture, history, cells, bottom)
    return picture


def _side_of(count: int) -> int:
    side = _LARGEST
    while side > _SMALLEST and ((_WIDTH - 2 * MARGIN) // side) * (_HEIGHT // side) < count:
        side -= 1
    return side


def _draw(picture: Picture, frame: Frame, block_id: int, cell: Cell | None, place: tuple[float, float, float]) -> None:
    x, y, side = place
    middle = x + side / 2
    if cell is None:
        is_cached = block_id in frame.nodes
        picture.shapes.append(Box(x + 0.5, y + 0.5, side - 1, side - 1, None, "cached" if is_cached else "edge"))
        if is_cached:
            slants = [(x + at, y + side, x + side, y + at) for at in range(0, int(side), 4)]
            slants += [(x, y + at, x + at, y) for at in range(4, int(side), 4)]
            picture.shapes += [Stroke(((a, b), (c, d)), "cached") for a, b, c, d in slants]
    else:
        colour, share = colour_of(cell.owners[0]), cell.filled / frame.block_size
        picture.shapes += [Box(x, y, side, side, colour, opacity=0.25), Box(x, y, side * share, side, colour)]
        if len(cell.owners) > 1:
            picture.shapes.append(Box(x + 0.75, y + 0.75, side - 1.5, side - 1.5, None, "ink", 1.5))
    if side >= _LABELLED - 2:
        is_shared = cell is not None and len(cell.owners) > 1
        on = text_on(colour_of(cell.owners[0])) if cell and cell.filled * 2 >= frame.block_size else "ink"
        picture.shapes.append(Words(middle, y + side / 2 - 5 * is_shared, str(block_id), 10, on, "middle"))
        if cell is not None and is_shared:
            picture.shapes.append(Words(middle, y + side / 2 + 8, f"× {len(cell.owners)}", 10, on, "middle", True))


def _legend(picture: Picture, history: History, cells: dict[int, Cell], y: float) -> None:
    """Names of the sequences, as many as fit two lines."""
    owners = sorted({owner for cell in cells.values() for owner in cell.owners})
    x: float = MARGIN
    for number, sequence_id in enumerate(owners):
        name = history.name_of(sequence_id)
        width = 15 + 7 * len(name) + 14
        if x + width > _WIDTH - MARGIN:
            x, y = MARGIN, y + 20
            if number and y > picture.height + HEAD + _HEIGHT + 60:
                break
        picture.shapes += [Box(x, y - 5, 10, 10, colour_of(sequence_id)), Words(x + 15, y, name, 11.5, "quiet")]
        x += width
    picture.shapes.append(
        Words(
            MARGIN,
            y + 22,
            "framed: shared by several sequences · hatched: cached, free but found again · empty: free",
            11.5,
            "quiet",
        )
    )
    picture.height = y + 44
