"""The two files of a batch, in OpenAI's format: calls, one per line, and their results in the order they end.

in.jsonl   {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {...}}
out.jsonl  {"id": "batch_req_...", "custom_id": "a", "error": null,
            "response": {"status_code": 200, "request_id": "...", "body": {...}}}

The results also record what is done. A process killed at any moment leaves whole results and at most one torn line,
which the next run cuts off. A line without a custom_id is identified by its number.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import msgspec

from octavo.errors import InvalidRequestError

#: identifies a line in both files: its custom_id, or its number if it has none
Key = str | int

#: in place of a file's name: standard input or output
STANDARD_STREAM = "-"

_OPENING = b'{"id":"'
_BOM = b"\xef\xbb\xbf"


class ResponsePart(msgspec.Struct, kw_only=True):
    status_code: int
    request_id: str
    body: msgspec.Raw


class ErrorPart(msgspec.Struct, kw_only=True):
    """The result of a line that is no valid call. line: its number in the input."""

    code: str
    message: str
    line: int


class LineResult(msgspec.Struct, kw_only=True):
    """One line of the output."""

    id: str
    custom_id: str | None
    response: ResponsePart | None
    error: ErrorPart | None

    @property
    def is_failure(self) -> bool:
        return self.response is None or self.response.status_code != 200

    @property
    def key(self) -> Key | None:
        if self.custom_id is not None:
            return self.custom_id
        return None if self.error is None else self.error.line


@dataclass(frozen=True, slots=True)
class Place:
    """Where a line is in the input. number: counted from 1; offset, size: in bytes."""

    number: int
    offset: int
    size: int


class _Named(msgspec.Struct):
    custom_id: Any = None


def custom_id_of(line: bytes) -> str | None:
    """None if the line has no usable one."""
    try:
        found = msgspec.json.decode(line, type=_Named).custom_id
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return found if isinstance(found, str) and found else None


class BatchInput:
    """The lines to answer. The file is read once for their places, and each line again when its turn comes."""

    def __init__(self, path: str) -> None:
        """Raises InvalidRequestError for a file that cannot be read, and for a custom_id that occurs twice."""
        self.path = path
        self._file: IO[bytes]
        try:
            self._file = _copy_of_standard_input() if path == STANDARD_STREAM else open(path, "rb")  # noqa: SIM115
        except OSError as error:
            raise InvalidRequestError(f"--input-file {path} cannot be read: {error}") from None
        try:
            if not self._file.seekable():
                raise InvalidRequestError(f"--input-file {path} is a pipe, allowed is a file, which is read twice")
            self.places = self._find()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> BatchInput:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, place: Place) -> bytes:
        self._file.seek(place.offset)
        return self._file.read(place.size)

    def is_same_file(self, file: io.FileIO) -> bool:
        return os.path.sameopenfile(self._file.fileno(), file.fileno())

    def _find(self) -> dict[Key, Place]:
        places: dict[Key, Place] = {}
        for number, (offset, line) in enumerate(self._lines(), 1):
            if not line.strip():
                continue
            custom_id = custom_id_of(line)
            key = number if custom_id is None else custom_id
            if key in places:
                raise InvalidRequestError(
                    f"{self.path}: custom_id {key!r} is on line {places[key].number} and on line {number}, "
                    "allowed is one line for each: results are told apart by it"
                )
            places[key] = Place(number, offset, len(line))
        return places

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Each line and its offset, without the byte order mark that some editors write first."""
        offset = 0
        for line in self._file:
            bom = len(_BOM) if offset == 0 and line.startswith(_BOM) else 0
            yield offset + bom, line[bom:]
            offset += len(line)


class BatchOutput:
    """The results so far, and the file for those to come. One process at a time may hold it."""

    def __init__(self, path: str, asked: BatchInput) -> None:
        """Reads the results and cuts off a torn last line. Raises InvalidRequestError if the file cannot be written, is
        held by another process, or holds anything but results of this input."""
        self.path = path
        self.done: set[Key] = set()
        self.num_failures = 0
        self._size = 0  # bytes of whole results
        try:
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115  # closed by whoever leaves `with`
        except OSError as error:
            raise InvalidRequestError(f"--output-file {path} cannot be written: {error}") from None
        try:
            self._resume(asked)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> BatchOutput:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, result: LineResult) -> None:
        """One line, passed to the system before this returns; all of it or, on a full disk, nothing."""
        line = memoryview(msgspec.json.encode(result) + b"\n")
        num_written = 0
        try:
            while num_written < len(line):
                num_written += self._file.write(line[num_written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise InvalidRequestError(f"--output-file {self.path} cannot be written: {error}") from None
        self._size += len(line)
        self._note(result)

    def _note(self, result: LineResult) -> None:
        if result.key is not None:
            self.done.add(result.key)
        self.num_failures += result.is_failure

    def _resume(self, asked: BatchInput) -> None:
        if asked.is_same_file(self._file):
            raise InvalidRequestError(f"--input-file and --output-file are both {self.path}, allowed are two files")
        if not self._file.seekable():
            raise InvalidRequestError(
                f"--output-file {self.path} is a pipe, allowed is a file: it records what is done"
            )
        _lock(self._file, self.path)
        self._file.seek(0)
        reader = io.BufferedReader(self._file)
        for number, line in enumerate(reader, 1):
            if not line.endswith(b"\n"):
                if not (line.startswith(_OPENING) or _OPENING.startswith(line)):
                    raise self._foreign(number)
                self._file.truncate(self._size)
                break
            self._note(self._read(number, line, asked))
            self._size += len(line)
        reader.detach()

    def _read(self, number: int, line: bytes, asked: BatchInput) -> LineResult:
        try:
            result = msgspec.json.decode(line, type=LineResult)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._foreign(number) from None
        if result.custom_id is not None and result.custom_id not in asked.places:
            raise InvalidRequestError(
                f"--output-file {self.path}, line {number} is the result of custom_id {result.custom_id!r}, which "
                f"{asked.path} does not hold: name the output that belongs to this input, or a new one"
            )
        return result

    def _foreign(self, number: int) -> InvalidRequestError:
        return InvalidRequestError(
            f"--output-file {self.path}, line {number} is not the result of a batch, allowed is a new file, or the "
            "one that an earlier run of this batch began: name another"
        )


class BatchStream:
    """Results on standard output, where no earlier results can be read: every line is answered."""

    def __init__(self) -> None:
        self.done: set[Key] = set()
        self.num_failures = 0

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()

    def append(self, result: LineResult) -> None:
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
        sys.stdout.flush()
        self.num_failures += result.is_failure
        if result.key is not None:
            self.done.add(result.key)


Results = BatchOutput | BatchStream


def _copy_of_standard_input() -> IO[bytes]:
    """Each line is read twice, and a pipe only once."""
    copy = tempfile.TemporaryFile()  # noqa: SIM115  # closed by whoever leaves `with`
    shutil.copyfileobj(sys.stdin.buffer, copy)
    copy.seek(0)
    return copy


def _lock(file: io.FileIO, path: str) -> None:
    """Lock the file while it is open, if the system has such locks."""
    with contextlib.suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidRequestError(
                f"--output-file {path} is being written by another run of this batch: wait for it, or end it"
            ) from None
