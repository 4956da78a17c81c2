"""Layers of different windows are cut into groups of equal size."""

import pytest

from octavo.cache.blocks import CacheGroup, make_groups


def shapes(groups):
    return [(group.window, len(group.layers)) for group in groups]


def test_gemma_3_270m_is_six_groups_of_three():
    windows = ([512] * 5 + [None]) * 3
    groups = make_groups(windows)
    assert shapes(groups) == [(512, 3)] * 5 + [(None, 3)]
    assert groups[-1].layers == (5, 11, 17)
    assert sorted(layer for group in groups for layer in group.layers) == list(range(18))
    assert all(windows[layer] == group.window for group in groups for layer in group.layers)


@pytest.mark.parametrize("window", [None, 4096])
def test_layers_that_are_all_alike_are_one_group(window):
    assert make_groups([window] * 32) == (CacheGroup(tuple(range(32)), window),)


def test_half_and_half_are_two_groups():
    assert shapes(make_groups([4096, None] * 13)) == [(4096, 13), (None, 13)]


def test_little_padding_is_better_than_many_groups():
    """Gemma 3 1B: 22 sliding, 4 full. Groups of 4 leave 2 of 28 places empty; groups of 2 would be 13."""
    groups = make_groups(([512] * 5 + [None]) * 4 + [512] * 2)
    assert max(len(group.layers) for group in groups) == 4
    assert shapes(groups) == [(512, 4)] * 5 + [(512, 2), (None, 4)]


def test_three_kinds_of_layers():
    groups = make_groups([128, 1024, None] * 4)
    assert shapes(groups) == [(128, 4), (1024, 4), (None, 4)]


def test_the_window_rule():
    """A token at position p sees p-w+1 .. p."""
    group = CacheGroup((0,), window=20)
    assert group.first_visible_block(19, block_size=16) == 0
    assert group.first_visible_block(34, block_size=16) == 0, "it sees 15 .. 34"
    assert group.first_visible_block(35, block_size=16) == 1, "it sees 16 .. 35"


@pytest.mark.parametrize("window", [1, 5, 16, 17, 40])
@pytest.mark.parametrize("chunk_len", [1, 7, 16, 50])
def test_max_blocks_is_what_any_chunk_may_span(window, chunk_len):
    group = CacheGroup((0,), window=window)
    spans = [(start + chunk_len - 1) // 16 - group.first_visible_block(start, 16) + 1 for start in range(0, 500)]
    assert group.max_blocks(1000, chunk_len, 16) == max(spans)
    assert group.max_blocks(5, chunk_len, 16) == 1
    assert CacheGroup((0,)).max_blocks(1000, chunk_len, 16) == 63
