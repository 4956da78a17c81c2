"""The schedule: a line for each sequence from arrival to end, and below it each step's tokens against the budget."""

from __future__ import annotations

from octavo.pictures.picture import HEAD, MARGIN, Box, Picture, Stroke, Words, colour_of, text_on
from octavo.viz.history import History, Line, Span, StepColumn

_WIDTH, _LEFT, _BUDGET = 1000, 64, 110
_MOST_LINES, _MOST_COLUMNS = 400, 1800


def schedule(history: History, first_step: int = 0) -> Picture:
    """Of the history's steps from the first one on."""
    columns = history.columns
    first = next((at for at, column in enumerate(columns) if column.step >= first_step), 0)
    lines = [one for one in history.lines.values() if one.spans and one.spans[-1].end > first]
    shown = lines[:_MOST_LINES]
    note = (
        "thin: waiting · blue: prefill, chunk by chunk · green: decode · red dots: preempted · orange: computed again"
    )
    if len(lines) > len(shown):
        note += f" · the first {len(shown)} of {len(lines):,} lines are drawn"
    high = 18 if len(shown) <= 24 else 13 if len(shown) <= 60 else 9
    picture = Picture(f"Schedule of steps {columns[first].step:,} to {columns[-1].step:,}", note, _WIDTH)
    scale = _Scale(first, len(columns))
    for row, line in enumerate(shown):
        _line(picture, line, HEAD + row * high, high, scale)
    _budget(picture, columns, scale, HEAD + len(shown) * high + 12, history.frame.sizes.max_num_batched_tokens)
    picture.height = HEAD + len(shown) * high + 12 + _BUDGET + 30
    return picture


class _Scale:
    """Steps first .. end-1 across the picture."""

    def __init__(self, first: int, end: int) -> None:
        self.first, self.end = first, end
        self.unit = (_WIDTH - 2 * MARGIN - _LEFT) / max(end - first, 1)

    def x(self, at: int) -> float:
        return MARGIN + _LEFT + (min(max(at, self.first), self.end) - self.first) * self.unit


def _line(picture: Picture, line: Line, y: float, high: int, scale: _Scale) -> None:
    if high >= 12:
        picture.shapes.append(Box(MARGIN, y + high / 2 - 4, 8, 8, colour_of(line.sequence_id)))
        picture.shapes.append(Words(MARGIN + 13, y + high / 2, line.name, 11))
    for span in line.spans:
        if span.end > scale.first:
            _span(picture, span, y, high, scale)
    if line.end is not None and line.end[0] >= scale.first:
        radius = min(3.0, high / 3)
        picture.shapes.append(Box(scale.x(line.end[0]) - radius, y + high / 2 - radius, 2 * radius, 2 * radius, "ink"))


def _span(picture: Picture, span: Span, y: float, high: int, scale: _Scale) -> None:
    left, right, middle = scale.x(span.first), scale.x(span.end), y + high / 2
    if span.kind in ("waiting", "idle"):
        picture.shapes.append(
            Stroke(((left, middle), (right, middle)), "quiet", 1.5 if span.kind == "waiting" else 0.75)
        )
    elif span.kind == "preempted":
        picture.shapes.append(Stroke(((left, middle), (right, middle)), "preempted", 3, is_dotted=True))
    else:
        width = right - left - (1 if span.kind != "decode" and scale.unit > 3 else 0)
        picture.shapes.append(Box(left, y + 1.5, max(width, 0.6), high - 3, span.kind))
        if span.kind != "decode" and width > 24 and high >= 13:
            on = text_on(span.kind)
            picture.shapes.append(Words((left + right) / 2, middle, str(span.num_tokens), 10, on, "middle"))


def _budget(picture: Picture, columns: list[StepColumn], scale: _Scale, top: float, limit: int) -> None:
    seen = columns[scale.first :]
    most = max(1, *(column.num_tokens for column in seen))
    highest = limit if 0 < limit <= 2.5 * most else most
    base, unit = top + _BUDGET, (_BUDGET - 14) / highest
    each = max(1, len(seen) // _MOST_COLUMNS)
    for at in range(0, len(seen), each):
        column = max(seen[at : at + each], key=lambda one: one.num_tokens)
        y = base
        for kind, number in (("decode", column.decode), ("again", column.again), ("prefill", column.prefill)):
            if number:
                width = max(scale.unit * each - (1 if scale.unit > 3 else 0), 0.6)
                picture.shapes.append(Box(scale.x(scale.first + at), y - number * unit, width, number * unit, kind))
                y -= number * unit
    left, right = scale.x(scale.first), scale.x(scale.end)
    picture.shapes.append(Stroke(((left, base), (right, base)), "edge"))
    if highest == limit:
        picture.shapes.append(Stroke(((left, base - limit * unit), (right, base - limit * unit)), "quiet", 1, True))
    said = f"budget {limit:,} tokens" + ("" if highest == limit else ", above the top") if limit else ""
    picture.shapes += [
        Words(right, top + 4, said, 10.5, "quiet", "end"),
        Words(left - 6, base - highest * unit, f"{highest:,}", 10.5, "quiet", "end"),
        Words(left - 6, base - highest * unit + 14, "tokens", 10.5, "quiet", "end"),
        Words(left - 6, base, "0", 10.5, "quiet", "end"),
        Words(left, base + 12, f"step {seen[0].step:,}", 10.5, "quiet"),
        Words(right, base + 12, f"{seen[-1].step:,}", 10.5, "quiet", "end"),
    ]
