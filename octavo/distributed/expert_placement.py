"""Where a layer's experts are: as many slots on each rank, chosen so that the ranks have equal loads.

    slots    0  1  2 | 3  4  5        of rank 0, of rank 1
    expert   4  1  0 | 2  3  4        six slots for five experts: 4 is on both, and each has every other row

Loads are rows that chose an expert. Copies go to the experts with most rows a copy. The busiest copy is placed first,
on the rank with the least load that has a free slot (longest first, Graham 1969). What stays on its rank stays in its
slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace
from math import fsum

import numpy as np
from numpy.typing import NDArray

#: a placement must be so much better that moving to it pays
_LEAST_GAIN = 0.01

Slots = list[int]  # the expert of each


def first_slots(num_experts: int, num_slots: int) -> Slots:
    return [slot % num_experts for slot in range(num_slots)]


def places_of(slots: Sequence[int], num_experts: int, most_copies: int) -> NDArray[np.int32]:
    """[experts, 1 + most_copies]: how many slots an expert has, and which. Row i of a step goes to number i modulo how
    many there are."""
    places = np.zeros((num_experts, 1 + most_copies), np.int32)
    for slot, expert in enumerate(slots):
        places[expert, 0] += 1
        places[expert, places[expert, 0]] = slot
    return places


def rank_loads(loads: NDArray[np.int64], slots: Sequence[int], num_ranks: int) -> list[float]:
    """Rows of each rank, if copies share an expert's evenly. Exact sums, so that every machine computes the same."""
    shares = (loads / np.maximum(np.bincount(slots, minlength=len(loads)), 1)).tolist()
    size = len(slots) // num_ranks
    return [fsum(shares[one] for one in slots[start : start + size]) for start in range(0, len(slots), size)]


def balancedness(loads: NDArray[np.int64], slots: Sequence[int], num_ranks: int) -> float:
    """The mean of the ranks' loads, divided by the largest; 1 is even, and 1 / num_ranks one rank with everything."""
    of_ranks = rank_loads(loads, slots, num_ranks)
    return fsum(of_ranks) / num_ranks / max(of_ranks) if any(of_ranks) else 1.0


def balanced(loads: NDArray[np.int64], slots: Sequence[int], num_ranks: int) -> Slots:
    """Better slots for these loads, or the same."""
    size = len(slots) // num_ranks
    bins = _packed(loads, _copies(loads, len(slots), num_ranks), num_ranks, size)
    found = _in_slots(bins, slots, size)
    before, after = max(rank_loads(loads, slots, num_ranks)), max(rank_loads(loads, found, num_ranks))
    return found if after < before * (1 - _LEAST_GAIN) else list(slots)


def _copies(loads: NDArray[np.int64], num_slots: int, most: int) -> list[int]:
    """How many slots each expert gets, one for each rank at most."""
    copies = [1] * len(loads)
    if num_slots == len(loads):
        return copies
    waiting = [(-load, expert) for expert, load in enumerate(loads.tolist())]
    heapify(waiting)
    for _ in range(num_slots - len(loads)):
        expert = waiting[0][1]
        copies[expert] += 1
        share = -loads[expert] / copies[expert] if copies[expert] < most else np.inf
        heapreplace(waiting, (float(share), expert))
    return copies


def _packed(loads: NDArray[np.int64], copies: list[int], num_ranks: int, size: int) -> list[list[int]]:
    """The experts of each rank, all different."""
    shares = (loads / copies).tolist()
    bins: list[list[int]] = [[] for _ in range(num_ranks)]
    totals = [0.0] * num_ranks
    for expert in sorted(range(len(copies)), key=lambda expert: (-shares[expert], expert)):
        for _ in range(copies[expert]):
            free = [rank for rank in range(num_ranks) if len(bins[rank]) < size and expert not in bins[rank]]
            rank = min(free, key=totals.__getitem__) if free else _freed(bins, totals, shares, expert, size)
            bins[rank].append(expert)
            totals[rank] += shares[expert]
    return bins


def _freed(bins: list[list[int]], totals: list[float], shares: list[float], expert: int, size: int) -> int:
    """A full rank without the expert, once one of its experts has gone to a rank with room, which has it already."""
    room = next(rank for rank, own in enumerate(bins) if len(own) < size)
    full = next(rank for rank, own in enumerate(bins) if expert not in own)
    moved = next(one for one in reversed(bins[full]) if one not in bins[room])
    bins[full].remove(moved)
    bins[room].append(moved)
    totals[full] -= shares[moved]
    totals[room] += shares[moved]
    return full


def _in_slots(bins: list[list[int]], slots: Sequence[int], size: int) -> Slots:
    """The bins on the ranks that have most of their experts already, and these in the slots where they are."""
    now = [list(slots[start : start + size]) for start in range(0, len(slots), size)]
    overlaps = [
        (len({*own} & {*bins[place]}), rank, place) for rank, own in enumerate(now) for place in range(len(now))
    ]
    then: dict[int, list[int]] = {}
    for _, rank, place in sorted(overlaps, key=lambda each: (-each[0], *each[1:])):
        if rank not in then and not any(bins[place] is taken for taken in then.values()):
            then[rank] = bins[place]
    after = [then[rank] for rank in range(len(now))]
    return [expert for rank in range(len(now)) for expert in _kept_in_place(rank, now, after)]


def _kept_in_place(rank: int, now: list[list[int]], after: list[list[int]]) -> list[int]:
    """A rank's slots. Those that come from another rank are where those were that go there, in the same order on both,
    so that two experts change places."""

    def towards(experts: list[int], others: list[list[int]]) -> dict[int, list[int]]:
        """By the rank that has them there."""
        found: dict[int, list[int]] = {}
        for expert in sorted(experts):
            other = next((number for number, own in enumerate(others) if expert in own), -1)
            found.setdefault(other, []).append(expert)
        return found

    go = towards([expert for expert in now[rank] if expert not in after[rank]], after)
    come = towards([expert for expert in after[rank] if expert not in now[rank]], now)
    pairs = [pair for other in go for pair in zip(go[other], come.get(other, ()), strict=False)]
    found = dict(pairs)
    left = [expert for each in come.values() for expert in each if expert not in {new for _, new in pairs}]
    return [
        expert if expert in after[rank] else found[expert] if expert in found else left.pop() for expert in now[rank]
    ]
