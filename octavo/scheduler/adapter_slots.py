"""AdapterSlots: which adapter is in which slot of the worker, and how many running sequences use it.

    slot   0           1           2                 a sequence with adapter "sql" starts: it uses slot 1
    key    7 "chat"    9 "sql"     (empty)           one with "law" takes slot 2; the next new one slot 0, as soon as
    uses   0           2           0                 nobody uses it: of those that are unused the one used first

A slot that is not used keeps its adapter until another one needs the place.
"""

from __future__ import annotations

from octavo.lora_request import LoadedAdapter
from octavo.messages import AdapterLoad
from octavo.request import Sequence
from octavo.scheduler.adapter_shelf import AdapterShelf


class AdapterSlots:
    """Owner of the slots. uses: the running sequences that use each. loads: what has changed since the last plan.
    shelf: from where they are filled; None: nothing is read."""

    def __init__(self, num_slots: int, shelf: AdapterShelf | None = None) -> None:
        self.shelf = shelf
        self.loads: list[AdapterLoad] = []
        self.uses = [0] * num_slots
        self._slot_of: dict[int, int] = {}  # by the adapter's key, the last used last
        self._empty = list(range(num_slots - 1, -1, -1))

    def has_room(self, adapter: LoadedAdapter) -> bool:
        return adapter.key in self._slot_of or bool(self._empty) or 0 in self.uses

    def is_at_hand(self, adapter: LoadedAdapter) -> bool:
        """Whether it is in a slot, or can be put there in a step."""
        return self.shelf is None or adapter.key in self._slot_of or self.shelf.has(adapter.key)

    def slot_of(self, sequence: Sequence) -> int:
        """Of a sequence that uses one; -1: it has no adapter."""
        adapter = sequence.request.adapter
        return -1 if adapter is None else self._slot_of[adapter.key]

    def take(self, adapter: LoadedAdapter) -> None:
        """A sequence that starts, or forks, uses the adapter's slot."""
        slot = self._slot_of.pop(adapter.key, None)
        if slot is None:
            slot = self._empty.pop() if self._empty else self._vacate()
            self.loads.append(AdapterLoad(slot, adapter.key))
            if self.shelf is not None:
                self.shelf.use(adapter.key)
        self._slot_of[adapter.key] = slot
        self.uses[slot] += 1

    def leave(self, adapter: LoadedAdapter) -> None:
        slot = self._slot_of[adapter.key]
        assert self.uses[slot], f"nobody uses slot {slot}"
        self.uses[slot] -= 1

    def forget(self) -> None:
        """A step failed, so what the slots hold is not known: the unused ones are filled again."""
        for key, slot in list(self._slot_of.items()):
            if not self.uses[slot]:
                del self._slot_of[key]
                self._empty.append(slot)

    def take_loads(self) -> list[AdapterLoad]:
        loads, self.loads = self.loads, []
        return loads

    def _vacate(self) -> int:
        key, slot = next((key, slot) for key, slot in self._slot_of.items() if not self.uses[slot])
        del self._slot_of[key]
        return slot
