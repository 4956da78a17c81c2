"""In which order a layer's experts move between ranks, so that few of them are ever under way.

    slots    0 1 | 2 3        a round reads all its experts, then writes them: 0 and 2 change places in one
    before   a b | c d
    after    c b | a d

A slot is written once nothing needs what is in it, or in the round that reads that. Where only circles are left that
are too long for a round, the expert of one slot waits in the parking place of its rank, and the circle is opened there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PARKED = -1  # in place of a slot
_ROUND_BYTES = 64 << 20  # a rank sends and receives as many at once; at least one expert


def moves_at_once(expert_bytes: int, num_own: int) -> int:
    return max(1, min(num_own, _ROUND_BYTES // expert_bytes))


def moving_bytes(expert_bytes: int, num_own: int) -> int:
    """What a rank sends, what it receives, and one expert that is parked."""
    return (2 * moves_at_once(expert_bytes, num_own) + 1) * expert_bytes


@dataclass(frozen=True, slots=True)
class Move:
    """target gets what is in source; PARKED: what that rank has parked."""

    source_rank: int
    source: int
    target_rank: int
    target: int


@dataclass(frozen=True, slots=True)
class Round:
    """park: a slot whose expert is parked first."""

    moves: tuple[Move, ...]
    park: int | None = None


def rounds(before: Sequence[int], after: Sequence[int], num_ranks: int, most: int) -> Iterator[Round]:
    """What leads from the experts of the slots before to those after. most: experts that a rank sends, and that it
    receives, in one round."""
    state = _State(before, after, len(before) // num_ranks)
    while state.pending:
        yield state.next_round(num_ranks, most)


class _State:
    """holders: the slots of each expert now. needed: the slots that will get it. parked: an expert and its rank."""

    def __init__(self, before: Sequence[int], after: Sequence[int], size: int) -> None:
        self.now, self.after, self.size = list(before), after, size
        self.pending = dict.fromkeys(slot for slot, expert in enumerate(after) if before[slot] != expert)
        self.holders: dict[int, set[int]] = {}
        self.needed: dict[int, list[int]] = {}
        for slot, expert in enumerate(before):
            self.holders.setdefault(expert, set()).add(slot)
        for slot in self.pending:
            self.needed.setdefault(after[slot], []).append(slot)
        self.parked: tuple[int, int] | None = None

    def next_round(self, num_ranks: int, most: int) -> Round:
        sent, received = [0] * num_ranks, [0] * num_ranks
        moves: dict[int, Move] = {}
        for first in self.pending:
            if first in moves or received[first // self.size] == most:
                continue
            chain, _ = self._chain(first, moves)
            added = [self._move(slot) for slot in chain]
            for move in added:
                sent[move.source_rank] += 1
                received[move.target_rank] += 1
            if max(*sent, *received) > most:
                for move in added:
                    sent[move.source_rank] -= 1
                    received[move.target_rank] -= 1
            else:
                moves |= dict(zip(chain, added, strict=True))
        park = None
        if not moves:
            _, park = self._chain(next(iter(self.pending)), {})
            assert park is not None, "without a circle, the end of a chain can be written"
            moves[park] = self._move(park)
            self.parked = self.now[park], park // self.size
        self._write(moves)
        return Round(tuple(moves.values()), park)

    def _chain(self, first: int, moves: dict[int, Move]) -> tuple[list[int], int | None]:
        """The slot with all those that must be written in the same round, since they need what it loses; and where they
        close a circle, if they do."""
        chain = [first]
        for slot in chain:
            lost = self.now[slot]
            needed = self.needed.get(lost, ())
            if not needed or any(other not in moves and other not in chain for other in self.holders[lost]):
                break
            closing = next((other for other in needed if other in moves or other in chain), None)
            if closing is not None:
                return chain, closing
            chain.append(needed[0])
        return chain, None

    def _move(self, target: int) -> Move:
        """From a slot of the same rank, if the expert is in one."""
        rank, expert = target // self.size, self.after[target]
        if holders := self.holders[expert]:
            source = min(holders, key=lambda slot: (slot // self.size != rank, slot))
            return Move(source // self.size, source, rank, target)
        assert self.parked is not None, "an expert is in a slot, or parked"
        return Move(self.parked[1], PARKED, rank, target)

    def _write(self, moves: dict[int, Move]) -> None:
        for slot in moves:
            self.holders[self.now[slot]].remove(slot)
        for slot in moves:
            expert = self.now[slot] = self.after[slot]
            self.holders[expert].add(slot)
            self.needed[expert].remove(slot)
            del self.pending[slot]
        if self.parked is not None and self.holders[self.parked[0]]:
            self.parked = None
