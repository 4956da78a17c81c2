"""The block tables as the PagedAttention paper draws them: which physical block each logical block of a sequence is.

        0    1    2    3
a.0    │ 1 ││ 2 ││ 3 │  6 │         entries joined from row to row are one block in memory;
a.1    │ 1 ││ 2 ││ 3 │  7 │         blocks 6 and 7 are each sequence's own
"""

from __future__ import annotations

from octavo.observe.frames import NULL_BLOCK
from octavo.pictures.picture import HEAD, MARGIN, Box, Picture, Words, colour_of, text_on
from octavo.viz.history import History
from octavo.viz.memory_map import Cell, cells_of

_LEFT, _CHIP, _HIGH, _ROW = 70, 38, 20, 27
_MOST_ROWS, _MOST_PLACES = 200, 400


def block_tables(history: History, group: int) -> Picture:
    frame = history.frame
    tables = {one: tables[group] for one, tables in sorted(frame.tables.items()) if tables[group]}
    rows, longest = list(tables)[:_MOST_ROWS], min(max(map(len, tables.values()), default=0), _MOST_PLACES)
    entries = sum(sum(block != NULL_BLOCK for block in table) for table in tables.values())
    num_blocks = len({block for table in tables.values() for block in table} - {NULL_BLOCK})
    note = f"{entries:,} entries name {num_blocks:,} blocks; joined entries are one block in memory"
    if len(tables) > len(rows):
        note += f"; the first {len(rows)} of {len(tables):,} sequences are drawn"
    width = max(560, MARGIN * 2 + _LEFT + longest * _CHIP)
    picture = Picture(f"Block tables at step {frame.step:,}", note, width, HEAD + 40 + len(rows) * _ROW)
    for place in range(longest):
        x = MARGIN + _LEFT + place * _CHIP + _CHIP / 2 - 2
        picture.shapes.append(Words(x, HEAD + 4, str(place), 10.5, "quiet", "middle"))
    cells = cells_of(frame)
    for number, sequence_id in enumerate(rows):
        y = HEAD + 18 + number * _ROW
        picture.shapes.append(Box(MARGIN, y + 6, 8, 8, colour_of(sequence_id)))
        picture.shapes.append(Words(MARGIN + 14, y + _HIGH / 2, history.name_of(sequence_id), 11.5))
        below = tables[rows[number + 1]] if number + 1 < len(rows) else []
        for place, block_id in enumerate(tables[sequence_id][:longest]):
            is_joined = place < len(below) and below[place] == block_id
            x = MARGIN + _LEFT + place * _CHIP
            _entry(picture, (x, y), block_id, cells.get(block_id), is_joined, frame.block_size)
    return picture


def _entry(
    picture: Picture, at: tuple[float, float], block_id: int, cell: Cell | None, is_joined: bool, block_size: int
) -> None:
    x, y = at
    if cell is None:
        picture.shapes.append(Words(x + _CHIP / 2 - 2, y + _HIGH / 2, "·", 11, "quiet", "middle"))
        return
    colour, share = colour_of(cell.owners[0]), cell.filled / block_size
    if is_joined:
        picture.shapes.append(Box(x + 7, y + _HIGH - 1, _CHIP - 18, _ROW - _HIGH + 2, colour))
    picture.shapes.append(Box(x, y, _CHIP - 4, _HIGH, colour, opacity=0.25))
    picture.shapes.append(Box(x, y, (_CHIP - 4) * share, _HIGH, colour))
    on = text_on(colour) if share >= 0.5 else "ink"
    picture.shapes.append(Words(x + _CHIP / 2 - 2, y + _HIGH / 2, str(block_id), 11, on, "middle"))
