"""The file of kept responses: what it bounds, what goes first, and what it does with files that it did not make."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import ConfigError
from octavo.server.responses.store_file import BrokenLineError, FileFault, KeptResponse, ResponseFile, TooLongLineError

LARGE = 2**20


class Clock:
    now = 1e9

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def file(path: str | None = None, clock: Clock | None = None, **limits: Any) -> ResponseFile:
    limits = {"max_num": 100, "max_bytes": 2**20, "timeout_s": 1e6, **limits}
    return ResponseFile(path, clock=clock or Clock(), **limits)


def kept(name: str, previous: str | None = None, owner: str = "me", size: int = 4) -> KeptResponse:
    return KeptResponse(id=name, owner=owner, previous=previous, input=b"[]", body=b"{}".ljust(size - 2))


def names(found: ResponseFile, owner: str = "me") -> list[str]:
    return [one for one in "abcdefgh" if found.get(owner, one) is not None]


def test_a_line_is_kept_whole_and_in_order() -> None:
    store = file()
    for name, previous in (("a", None), ("b", "a"), ("c", "b"), ("d", "a")):
        store.add(kept(name, previous))
    assert [one.id for one in store.line("me", "c", LARGE)] == ["a", "b", "c"]
    assert [one.id for one in store.line("me", "d", LARGE)] == ["a", "d"]
    with pytest.raises(TooLongLineError):
        store.line("me", "c", 11)
    assert store.remove("me", "a")
    with pytest.raises(BrokenLineError) as broken:
        store.line("me", "c", LARGE)
    assert broken.value.missing == "a"
    with pytest.raises(BrokenLineError):
        store.line("me", "x", LARGE)
    assert not store.remove("me", "a")


def test_the_one_unused_the_longest_goes_first() -> None:
    store = file(max_num=3)
    for name in "abc":
        store.add(kept(name))
    store.get("me", "a")
    assert store.add(kept("d")) == ["b"]
    assert store.get("me", "b") is None
    by_bytes = file(max_bytes=20)
    assert [by_bytes.add(kept(name, size=8)) for name in "abc"] == [[], [], ["a"]]
    assert by_bytes.num_and_bytes() == (2, 16)
    assert by_bytes.add(kept("huge", size=40)) == ["b", "c", "huge"]
    assert by_bytes.num_and_bytes() == (0, 0)
    assert by_bytes.num_dropped() == {"room": 4, "age": 0}


def test_a_line_in_use_loses_its_end_and_not_its_beginning() -> None:
    store = file(max_num=3)
    for name, previous in (("a", None), ("b", "a"), ("c", None)):
        store.add(kept(name, previous))
    store.line("me", "b", LARGE)
    store.add(kept("d"))
    assert names(store) == ["a", "b", "d"]
    store = file(max_num=3)
    for name, previous in (("a", None), ("b", "a"), ("c", "b"), ("d", None)):
        store.add(kept(name, previous))
    assert names(store) == ["a", "b", "d"]


def test_old_ones_are_dropped() -> None:
    clock = Clock()
    store = file(clock=clock, timeout_s=100.0)
    store.add(kept("a"))
    store.add(kept("b"))
    clock.now += 60
    assert store.get("me", "a") is not None
    clock.now += 60
    assert names(store) == ["a"]
    assert store.num_dropped() == {"room": 0, "age": 1}


def test_owners_find_their_own() -> None:
    store = file()
    store.add(kept("a"))
    store.add(kept("b", "a", owner="you"))
    assert store.get("you", "a") is None
    assert not store.remove("you", "a")
    with pytest.raises(BrokenLineError):
        store.line("you", "b", LARGE)


def test_a_file_outlives_its_server(tmp_path: Path) -> None:
    path = str(tmp_path / "kept")
    first = file(path)
    first.add(KeptResponse(id="a", owner="me", previous=None, input=b"[1]", body=b"{}", events=b"e"))
    second = file(path)
    assert second.get("me", "a") == first.get("me", "a")
    first.close()
    second.close()
    third = file(path)
    assert names(third) == ["a"]
    third.close()


NAMES = st.sampled_from("abcdef")
OWNERS = st.sampled_from(("me", "you"))
STEPS = st.one_of(
    st.tuples(st.just("add"), OWNERS, NAMES, st.none() | NAMES, st.integers(4, 40)),
    st.tuples(st.sampled_from(("get", "line", "remove")), OWNERS, NAMES),
)


@settings(max_examples=60)
@given(st.lists(STEPS, max_size=20))
def test_whatever_is_done_its_bounds_hold_and_owners_see_their_own(steps: list[tuple[Any, ...]]) -> None:
    store, owned = file(max_num=4, max_bytes=100), dict[str, str]()
    for what, owner, name, *more in steps:
        if what == "add":
            if store.get("me", name) is None and store.get("you", name) is None:
                store.add(kept(name, more[0], owner, more[1]))
                owned[name] = owner
        elif what == "get":
            found = store.get(owner, name)
            assert found is None or owned[name] == owner == found.owner
        elif what == "remove":
            assert store.remove(owner, name) <= (owned.get(name) == owner)
        else:
            try:
                line = store.line(owner, name, LARGE)
            except (BrokenLineError, TooLongLineError):
                continue
            assert {one.owner for one in line} == {owner}
            assert [one.previous for one in line] == [None, *(one.id for one in line[:-1])]
        num, size = store.num_and_bytes()
        assert num <= 4
        assert size <= 100
    store.close()


def test_damaged_files_are_refused_or_fail_as_sqlite_does(tmp_path: Path) -> None:
    """The routes turn SQLite's errors into theirs; nothing else may come."""
    whole = tmp_path / "whole"
    store = file(str(whole))
    for name, previous in (("a", None), ("b", "a")):
        store.add(kept(name, previous, size=3000))
    store.close()
    data, draw, num_read = whole.read_bytes(), random.Random(7), 0
    for place in range(60):
        damaged = bytearray(data)
        for _ in range(draw.choice((1, 8, 200))):
            damaged[draw.randrange(len(data) if place % 2 else 200)] = draw.randrange(256)
        path = tmp_path / f"damaged{place}"
        path.write_bytes(bytes(damaged[: draw.choice((len(data), 700))]))
        try:
            found = file(str(path))
        except ConfigError:
            continue
        try:
            found.line("me", "b", LARGE)
            found.add(kept("c", "b"))
            num_read += 1
        except (*FileFault, BrokenLineError, TooLongLineError):
            pass
        found.close()
    assert num_read, "some damage is in free space"


def test_other_files_and_versions_are_refused_by_name(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE notes (id)")
    other.close()
    with pytest.raises(ConfigError, match=r"other', which holds something else"):
        file(str(tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"cannot be used: .*No such file"):
        file(str(tmp_path / "none" / "kept"))
