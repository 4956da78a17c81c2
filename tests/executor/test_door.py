"""The door lets in those who know the secret, and nobody else, whatever they send."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import AuthenticationError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.executor.door import Door, knock


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    door = Door("127.0.0.1")
    yield door
    door.close()


def test_a_rank_is_admitted_by_its_name_and_both_talk(door: Door) -> None:
    with ThreadPoolExecutor(1) as thread:
        knocking = thread.submit(knock, door.address, "7")
        admitted = door.admit()
        assert admitted is not None
        name, ours = admitted
        with ours, knocking.result() as theirs:
            assert name == "7"
            theirs.send_bytes(b"hello")
            assert ours.recv_bytes() == b"hello"
    assert str(door.address.secret) not in repr(door.address)


def test_a_wrong_secret_is_turned_away(door: Door) -> None:
    with ThreadPoolExecutor(1) as thread:
        knocking = thread.submit(knock, replace(door.address, secret=b"guessed"), "7")
        assert door.admit() is None
        with pytest.raises((AuthenticationError, EOFError, OSError)):
            knocking.result()


@given(st.binary(max_size=300))
def test_a_stranger_is_turned_away_whatever_it_sends(door: Door, data: bytes) -> None:
    with socket.create_connection((door.address.host, door.address.port)) as stranger:
        stranger.sendall(data)
        stranger.shutdown(socket.SHUT_WR)
        assert door.admit() is None
