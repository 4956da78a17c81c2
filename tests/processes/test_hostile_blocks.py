"""What another engine sends is never trusted: nonsense ends its connection, and costs nobody more than time."""

from __future__ import annotations

import itertools
import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest

from octavo import ConfigError
from octavo.kernels.block_mover import HostMover
from octavo.processes import lender_link
from octavo.processes.block_door import Slots, admit, knock, listen
from octavo.processes.block_messages import (
    TO_BORROWER,
    TO_LENDER,
    Admitted,
    BadMessageError,
    BlockCard,
    Cancel,
    Chunk,
    Done,
    Failed,
    Fetch,
    Found,
    Free,
    Opened,
    Read,
    Refused,
    There,
    pack_ids,
    unpack_ids,
)
from octavo.processes.block_wire import MAX_MESSAGE_BYTES, Wire
from octavo.processes.incoming_blocks import Incoming
from octavo.server_config import TransferConfig
from tests.conftest import TinyFolder
from tests.processes.engines import SECRET, ThreadEngine, borrows, lends
from tests.processes.mapped_pools import MappedPool
from tests.server.live import until

PROMPT = [i % 90 + 5 for i in range(70)]
CARD = BlockCard("1", "digest", "cpu", "float32", 16, 6144, (((0, 1), None),))
TO_BOTH = [
    *(CARD, Fetch(1, "a", pack_ids(PROMPT[:64]), None, 0), Cancel(1), Free(0), Admitted(4, 1 << 24), Refused("no")),
    *(Found(0, 4), Chunk(0, 0, 1), Done(0), Failed(0, "so"), Opened(), Read(1), There(0, pack_ids([1, 2]))),
]


def encoded(message: object) -> bytes:
    payload = msgspec.msgpack.encode(message)
    return struct.pack("!I", len(payload)) + payload


def spoiled(rng: random.Random) -> bytes:
    """Messages in an order that nobody expects, and at times bytes that are none."""
    data = bytearray(b"".join(encoded(rng.choice(TO_BOTH)) for _ in range(rng.randrange(1, 5))))
    for _ in range(rng.randrange(3)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data[: rng.randrange(1, len(data) + 1)])


@pytest.mark.parametrize("decoder", [TO_LENDER, TO_BORROWER])
def test_any_bytes_are_a_message_or_our_own_error(decoder: msgspec.msgpack.Decoder[object]) -> None:
    rng = random.Random(1)
    for _ in range(2000):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(spoiled(rng) if rng.random() < 0.8 else rng.randbytes(rng.randrange(1, 60)))
            theirs.shutdown(socket.SHUT_WR)
            wire = Wire(ours)
            with suppress(EOFError, BadMessageError):
                while True:
                    wire.receive(decoder)


def test_sizes_are_bounded() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(struct.pack("!I", MAX_MESSAGE_BYTES + 1))
        with pytest.raises(BadMessageError, match="a message of 67,108,865 bytes, allowed are 67,108,864"):
            Wire(ours).receive(TO_LENDER)
    with pytest.raises(BadMessageError, match="ids of 5 bytes"):
        unpack_ids(b"12345")
    assert unpack_ids(pack_ids(PROMPT)) == PROMPT


def test_who_does_not_know_the_secret_is_not_let_in(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/door"
    with listen(address) as door:
        thread = threading.Thread(target=lambda: admit(door.accept()[0], SECRET))
        thread.start()
        with pytest.raises(PermissionError, match="set OCTAVO_KV_SECRET to the same text on both"):
            knock(address, b"another")
        thread.join()


class _Mover:
    order, block_bytes = "cpu", 16

    def pin(self, memory: object) -> Callable[[], None]:
        return lambda: None


def test_shared_memory_that_could_be_cut_is_refused(tmp_path: Path) -> None:
    """Reading it after its owner has cut it would kill the process."""
    slots = Slots.shared(2, 32, _Mover())  # type: ignore[arg-type]
    assert slots.descriptor is not None
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(slots.descriptor, 1)
    mapped = Slots.of_another(2, 32, _Mover(), os.dup(slots.descriptor))  # type: ignore[arg-type]
    slots.blocks(1, 2)[:] = 7
    assert (mapped.blocks(1, 2) == 7).all()
    for descriptor in (os.dup(slots.descriptor), os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)):
        with pytest.raises(BadMessageError, match="smaller than was said"):
            Slots.of_another(3, 32, _Mover(), descriptor)  # type: ignore[arg-type]
    for one in (slots, mapped):
        one.close()


@pytest.fixture(scope="module")
def prefill(tmp_path_factory: pytest.TempPathFactory, tiny_folder: TinyFolder) -> Iterator[tuple[ThreadEngine, str]]:
    directory = tmp_path_factory.mktemp("run")
    engine = ThreadEngine(directory, tiny_folder("llama"), lends(f"unix:{directory}/blocks"))
    yield engine, f"unix:{directory}/blocks"
    engine.stop()


