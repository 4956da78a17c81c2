"""A step of a run as text for a terminal: memory, block tables, the schedule up to there, and the numbers."""

from __future__ import annotations

from string import ascii_letters

from octavo.observe.frames import NULL_BLOCK
from octavo.viz.history import History, Line
from octavo.viz.memory_map import cells_of, num_shown
from octavo.viz.numbers import numbers_of

_MOST_LINES = 40
_SIGNS = {"waiting": "-", "idle": " ", "preempted": "!", "prefill": "#", "again": "+", "decode": "="}
_LOUD = "!+#-= "  # of several steps in one column, the first of these is shown


def text(history: History, group: int, num_columns: int) -> str:
    """num_columns: of the terminal."""
    parts = [_memory(history, num_columns), _tables(history, group, num_columns), _schedule(history, num_columns)]
    numbers = ["numbers", *(f"{label:>12}  {told}" for label, told in numbers_of(history.frame))]
    return "\n\n".join([*parts, "\n".join(numbers)]) + "\n"


def _memory(history: History, num_columns: int) -> str:
    frame, cells = history.frame, cells_of(history.frame)
    owners = sorted({cell.owners[0] for cell in cells.values()})
    letter = {owner: ascii_letters[place % len(ascii_letters)] for place, owner in enumerate(owners)}
    count, width = num_shown(frame), max(10, (num_columns - 8) // 10 * 10)
    signs = []
    for block_id in range(1, count + 1):
        cell = cells.get(block_id)
        if cell is None:
            signs.append(":" if block_id in frame.nodes else ".")
        elif len(cell.owners) > 1:
            signs.append(str(min(len(cell.owners), 9)))
        else:
            signs.append(letter[cell.owners[0]])
    rows = [f"{start + 1:>6} {''.join(signs[start : start + width])}" for start in range(0, count, width)]
    head = f"memory at step {frame.step:,}: a letter is a sequence, a digit so many that share, : cached, . free"
    names = ", ".join(f"{letter[owner]} {history.name_of(owner)}" for owner in owners[:_MOST_LINES])
    return "\n".join([head, *rows, *([f"       {names}"] if names else [])])


def _tables(history: History, group: int, num_columns: int) -> str:
    lines = ["block tables: the blocks of each sequence, in the order of its tokens; · behind the window"]
    holders = [(one, tables[group]) for one, tables in sorted(history.frame.tables.items()) if tables[group]]
    for sequence_id, table in holders[:_MOST_LINES]:
        row = " ".join("·" if block_id == NULL_BLOCK else str(block_id) for block_id in table)
        lines.append(_cut(f"{history.name_of(sequence_id):>6} {row}", num_columns))
    return "\n".join(lines + _more(len(holders)))


def _schedule(history: History, num_columns: int) -> str:
    head = "schedule: - waits, # prefill, = decodes, ! preempted, + computed again, | ends"
    num_steps, width = len(history.columns), max(10, num_columns - 9)
    each = -(-num_steps // width)
    lines = [one for one in history.lines.values() if one.spans][-_MOST_LINES:]
    rows = [f"{line.name:>6} {_row(line, num_steps, each)}" for line in lines]
    return "\n".join([head, *rows, *_more(sum(bool(one.spans) for one in history.lines.values()))])


def _row(line: Line, num_steps: int, each: int) -> str:
    signs = [" "] * (-(-num_steps // each) + 1)
    for span in line.spans:
        sign = _SIGNS[span.kind]
        for place in range(span.first // each, -(-span.end // each)):
            signs[place] = min(signs[place], sign, key=_LOUD.index)
    if line.end is not None:
        signs[-(-line.end[0] // each)] = "|"
    return "".join(signs).rstrip()


def _more(count: int) -> list[str]:
    return [f"       ... {count - _MOST_LINES:,} more"] if count > _MOST_LINES else []


def _cut(line: str, num_columns: int) -> str:
    return line if len(line) <= num_columns else f"{line[: num_columns - 4]} ..."
