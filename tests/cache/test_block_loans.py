"""Blocks on loan are neither evicted nor found before their time, and every one is accounted for."""

from __future__ import annotations

import random

import pytest

from octavo.cache.block_loans import BlockLoans, Loan
from octavo.cache.blocks import ContentHash, make_groups
from octavo.cache.invariants import check
from octavo.cache.kv_cache import KVCache
from octavo.observe.event_log import EventLog
from octavo.request import Sequence, SequenceId
from tests.simulate import make_request

PROMPT = list(range(100, 180))


def made(num_blocks: int = 20, window: int | None = None) -> tuple[KVCache, BlockLoans]:
    windows = (None,) if window is None else (window, None)
    events = EventLog(1000)
    cache = KVCache(num_blocks=num_blocks, block_size=16, groups=make_groups(windows), events=events, clock=lambda: 0.0)
    return cache, BlockLoans(cache, events, lambda: 0.0)


def sequence_of(number: int, prompt: list[int]) -> Sequence:
    return Sequence(SequenceId(number), make_request(str(number), prompt), 0, list(prompt), row=number)


def computed(cache: KVCache, number: int, prompt: list[int]) -> Sequence:
    """A sequence that has computed its prompt and left."""
    sequence = sequence_of(number, prompt)
    cache.start(sequence, cache.find_prefix(sequence, len(prompt) - 1))
    assert cache.grow(sequence, len(prompt) - sequence.num_computed_tokens)
    sequence.num_computed_tokens = len(prompt)
    cache.free(sequence, "finished")
    return sequence


def hashes_of(cache: KVCache, number: int, prompt: list[int]) -> list[ContentHash]:
    sequence = sequence_of(number, prompt)
    cache.find_prefix(sequence, len(prompt))
    hashes = list(cache.tables[sequence.sequence_id].hashes)
    cache.free(sequence, "aborted")
    return hashes


@pytest.mark.parametrize("window", [None, 20])
def test_borrowed_blocks_are_found_once_they_are_whole(window: int | None) -> None:
    there, lenders = made(window=window)
    here, borrowers = made(window=window)
    computed(there, 0, PROMPT)
    hashes = hashes_of(here, 1, PROMPT)
    lent = lenders.lend(hashes, 0)
    assert lent is not None
    borrowed = borrowers.borrow(1, hashes, 0, len(lent.hashes) - 1)
    assert borrowed is not None
    assert [(part.group, part.first, len(part.block_ids)) for part in lent.parts] == [
        (part.group, part.first, len(part.block_ids)) for part in borrowed.parts
    ]
    assert hashes_found(here, hashes) == 0
    for cache in (there, here):
        check(cache, [])
    lenders.settle(lent, is_whole=True)
    borrowers.settle(borrowed, is_whole=True)
    assert hashes_found(here, hashes) == 5
    for cache in (there, here):
        check(cache, [])
        assert not cache.pool.num_owned


def hashes_found(cache: KVCache, hashes: list[ContentHash]) -> int:
    return cache.tree.match(hashes[1:], cache.groups, 16).num_tokens // 16


def test_what_has_not_come_is_free_again() -> None:
    cache, loans = made()
    loan = loans.borrow(1, hashes_of(cache, 1, PROMPT), 0, 5)
    assert loan is not None
    loans.settle(loan, is_whole=False)
    assert len(cache.pool.free) == 19
    with pytest.raises(AssertionError, match="a loan is settled once"):
        loans.settle(loan, is_whole=False)


def test_nothing_is_borrowed_without_room_or_without_what_was_found() -> None:
    cache, loans = made(num_blocks=5)
    hashes = hashes_of(cache, 1, PROMPT)
    assert loans.borrow(1, hashes, 0, 5) is None, "the pool has 4 blocks"
    assert loans.borrow(1, hashes, 2, 4) is None, "blocks 0 and 1 are not here"
    computed(cache, 0, PROMPT[:40])
    loan = loans.borrow(1, hashes, 2, 4)
    assert loan is not None
    assert len(loan.kept) == 2, "what was found is kept, though the pool is full"
    check(cache, [])
    loans.settle(loan, is_whole=True)
    assert hashes_found(cache, hashes) == 4
    check(cache, [])


def test_blocks_without_a_parent_cannot_be_found() -> None:
    """The tree was emptied while they were on their way."""
    cache, loans = made()
    hashes = hashes_of(cache, 1, PROMPT)
    computed(cache, 0, PROMPT[:40])
    loan = loans.borrow(1, hashes, 2, 4)
    assert loan is not None
    cache.forget()
    loans.settle(loan, is_whole=True)
    assert hashes_found(cache, hashes) == 0
    check(cache, [])
    assert len(cache.pool.free) == 19


@pytest.mark.parametrize("window", [None, 20])
def test_any_order_of_events_leaves_every_block_accounted_for(window: int | None) -> None:
    rng = random.Random(5)
    cache, loans = made(num_blocks=24, window=window)
    open_loans: list[Loan] = []
    for number in range(400):
        prompt = [rng.randrange(3)] * 16 + PROMPT[: rng.randrange(17, 64)]
        what = rng.random()
        if what < 0.3 and cache.num_available_blocks > 12:
            computed(cache, number, prompt)
        elif what < 0.8:
            hashes = hashes_of(cache, number, prompt)
            num_found = cache.tree.match(hashes[1:], cache.groups, cache.block_size).num_tokens // cache.block_size
            most = len(hashes) - 1
            if num_found < most:
                loan = loans.borrow(number, hashes, num_found, rng.randint(num_found + 1, most))
            else:
                loan = loans.lend(hashes, rng.randrange(most))
            open_loans += [] if loan is None else [loan]
        elif what < 0.82:
            cache.forget()
        while open_loans and (len(open_loans) > 4 or rng.random() < 0.3):
            loans.settle(open_loans.pop(rng.randrange(len(open_loans))), is_whole=rng.random() < 0.7)
        check(cache, [])
    for loan in open_loans:
        loans.settle(loan, is_whole=True)
    check(cache, [])
    assert not cache.pool.num_owned
