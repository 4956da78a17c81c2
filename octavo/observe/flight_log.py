"""Files of events: what the flight recorder writes, and what pictures, explanations and replays read.

    gzip member     header: format, version, configuration, sizes
    gzip member     an array of events, some hundred of them
    gzip member     ...                                                  cut off in the middle: the log ends before it

Every member is one msgpack value with a checksum, and is read without those before it; `zcat` shows them all.

    LogWriter(file, header).write(events)
    header, events = read_log(path)

A reader trusts nothing: whatever it cannot understand is a LogError, and it unpacks one bounded member at a time.
"""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from os import PathLike
from typing import Any, BinaryIO

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from octavo.errors import LogError
from octavo.observe.events import BlocksPublished, EngineStarted, Event, EventsLost, SoughtInVain
from octavo.observe.snapshot import Snapshot
from octavo.observe.stored_events import DECODER, Columns
from octavo.shown import shown

#: of the file; readers refuse others
FORMAT = 1
#: of a member, unpacked
MAX_MEMBER_BYTES = 64 << 20

_FULL_MEMBER_BYTES = 1 << 18  # a writer begins the next member after so many
_READ_SIZE = 1 << 16
_HASH_SIZE = 8  # bytes of a scrambled hash
_GZIP = 16 + zlib.MAX_WBITS  # zlib's sign for gzip's header and checksum around the data
_SLICE_SIZE = 256  # events that are encoded at once
_SLICE_SIZE_WITH_TOKENS = 4  # a prompt's may take megabytes
_ARRAY = b"\xdd"  # msgpack's: an array whose length the next four bytes say
_HASHED = (BlocksPublished, SoughtInVain)
_ENCODER = msgspec.msgpack.Encoder()


class LogHeader(Struct, frozen=True, kw_only=True):
    """What a log says about itself.

    octavo_log: the format. version: of Octavo. written_at: the wall clock, as seconds of the epoch, when the engine's
    own was at `clock`. started: the engine's sizes. config: option -> value, by section. is_whole: it begins with the
    engine; otherwise it has the last events only. has_token_ids: it has prompts and answers, as token ids.
    """

    octavo_log: int = FORMAT
    version: str
    written_at: float
    clock: float
    started: EngineStarted
    config: dict[str, dict[str, Any]] = {}
    is_whole: bool = True
    has_token_ids: bool = False

    def wall_time(self, time: float) -> float:
        """An event's time as seconds of the epoch."""
        return self.written_at + time - self.clock


_HEADER_DECODER = msgspec.msgpack.Decoder(LogHeader)


class LogWriter:
    """Writes into an open file, which it leaves open."""

    def __init__(self, file: BinaryIO, header: LogHeader) -> None:
        self._file = file
        self._key = secrets.token_bytes(16)
        self._slice_size = _SLICE_SIZE_WITH_TOKENS if header.has_token_ids else _SLICE_SIZE
        self._put(_ENCODER.encode(header))

    def write(self, events: Iterable[Event]) -> None:
        """Append these events. All of them are in the file once it is flushed."""
        member, columns, num_events, coming = bytearray(), Columns(), 0, iter(events)
        while events_of_slice := list(islice(coming, self._slice_size)):
            stored = [columns.store(self._guarded(event)) for event in events_of_slice]
            member += _encoded(stored)
            num_events += len(stored)
            if len(member) > _FULL_MEMBER_BYTES:
                self._put(_ARRAY + num_events.to_bytes(4, "big") + member)
                member, columns, num_events = bytearray(), Columns(), 0
        if num_events:
            self._put(_ARRAY + num_events.to_bytes(4, "big") + member)

    def _put(self, data: bytes) -> None:
        packer = zlib.compressobj(level=1, wbits=_GZIP)
        self._file.write(packer.compress(data) + packer.flush())

    def _guarded(self, event: Event) -> Event:
        """The event with scrambled hashes."""
        if isinstance(event, _HASHED) and event.hashes:
            return replace(event, hashes=tuple(map(self._scrambled, event.hashes)))
        if type(event) is Snapshot:
            nodes = [(*node[:2], *map(self._scrambled, node[2:])) for node in event.tree_nodes]
            return replace(event, tree_nodes=tuple(nodes))
        return event

    def _scrambled(self, content: bytes) -> bytes:
        """Equal hashes stay equal in this file, and nobody can find out by them what the tokens are."""
        return blake2b(content, digest_size=_HASH_SIZE, key=self._key).digest()


def _encoded(events: list[Event]) -> bytes:
    """The events one after the other. One that holds what msgpack has no way to write, such as a name with lone
    surrogates or a number of more than 64 bits, is a loss."""
    try:
        return _ENCODER.encode(events)[1 if len(events) < 16 else 3 :]  # without the array's own beginning
    except (OverflowError, UnicodeEncodeError):
        if len(events) == 1:
            return _ENCODER.encode(EventsLost(events[0].time, 1))
        return b"".join([_encoded([event]) for event in events])


def read_log(path: str | PathLike[str]) -> tuple[LogHeader, Iterator[Event]]:
    """A log's header, and its events, read as they are asked for. Raises LogError, at once or at an event, for a file
    that is no log or is damaged. A last member that was cut off is no damage: its process died."""
    try:
        file = open(path, "rb")  # noqa: SIM115  # closed when its last member is read
    except OSError as error:
        raise LogError(f"the event log {shown(str(path))} cannot be opened: {error.strerror}") from error
    return read_open_log(file, str(path))


def read_open_log(file: BinaryIO, name: str) -> tuple[LogHeader, Iterator[Event]]:
    """The same for an open file, which is closed in the end. name: for messages."""
    members = _members(file, name)
    try:
        first = next(members, None)
        if first is None:
            raise LogError(f"{shown(name)} is empty, or ends in its header: there is nothing to read")
        return _header(first, name), _events(members, name)
    except LogError:
        file.close()
        raise


def _header(data: bytes, name: str) -> LogHeader:
    try:
        header = _HEADER_DECODER.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise LogError(f"{shown(name)} is no event log: {error}") from error
    if header.octavo_log != FORMAT:
        raise LogError(
            f"{shown(name)} is an event log of format {header.octavo_log}, written by Octavo {shown(header.version)}, "
            f"and this Octavo reads format {FORMAT}: read it with that version"
        )
    return header


def _events(members: Iterator[bytes], name: str) -> Iterator[Event]:
    for number, data in enumerate(members, 1):
        columns = Columns()
        try:
            events = [columns.restore(stored) for stored in DECODER.decode(data)]
        except (msgspec.DecodeError, RecursionError, LogError) as error:
            raise LogError(f"member {number} of the event log {shown(name)} is damaged: {error}") from error
        yield from events


def _members(file: BinaryIO, name: str) -> Iterator[bytes]:
    with file:
        packed = b""
        while packed := packed or file.read(_READ_SIZE):
            unpacker, data = zlib.decompressobj(wbits=_GZIP), bytearray()
            while packed and not unpacker.eof:
                try:
                    data += unpacker.decompress(packed, MAX_MEMBER_BYTES + 1 - len(data))
                except zlib.error as error:
                    raise LogError(f"{shown(name)} is no event log, or is damaged: {error}") from error
                if len(data) > MAX_MEMBER_BYTES:
                    raise LogError(f"{shown(name)} has a part of more than {MAX_MEMBER_BYTES:,} bytes: it is no log")
                packed = unpacker.unconsumed_tail or (b"" if unpacker.eof else file.read(_READ_SIZE))
            if not unpacker.eof:
                return  # its process died here
            packed = unpacker.unused_data
            yield bytes(data)
