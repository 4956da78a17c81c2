"""ResponseStore: a server's responses, as its routes find them: those that are kept, and those made in the background.

routes ──▶ ResponseStore ──▶ a thread ──▶ ResponseFile
                └──▶ running: id -> a response that is being made
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Protocol, TypeVar

import msgspec

from octavo.observe.catalog import STORED_RESPONSES
from octavo.observe.exposition import MetricFamily, Sample, TextWriter
from octavo.observe.logging import LOGGER
from octavo.server.api_errors import ApiError
from octavo.server.responses.protocol import Item, ResponseObject
from octavo.server.responses.store_file import BrokenLineError, FileFault, KeptResponse, ResponseFile, TooLongLineError
from octavo.server.settings import ServerSettings
from octavo.server.streaming import Lanes
from octavo.shown import shown

_TOLD_EVERY_S = 60.0
_decode_items = msgspec.json.Decoder(list[Item]).decode
T = TypeVar("T")


class _Output(msgspec.Struct):
    output: list[Item]


_decode_output = msgspec.json.Decoder(_Output).decode


class RunningResponse(Protocol):
    """One that is made in the background, as the routes that read and end it see it."""

    owner: str

    @property
    def response(self) -> ResponseObject: ...

    @property
    def input(self) -> bytes: ...

    async def cancel(self) -> None:
        """Returns once it has ended."""

    def follow(self, after: int) -> AsyncGenerator[bytes] | None:
        """Its events behind this sequence number, as they come. None: they are not kept."""


class ResponseStore:
    """One event loop calls it. running: by their ids."""

    def __init__(self, settings: ServerSettings, lanes: Lanes) -> None:
        """Raises ConfigError if the file cannot be used."""
        self._settings = settings
        self._lanes = lanes
        self._file = ResponseFile(
            settings.responses_store,
            max_num=settings.max_stored_responses,
            max_bytes=settings.max_stored_response_bytes,
            timeout_s=settings.stored_response_timeout,
        )
        self._writer = TextWriter({"model_name": settings.served_model_name[0]})
        self._num_dropped = 0
        self._told_at = -_TOLD_EVERY_S
        self.running: dict[str, RunningResponse] = {}

    @property
    def is_shared(self) -> bool:
        """Whether all front ends of a server see it."""
        return self._settings.responses_store is not None

    async def keep(self, response_id: str, make: Callable[[], KeptResponse]) -> bool:
        """make: encodes the response, on the store's thread. False: there is no room, or the file fails, which the log
        tells."""
        try:
            dropped = await self._run(lambda: self._file.add(make()))
        except FileFault as error:
            LOGGER.error("response %s is not stored: %s", response_id, error)
            return False
        self._num_dropped += len(dropped)
        self._tell()
        return response_id not in dropped

    async def get(self, owner: str, response_id: str) -> KeptResponse:
        """Raises ApiError 404."""
        kept = await self._asked(partial(self._file.get, owner, response_id))
        if kept is None:
            raise self._unknown(response_id)
        return kept

    def running_of(self, owner: str, response_id: str) -> RunningResponse | None:
        running = self.running.get(response_id)
        return running if running is not None and running.owner == owner else None

    async def remove(self, owner: str, response_id: str) -> None:
        """Raises ApiError 404."""
        if not await self._asked(partial(self._file.remove, owner, response_id)):
            raise self._unknown(response_id)

    async def items(self, owner: str, response_id: str) -> list[Item]:
        """The items of a response and of those that it continues: what was sent, and what came. Raises ApiError."""
        if self.running_of(owner, response_id) is not None:
            problem = f"previous_response_id is {shown(response_id)}, which is still being made: wait until it is done"
            raise ApiError(400, problem, param="previous_response_id", code="response_in_progress")
        try:
            return await self._asked(partial(self._items, owner, response_id))
        except BrokenLineError as broken:
            known = broken.missing is not None
            told = f"which continues {shown(broken.missing)}, and that" if known else "which"
            problem = f"previous_response_id is {shown(response_id)}, {told} is not kept: {self._why_gone()}"
            raise ApiError(400, problem, param="previous_response_id", code="previous_response_not_found") from None
        except TooLongLineError as long:
            problem = (
                f"previous_response_id is {shown(response_id)}, whose conversation has {long.num_bytes} bytes, "
                f"allowed are {self._settings.max_body_bytes}: begin another, or start the server with a larger "
                "--max-body-bytes"
            )
            raise ApiError(400, problem, param="previous_response_id") from None

    def _items(self, owner: str, response_id: str) -> list[Item]:
        line = self._file.line(owner, response_id, self._settings.max_body_bytes)
        found: list[Item] = []
        for one in line:
            found += _decode_items(one.input) + _decode_output(one.body).output
        return found

    async def metrics(self) -> bytes:
        """As Prometheus text; empty if the file fails, which the log tells."""
        try:
            (num, size), dropped = await self._run(lambda: (self._file.num_and_bytes(), self._file.num_dropped()))
        except FileFault as error:
            LOGGER.error("the store of responses cannot be read: %s", error)
            return b""
        by_reason: list[Sample] = [("_total", (("reason", reason),), count) for reason, count in dropped.items()]
        samples: tuple[list[Sample], ...] = [("", (), num)], [("", (), size)], by_reason
        described = zip(STORED_RESPONSES.items(), samples, strict=True)
        families = [MetricFamily(name, kind, meaning, found) for (name, (kind, meaning)), found in described]
        return self._writer.write("octavo", families).encode()

    async def _run(self, work: Callable[[], T]) -> T:
        return await self._lanes.run("store", work)

    async def _asked(self, work: Callable[[], T]) -> T:
        try:
            return await self._run(work)
        except (*FileFault, msgspec.DecodeError) as error:
            LOGGER.error("the store of responses cannot be read: %s", error)
            raise ApiError(
                500, "the store of responses failed; the server's log says why", code="store_failed"
            ) from None

    def _unknown(self, response_id: str) -> ApiError:
        message = f"there is no response {shown(response_id)}: {self._why_gone()}"
        return ApiError(404, message, param="id", code="response_not_found")

    def _why_gone(self) -> str:
        most = self._settings
        lost = "" if self.is_shared else ", the server was restarted"
        return (
            f"it was made with store false or with another key, it was deleted{lost}, it was unused for "
            f"{most.stored_response_timeout:g} s, or it had to make room ({most.max_stored_responses} responses "
            f"and {most.max_stored_response_bytes} bytes are kept)"
        )

    def _tell(self) -> None:
        """Log what was dropped, at most once a minute."""
        if self._num_dropped and time.monotonic() >= self._told_at + _TOLD_EVERY_S:
            LOGGER.warning(
                "the store of responses is full: dropped %d that were unused the longest; --max-stored-responses and "
                "--max-stored-response-bytes make room for more",
                self._num_dropped,
            )
            self._num_dropped, self._told_at = 0, time.monotonic()