def test_a_prefill_engine_outlives_whatever_comes(prefill: tuple[ThreadEngine, str]) -> None:
    engine, address = prefill
    lender = engine.loop._traffic._lender
    assert lender is not None
    rng = random.Random(2)
    for turn in range(60):
        end = knock(address, SECRET) if turn % 6 else socket.socket(socket.AF_UNIX)
        if not turn % 6:
            end.connect(address.removeprefix("unix:"))
        with end, suppress(OSError):
            if turn % 3:
                end.sendall(encoded(lender.own.card))
            end.sendall(spoiled(rng))
            if turn % 2:
                end.settimeout(0.05)
                end.recv(100)
    until(lambda: not engine.core.has_unfinished and not engine.core.cache.pool.lent)
    assert engine.answer([PROMPT])[0]


@pytest.mark.parametrize(
    ("fetch", "why"),
    [
        (Fetch(1, "a", pack_ids(PROMPT[:60]), None, 0), "60 tokens are no full blocks of 16"),
        (Fetch(2, "a", b"", None, 0), "0 tokens are no full blocks"),
        (Fetch(3, "a", pack_ids(PROMPT[:64]), None, 4), "or are held already"),
        (Fetch(4, "a", pack_ids(PROMPT[:64]), None, -1), "or are held already"),
        (Fetch(5, "a", pack_ids([1 << 30] * 16), None, 0), "the size of the vocabulary"),
        (Fetch(6, "a", pack_ids([-1] * 16), None, 0), "the size of the vocabulary"),
        (Fetch(7, "a", pack_ids([5] * 4096), None, 0), "4096 prompt tokens, allowed are 255"),
        (Fetch(8, "a" * 5000, pack_ids(PROMPT[:64]), None, 0), "longer than 4096 characters"),
    ],
)
def test_a_question_without_sense_is_answered_with_a_reason(
    fetch: Fetch, why: str, prefill: tuple[ThreadEngine, str]
) -> None:
    engine, address = prefill
    lender = engine.loop._traffic._lender
    assert lender is not None
    wire = Wire(knock(address, SECRET))
    wire.send(lender.own.card)
    admitted = wire.receive(TO_BORROWER)
    assert isinstance(admitted, Admitted)
    os.close(wire.receive_memory())
    wire.send(fetch)
    answer = wire.receive(TO_BORROWER)
    assert isinstance(answer, Failed)
    assert why in answer.why
    wire.close()


