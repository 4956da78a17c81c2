"""Shares a few buffers among a program's tensors, by when each is last used.

    storage   0 |=======|
              1     |=========|          0 and 2 never live at once: they may share a buffer
              2           |======|

A decoder of any depth needs about four: the residual stream, and what one layer has in hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.kernels.program.recorder import Instruction, Value


@dataclass(frozen=True, slots=True)
class BufferPlan:
    """widths[b]: floats a token of buffer b. buffer_of[storage]: where a storage lies."""

    widths: list[int]
    buffer_of: dict[int, int]


def share_buffers(instructions: Sequence[Instruction], given: Sequence[Value], kept: Sequence[Value]) -> BufferPlan:
    """`given` are filled before the first instruction; `kept` are still read after the last."""
    last_use = {value.storage: -1 for value in given}
    for index, instruction in enumerate(instructions):
        for value in (*instruction.inputs, *instruction.outputs):
            last_use[value.storage] = index
    last_use |= {value.storage: len(instructions) for value in kept}

    widths: list[int] = []
    buffer_of: dict[int, int] = {}
    free: list[int] = []

    def place(value: Value) -> None:
        if value.storage in buffer_of:
            return
        buffer = _closest(free, widths, value.stride)
        if buffer is None:
            buffer = len(widths)
            widths.append(0)
        else:
            free.remove(buffer)
        widths[buffer] = max(widths[buffer], value.stride)
        buffer_of[value.storage] = buffer

    for value in given:
        place(value)
    for index, instruction in enumerate(instructions):
        for value in instruction.outputs:
            place(value)
        # Freed only now: no op may find its result in a buffer that it still reads.
        ended = {value.storage for value in (*instruction.inputs, *instruction.outputs)}
        free.extend(buffer_of[storage] for storage in sorted(ended) if last_use[storage] == index)
    return BufferPlan(widths, buffer_of)


def _closest(free: list[int], widths: list[int], width: int) -> int | None:
    """The free buffer that wastes least: the narrowest that is wide enough, else the widest."""
    enough = [buffer for buffer in free if widths[buffer] >= width]
    if enough:
        return min(enough, key=lambda buffer: widths[buffer])
    return max(free, key=lambda buffer: widths[buffer], default=None)
