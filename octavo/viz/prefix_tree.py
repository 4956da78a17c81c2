"""The prefix tree: blocks that can be found again by their tokens, each behind the one that it continues.

[1]─[2]─[3]┬─[11]─[12]  a
           └─[17]  b                 a and b begin alike; where they differ, the path branches
"""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.observe.frames import Frame
from octavo.pictures.picture import HEAD, MARGIN, Box, Picture, Stroke, Words, colour_of, text_on
from octavo.viz.history import History
from octavo.viz.memory_map import Cell, cells_of

_SIDE, _STEP, _ROW = 28, 38, 36
_MOST_ROWS, _MOST_DEPTH = 150, 200


@dataclass(slots=True)
class Place:
    """A content of the tree: its blocks, of which all but the first are copies. row, column: where it is drawn."""

    block_ids: list[int]
    depth: int
    parent: Place | None = None
    children: list[Place] = field(default_factory=list)
    row: int = 0
    column: int = 0


def places_of(frame: Frame, group: int) -> tuple[list[Place], int]:
    """All places, each after its parent, and how many rows they take: a row for each branch."""
    places: dict[bytes, Place] = {}
    parents: dict[bytes, bytes] = {}
    for block_id, node in frame.nodes.items():
        if node.group == group:
            places.setdefault(node.content, Place([], node.depth)).block_ids.append(block_id)
            parents[node.content] = node.parent
    roots: list[Place] = []
    for content, place in places.items():
        place.parent = places.get(parents[content]) if parents[content] != content else None
        (roots if place.parent is None else place.parent.children).append(place)
    first, ordered, num_rows = min((place.depth for place in roots), default=0), list[Place](), 0
    left = roots[::-1]
    while left:  # depth first, without recursion: a path may be thousands of blocks long
        place = left.pop()
        ordered.append(place)
        parent = place.parent
        place.column = place.depth - first if parent is None else parent.column + 1
        if parent is not None and parent.children[0] is place:
            place.row = parent.row
        else:
            place.row, num_rows = num_rows, num_rows + 1
        left += place.children[::-1]
    return ordered, num_rows


def prefix_tree(history: History, group: int) -> Picture:
    frame = history.frame
    places, num_rows = places_of(frame, group)
    drawn = [place for place in places if place.row < _MOST_ROWS and place.column < _MOST_DEPTH]
    cells = cells_of(frame)
    in_use = sum(any(block in cells for block in place.block_ids) for place in places)
    note = f"{len(places):,} full blocks can be found again, {in_use:,} of them are in use; hatched ones are cached"
    if len(drawn) < len(places):
        note += f"; {len(drawn):,} are drawn"
    width = max(620, 2 * MARGIN + 110 + _STEP * (1 + max((place.column for place in drawn), default=0)))
    picture = Picture(f"Prefix tree at step {frame.step:,}", note, width, HEAD + min(num_rows, _MOST_ROWS) * _ROW + 20)
    for place in drawn:
        _draw(picture, history, place, cells)
    return picture


def _at(place: Place) -> tuple[float, float]:
    return MARGIN + place.column * _STEP, HEAD + place.row * _ROW


def _draw(picture: Picture, history: History, place: Place, cells: dict[int, Cell]) -> None:
    x, y = _at(place)
    if place.parent is not None:
        px, py = _at(place.parent)
        bend, middle = px + _SIDE + 5, _SIDE / 2
        start = (px + _SIDE, py + middle) if py == y else (bend, py + middle)
        picture.shapes.append(Stroke((start, (bend, y + middle), (x, y + middle)), "edge", 1.5))
    block_id = next((block for block in place.block_ids if block in cells), place.block_ids[0])
    cell = cells.get(block_id)
    if cell is None:
        picture.shapes.append(Box(x + 0.5, y + 0.5, _SIDE - 1, _SIDE - 1, None, "cached"))
        picture.shapes += [Stroke(((x + at, y + _SIDE), (x + _SIDE, y + at)), "cached") for at in range(0, _SIDE, 5)]
        picture.shapes += [Stroke(((x, y + at), (x + at, y)), "cached") for at in range(5, _SIDE, 5)]
        on = "ink"
    else:
        edge = "ink" if len(cell.owners) > 1 else None
        picture.shapes.append(Box(x, y, _SIDE, _SIDE, colour_of(cell.owners[0]), edge, 1.5))
        on = text_on(colour_of(cell.owners[0]))
    picture.shapes.append(Words(x + _SIDE / 2, y + _SIDE / 2, str(block_id), 10, on, "middle"))
    if not place.children and cell is not None:
        names = [history.name_of(owner) for owner in cell.owners]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        picture.shapes.append(Words(x + _SIDE + 7, y + _SIDE / 2, ", ".join(names[:3]) + more, 11, "quiet"))
