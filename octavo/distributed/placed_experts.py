"""PlacedExperts: a rank's slots for experts, the table that says what is in them, and the counts of rows.

    step      router -> expert 4 -> loads[4] += 1 -> places[4] = slots 0 and 5 -> this row's: 5      by kernels
    between   slots' bytes -> send -> the other ranks' receive -> their slots; then the table         here

Arrays keep their addresses, so that captured steps find new weights and a new table where the old ones were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.distributed.collectives import Collectives
from octavo.distributed.expert_moves import PARKED, Round, moves_at_once, moving_bytes, rounds
from octavo.distributed.expert_placement import Slots, first_slots, places_of
from octavo.errors import UnsupportedModelError

Held = list[list[torch.Tensor]]  # of each slot, its bytes: flat views of weights, scales, biases


class PlacedExperts:
    """names: of the layers. loads [layers, experts] int64: rows that chose each expert, ever. places [layers, experts,
    1 + copies] int32: see `places_of`. slots: of each layer, the expert in each slot of every rank."""

    def __init__(
        self, names: Sequence[str], num_experts: int, num_slots: int, most_copies: int, device: torch.device | str
    ) -> None:
        self.names, self.num_experts, self._most_copies = list(names), num_experts, most_copies
        self.slots: list[Slots] = [first_slots(num_experts, num_slots) for _ in names]
        self.loads = torch.zeros(len(names), num_experts, dtype=torch.int64, device=device)
        first = torch.from_numpy(places_of(self.slots[0], num_experts, most_copies))
        self.places = first.to(device).repeat(len(names), 1, 1)
        self._held: dict[str, Held] = {}
        self._numbers = {name: number for number, name in enumerate(names)}
        self._buffer = torch.empty(0, dtype=torch.uint8, device=device)
        self._most = 0

    def arrays(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's loads and places."""
        number = self._numbers[name]
        return self.loads[number], self.places[number]

    def lacks(self, name: str) -> bool:
        return name not in self._held

    def slots_of(self, name: str, chosen: torch.Tensor) -> torch.Tensor:
        """The slots in place of the experts that rows have chosen [rows, K], which are counted: what kernels do."""
        loads, places = self.arrays(name)
        loads += torch.bincount(chosen.flatten(), minlength=len(loads))
        rows = torch.arange(len(chosen))[:, None]
        return places[chosen, 1 + rows % places[chosen, 0]]

    def count(self) -> Callable[[], NDArray[np.int64]]:
        """Begin to copy the loads. Returns what waits for the copy alone, and returns it."""
        is_device = self.loads.is_cuda
        host = torch.empty(self.loads.shape, dtype=self.loads.dtype, pin_memory=is_device)
        host.copy_(self.loads, non_blocking=is_device)
        copied = torch.cuda.current_stream(self.loads.device).record_event() if is_device else None

        def read() -> NDArray[np.int64]:
            if copied is not None:
                copied.synchronize()
            found: NDArray[np.int64] = host.numpy()
            return found

        return read

    def hold(self, name: str, slots: Held) -> None:
        """A layer's weights are here. Every slot has as many bytes."""
        self._held[name] = slots

    def hold_arrays(self, name: str, slots: list[list[NDArray[np.uint8]]]) -> None:
        """The same in a host's memory."""
        self.hold(name, [[torch.from_numpy(piece) for piece in pieces] for pieces in slots])

    def join(self, ranks: Collectives, layout: str = "") -> None:
        """Allocate what moves need, and try the way to the other ranks, once all weights are held. layout: how bytes
        lie, if that is not the same everywhere."""
        self._ranks = ranks
        sizes = [[sum(piece.nbytes for piece in slot) for slot in self._held[name]] for name in self.names]
        own = [bound for layer in [[crc32(layout.encode())], *sizes] for bound in (min(layer), -max(layer))]
        first, last, *agreed = ranks.smallest_of_stage(*own)
        if first != -last:
            raise UnsupportedModelError(
                "enable_eplb is True, but ranks have kernels for different processors, and so experts' weights lie "
                "differently: set OCTAVO_CPU_ISA to what all have, such as avx2, or leave enable_eplb out"
            )
        for name, least, most in zip(self.names, agreed[::2], agreed[1::2], strict=True):
            if least != -most:
                raise UnsupportedModelError(
                    f"enable_eplb is True, but experts of {name} take {least:,} to {-most:,} bytes, so they cannot "
                    "change places: leave enable_eplb out"
                )
        self._bytes = agreed[::2]
        self._most = moves_at_once(max(self._bytes), len(sizes[0]))
        total = moving_bytes(max(self._bytes), len(sizes[0]))
        self._buffer = torch.empty(total, dtype=torch.uint8, device=self.loads.device)
        one = [1] * ranks.size
        ranks.exchange(self._buffer[: ranks.size], one, self._buffer[-ranks.size :], one)  # connects now

    @property
    def num_bytes(self) -> int:
        return self.loads.nbytes + self.places.nbytes + self._buffer.nbytes

    def move(self, layer: int, slots: Slots) -> int:
        """Bring a layer's experts to these slots of all ranks, which all do so in the same step. Returns how many slots
        have got another one."""
        moved = 0
        for each in rounds(self.slots[layer], slots, self._ranks.size, self._most):
            self._carry_out(layer, each)
            moved += len(each.moves)
        self.slots[layer] = slots
        table = places_of(slots, self.num_experts, self._most_copies)
        self.places[layer].copy_(torch.from_numpy(table))
        return moved

    def _carry_out(self, layer: int, each: Round) -> None:
        rank, num_bytes = self._ranks.rank, self._bytes[layer]
        send, receive, park = self._parts(num_bytes)
        first = rank * len(self._held[self.names[layer]])

        def held(slot: int) -> list[torch.Tensor]:
            return [park] if slot == PARKED else self._held[self.names[layer]][slot - first]

        if each.park is not None and each.park // len(self._held[self.names[layer]]) == rank:
            torch.cat(held(each.park), out=park)
        ranks = range(self._ranks.size)
        out = [move for to in ranks for move in each.moves if (move.source_rank, move.target_rank) == (rank, to)]
        come = [move for by in ranks for move in each.moves if (move.source_rank, move.target_rank) == (by, rank)]
        for place, move in enumerate(out):
            torch.cat(held(move.source), out=send[place])
        sent = [num_bytes * sum(move.target_rank == other for move in out) for other in ranks]
        got = [num_bytes * sum(move.source_rank == other for move in come) for other in ranks]
        self._ranks.exchange(send.view(-1)[: sum(sent)], sent, receive.view(-1)[: sum(got)], got)
        for place, move in enumerate(come):
            pieces = held(move.target)
            parts = torch.split(receive[place], [piece.nbytes for piece in pieces])
            for piece, part in zip(pieces, parts, strict=True):
                piece.copy_(part)

    def _parts(self, num_bytes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The buffer for experts of this size: [most, bytes] to send, as much to receive, and one that is parked."""
        whole = self._buffer[: (2 * self._most + 1) * num_bytes].view(-1, num_bytes)
        return whole[: self._most], whole[self._most : -1], whole[-1]