def test_blocks_that_nobody_reads_are_let_go_of(
    prefill: tuple[ThreadEngine, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is closed, so that whoever reads them later is never told that they were there."""
    monkeypatch.setattr(lender_link, "_READ_S", 0.2)
    engine, address = prefill
    lender = engine.loop._traffic._lender
    assert lender is not None
    wire = Wire(knock(address, SECRET))
    wire.send(lender.own.card)
    assert isinstance(wire.receive(TO_BORROWER), Admitted)
    os.close(wire.receive_memory())
    wire.send(Opened())
    wire.send(Fetch(1, "a", pack_ids(PROMPT[:64]), None, 0))
    assert wire.receive(TO_BORROWER) == Found(1, 4)
    there = wire.receive(TO_BORROWER)
    assert isinstance(there, There)
    assert len(unpack_ids(there.block_ids)) == 4
    wire.send(Read(1))
    assert wire.receive(TO_BORROWER) == Done(1)
    until(lambda: not engine.core.cache.pool.lent)
    wire.send(Read(1))  # again, which changes nothing
    wire.send(Fetch(2, "a", pack_ids(PROMPT[:64]), None, 1))
    assert wire.receive(TO_BORROWER) == Found(2, 4)
    assert isinstance(wire.receive(TO_BORROWER), There)
    assert engine.core.cache.pool.lent
    with pytest.raises(EOFError):
        wire.receive(TO_BORROWER)
    until(lambda: not engine.core.cache.pool.lent)


@pytest.mark.parametrize("their_ids", [[1, 2], [1, 2, 3, 4], [1, 2, 9], [-1, 2, 3], []])
def test_only_blocks_of_the_other_pool_are_read(their_ids: list[int]) -> None:
    pools = [HostMover("cpu", np.zeros((9, 16), np.uint8)) for _ in range(2)]
    incoming = Incoming(0, None, None, (), 0, 0.0, is_found=True, room=([1, 2, 3], None))  # type: ignore[arg-type]
    with pytest.raises(BadMessageError, match=r"other blocks than|none of the 9 of its pool"):
        incoming.copy(MappedPool(*pools), their_ids)


#: what a prefill engine answers to the first question, after a good welcome
ANSWERS: dict[str, list[bytes]] = {
    "nothing": [],
    "an end": [b"end"],
    "no blocks": [encoded(Found(0, 0))],
    "too many blocks": [encoded(Found(0, 5))],
    "done too early": [encoded(Found(0, 4)), encoded(Done(0))],
    "cut blocks": [encoded(Found(0, 4)), encoded(Chunk(0, -1, 4)), b"\0" * 1000, b"end"],
    "more blocks than found": [encoded(Found(0, 1)), encoded(Chunk(0, -1, 4)), b"\0" * 6144 * 4],
    "a slot that is none": [encoded(Found(0, 4)), encoded(Chunk(0, 7, 4))],
    "found twice": [encoded(Found(0, 4)), encoded(Found(0, 4))],
    "a reason": [encoded(Failed(0, "I \x1b[31mcannot"))],
    "in a pool that is not mapped": [encoded(Found(0, 4)), encoded(There(0, pack_ids([1, 2, 3, 4])))],
    "another question's": [encoded(Done(9))],
    "noise": [b"\xff" * 100],
}


@pytest.mark.parametrize("kind", list(ANSWERS))
def test_a_decode_engine_computes_what_does_not_come(kind: str, decode: ThreadEngine, liar: Liar) -> None:
    """And no block is lost."""
    liar.answers = ANSWERS[kind]
    until(lambda: liar.is_ready)
    prompt = [next(NUMBERS) % 90 + 5, *PROMPT]
    before = len(decode.came)
    expected = decode.answer([prompt], cache_salt=f"first {kind}")
    assert len(decode.came) == before + 1
    assert decode.came[-1].why, "it says why nothing came"
    assert decode.answer([prompt], cache_salt=f"again {kind}") == expected
    until(lambda: not decode.core.cache.pool.lent)
    assert "\x1b" not in decode.came[-1].why


NUMBERS = itertools.count()


class Liar:
    """A prefill engine that answers what it is told to."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.is_ready = False
        self._door = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._door.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                end, _ = self._door.accept()
            except OSError:
                return
            with end, suppress(OSError, EOFError, BadMessageError):
                if admit(end, SECRET):
                    self._serve(Wire(end))
            self.is_ready = False

    def _serve(self, wire: Wire) -> None:
        wire.receive(TO_LENDER)
        wire.send(Admitted(0, 1 << 20))
        self.is_ready = True
        while True:
            if not isinstance(message := wire.receive(TO_LENDER), Fetch):
                continue
            for answer in self.answers:
                if answer == b"end":
                    return
                wire.end.sendall(_numbered(answer, message.number))

    def close(self) -> None:
        self._door.close()


def _numbered(answer: bytes, number: int) -> bytes:
    """The answer, to this question in place of question 0."""
    if len(answer) < 5 or len(answer) > 500:
        return answer
    try:
        message = TO_BORROWER.decode(answer[4:])
    except msgspec.DecodeError:
        return answer
    if getattr(message, "number", None) == 0:
        message = msgspec.structs.replace(message, number=number)
    return encoded(message)


@pytest.fixture(scope="module")
def liar() -> Iterator[Liar]:
    one = Liar()
    yield one
    one.close()


@pytest.fixture(scope="module")
def decode(liar: Liar, tmp_path_factory: pytest.TempPathFactory, tiny_folder: TinyFolder) -> Iterator[ThreadEngine]:
    task = borrows(liar.address, timeout_s=0.3)
    engine = ThreadEngine(tmp_path_factory.mktemp("run"), tiny_folder("llama"), task)
    yield engine
    engine.stop()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"role": "decode"}, "role is 'decode' and kv_peer is empty"),
        ({"kv_peer": ("a:1",)}, "kv_peer is 'a:1' and role is 'both'"),
        ({"role": "decode", "kv_peer": ("a",)}, "kv_peer is 'a', allowed is HOST:PORT"),
        ({"role": "prefill", "kv_listen": "a:99999"}, "kv_listen is 'a:99999', allowed is HOST:PORT"),
        ({"role": "prefill", "prefill_engines": 1}, "engines of one server need no role"),
        ({"kv_transfer_timeout": 0.0}, "kv_transfer_timeout is 0.0, allowed is more than 0"),
        ({"kv_transfer_timeout": float("inf")}, "kv_transfer_timeout is inf, allowed is more than 0"),
        ({"role": "decoder"}, "role is 'decoder'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem.replace("(", r"\(")):
        TransferConfig(**options)  # type: ignore[arg-type]


def test_vllms_words_for_roles_are_taken() -> None:
    assert TransferConfig(role="kv_producer").role == "prefill"  # type: ignore[arg-type]
    assert TransferConfig(role="kv_consumer", kv_peer=("a:1",)).role == "decode"  # type: ignore[arg-type]
