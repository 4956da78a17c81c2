"""Host's pools that other engines of the same process map, as engines on GPUs do."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from octavo.kernels.block_mover import Fence, HostMover

_MOVERS: dict[bytes, HostMover] = {}


class MappedPool:
    def __init__(self, own: HostMover, theirs: HostMover) -> None:
        self._own, self._theirs = own, theirs
        self.num_blocks = len(theirs._blocks)

    def copy(self, fence: Fence, their_ids: Sequence[int], block_ids: Sequence[int]) -> None:
        self._own.write(fence, block_ids, self._theirs._blocks[list(their_ids)])

    def close(self) -> None:
        del self._theirs


def _exported(mover: HostMover) -> bytes:
    key = b"pool %020d" % id(mover)
    _MOVERS[key] = mover
    return key


def map_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostMover, "exported", _exported)
    monkeypatch.setattr(HostMover, "open", lambda mover, key: MappedPool(mover, _MOVERS[key]))
