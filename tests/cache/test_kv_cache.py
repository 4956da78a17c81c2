"""A sequence's blocks as it starts, grows, forks and ends, one mechanism per test."""

import pytest

from octavo.cache.blocks import NULL_BLOCK, make_groups
from octavo.cache.invariants import check
from octavo.cache.kv_cache import KVCache
from octavo.messages import BlockWrite
from octavo.observe.event_log import EventLog
from octavo.observe.events import BlockCopied, BlockEvicted, BlocksFreed, PrefixHit
from octavo.request import Sequence
from tests.simulate import make_request

BLOCK_SIZE = 16


class Desk:
    """A cache, and sequences that use it without a scheduler."""

    def __init__(self, num_blocks=20, windows=(None,), **options):
        self.events = EventLog(1000)
        self.cache = KVCache(
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            groups=make_groups(windows),
            events=self.events,
            clock=lambda: 0.0,
            **options,
        )
        self.sequences = []

    def open(self, tokens, salt=None):
        """A sequence in its own row."""
        number = len(self.sequences)
        request = make_request(str(number), list(tokens), cache_salt=salt)
        sequence = Sequence(number, request, 0, list(tokens), row=number)
        self.sequences.append(sequence)
        return sequence

    def start(self, tokens, salt=None):
        """Start a sequence and compute all its tokens."""
        sequence = self.open(tokens, salt)
        self.cache.start(sequence, self.cache.find_prefix(sequence, sequence.num_tokens - 1))
        self.compute(sequence, sequence.num_tokens - sequence.num_computed_tokens)
        return sequence

    def compute(self, sequence, num_tokens):
        assert self.cache.grow(sequence, num_tokens)
        sequence.num_computed_tokens += num_tokens
        check(self.cache, self.sequences)

    def decode(self, sequence, token):
        sequence.token_ids.append(token)
        self.compute(sequence, 1)

    def fork(self, parent):
        child = self.open(parent.token_ids)
        child.num_computed_tokens = parent.num_computed_tokens
        self.cache.fork(parent, child)
        return child

    def free(self, sequence, why="finished"):
        self.cache.free(sequence, why)
        sequence.num_computed_tokens = 0
        check(self.cache, self.sequences)

    def table(self, sequence, group=0):
        return self.cache.tables[sequence.sequence_id].block_ids[group]

    def seen(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def desk():
    return Desk()


def test_a_sequence_holds_just_the_blocks_its_tokens_need(desk):
    sequence = desk.start(range(40))
    assert len(desk.table(sequence)) == 3
    assert desk.cache.take_changes() == ([BlockWrite(0, 0, 0, desk.table(sequence))], [])
    for token in range(8):
        desk.decode(sequence, token)
    assert len(desk.table(sequence)) == 3, "slots 40 to 47 were there already"
    desk.decode(sequence, 8)
    assert desk.cache.take_changes() == ([BlockWrite(0, 0, 3, desk.table(sequence)[3:])], [])


def test_growing_beyond_the_pool_takes_nothing(desk):
    sequence = desk.open(range(1000))
    desk.cache.start(sequence, desk.cache.find_prefix(sequence, 0))
    assert not desk.cache.grow(sequence, 20 * BLOCK_SIZE)
    assert desk.cache.num_available_blocks == 19


def test_a_fork_copies_no_block_and_a_write_copies_one(desk):
    parent = desk.start(range(40))
    child = desk.fork(parent)
    assert desk.table(child) == desk.table(parent)
    assert desk.cache.pool.num_owned == 3
    desk.cache.take_changes()

    shared = list(desk.table(parent))
    desk.decode(parent, 7)
    assert desk.table(parent)[:2] == shared[:2], "full blocks stay shared"
    copy = desk.table(parent)[2]
    assert desk.table(child) == shared
    assert desk.cache.take_changes() == ([BlockWrite(0, 0, 2, [copy])], [(shared[2], copy)])

    desk.decode(child, 8)
    assert desk.table(child) == shared, "the last owner writes in place"
    assert desk.cache.take_changes() == ([], [])
    assert [(event.source, event.target) for event in desk.seen(BlockCopied)] == [(shared[2], copy)]


def test_many_forks_of_a_full_block_copy_nothing(desk):
    parent = desk.start(range(32))
    children = [desk.fork(parent) for _ in range(3)]
    for sequence in (parent, *children):
        desk.decode(sequence, 1)
    assert desk.cache.take_changes()[1] == []
    assert desk.cache.pool.num_owned == 2 + 4


def test_what_one_sequence_computed_another_finds(desk):
    first = desk.start(range(50))
    second = desk.start([*range(40), 99, 99])
    assert second.request.sequences == []
    assert desk.table(second)[:2] == desk.table(first)[:2], "two full blocks agree"
    assert desk.table(second)[2] != desk.table(first)[2]
    assert [event.num_tokens for event in desk.seen(PrefixHit)] == [32]


def test_one_token_is_always_left_to_compute(desk):
    desk.start(range(32))
    again = desk.open(range(32))
    assert desk.cache.find_prefix(again, again.num_tokens - 1).num_tokens == 16


def test_content_outlives_its_sequence_until_the_space_is_needed():
    desk = Desk(num_blocks=6)
    first = desk.start(range(48))
    blocks = list(desk.table(first))
    desk.free(first)
    assert desk.cache.num_available_blocks == 5
    assert desk.cache.find_prefix(desk.open(range(48)), 47).num_tokens == 32
    desk.start(range(1000, 1048))
    assert [event.block_id for event in desk.seen(BlockEvicted)] == [blocks[2]], "the leaf goes first"
    assert desk.cache.find_prefix(desk.open(range(100)), 99).block_ids == [blocks[:2]]


def test_salts_do_not_share(desk):
    desk.start(range(50), salt="a")
    other = desk.start(range(50), salt="b")
    assert other.num_computed_tokens == 50
    assert desk.seen(PrefixHit) == []
    desk.start(range(50), salt="a")
    assert len(desk.seen(PrefixHit)) == 1


def test_without_prefix_caching_nothing_is_found():
    desk = Desk(enable_prefix_caching=False)
    desk.free(desk.start(range(50)))
    assert desk.cache.find_prefix(desk.open(range(50)), 49).num_tokens == 0
    assert not desk.cache.pool.cached


def test_content_that_drew_no_token_is_forgotten_but_not_what_others_use(desk):
    healthy = desk.start(range(20))
    broken = desk.start([*range(16), *range(500, 540)])
    desk.free(broken, "error")
    assert desk.cache.find_prefix(desk.open([*range(16), *range(500, 540)]), 55).num_tokens == 16
    assert desk.cache.find_prefix(desk.open(range(20)), 19).block_ids == [desk.table(healthy)[:1]]


def test_a_window_gives_blocks_back_as_the_sequence_advances():
    desk = Desk(windows=(20, None))  # group 0 slides, group 1 sees all
    sequence = desk.start(range(33))
    assert NULL_BLOCK not in desk.table(sequence), "position 33 sees 14 .. 33"
    first, second = desk.table(sequence)[:2]
    for token in range(15):
        desk.decode(sequence, token)
    desk.decode(sequence, 15)  # the next block's first token, 48, sees 29 .. 48
    assert desk.table(sequence, 0)[0] == NULL_BLOCK
    assert desk.table(sequence, 0)[1] == second
    assert NULL_BLOCK not in desk.table(sequence, 1)
    assert [event.block_ids for event in desk.seen(BlocksFreed) if event.why == "window"] == [(first,)]


def test_a_long_sequence_in_a_window_holds_few_blocks():
    desk = Desk(num_blocks=5, windows=(20,))
    sequence = desk.start([0])
    for token in range(400):
        desk.decode(sequence, token)
        assert desk.cache.pool.num_owned <= desk.cache.max_blocks(sequence.num_tokens, 1)


def test_a_hit_in_a_window_shares_only_what_is_still_seen():
    desk = Desk(num_blocks=40, windows=(20, None))
    first = desk.start(range(100))
    second = desk.start(range(100))
    assert desk.table(second, 1)[:6] == desk.table(first, 1)[:6]
    assert desk.table(second, 0)[:4] == [NULL_BLOCK] * 4, "position 96 sees 77 .. 96"
    assert desk.table(second, 0)[4:6] == desk.table(first, 0)[4:6]


def test_what_a_window_has_passed_is_not_found_after_the_cache_was_emptied():
    """A sequence's blocks enter the tree again when it grows, but not the null blocks at the start of its table."""
    desk = Desk(num_blocks=40, windows=(20,))
    first = desk.start(range(100))
    desk.decode(first, 100)
    desk.cache.forget()
    for token in range(101, 120):
        desk.decode(first, token)
    assert NULL_BLOCK in desk.table(first)
    second = desk.start(range(20))
    assert second.num_computed_tokens == 20
    assert NULL_BLOCK not in desk.table(second)


def corrupt_count(desk, sequence):
    desk.cache.pool.ref_counts[desk.table(sequence)[0]] += 1


def corrupt_free_list(desk, sequence):
    desk.cache.pool.free.append(desk.table(sequence)[0])


def lose_block(desk, sequence):
    desk.cache.pool.free.pop(0)


def invent_block(desk, sequence):
    desk.cache.pool.free[0] = desk.cache.pool.num_blocks


def cache_unfindable_block(desk, sequence):
    desk.cache.pool.cached[desk.cache.pool.free.pop()] = None


def corrupt_table(desk, sequence):
    desk.table(sequence)[1] = NULL_BLOCK


def corrupt_tokens(desk, sequence):
    sequence.token_ids[3] += 1


def corrupt_progress(desk, sequence):
    sequence.num_computed_tokens += 16


def corrupt_tree(desk, sequence):
    desk.cache.tree.remove(desk.table(sequence)[0])


@pytest.mark.parametrize(
    "corrupt",
    [
        *(corrupt_count, corrupt_free_list, lose_block, invent_block, cache_unfindable_block),
        *(corrupt_table, corrupt_tokens, corrupt_progress, corrupt_tree),
    ],
)
def test_the_invariants_see_what_is_wrong(desk, corrupt):
    sequence = desk.start(range(40))
    corrupt(desk, sequence)
    with pytest.raises(AssertionError):
        check(desk.cache, desk.sequences)
