"""AdapterDesk: where front ends have an engine's adapters loaded and unloaded while it runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from octavo.engine.adapter_book import AdapterBook
from octavo.errors import OctavoError, reason_of
from octavo.lora_request import LoRARequest
from octavo.processes.transport import Adapters, AdaptersAre, Reply, encode


class AdapterDesk:
    """Reads folders on a thread, so that no step waits for a file. post: leaves work for the engine's thread. send:
    takes a front end, and the message for it."""

    def __init__(
        self, book: AdapterBook, post: Callable[[Callable[[], None]], None], send: Callable[[bytes, Reply], object]
    ) -> None:
        self._book, self._post, self._send = book, post, send
        self._reader = ThreadPoolExecutor(1, "octavo-adapters")

    def take(self, front_end: bytes, message: Adapters) -> None:
        """What is asked for, and then the answer, which may come later."""
        refusal = ""
        if message.unload is not None and not self._book.unload(message.unload):
            refusal = f"no adapter has the lora_int_id {message.unload}"
        if message.load is None:
            self._answer(front_end, message.number, refusal)
            return
        try:
            self._book.check_new(message.load)
        except OctavoError as error:
            self._answer(front_end, message.number, str(error))
        else:
            self._reader.submit(self._read, front_end, message.number, message.load)

    def close(self) -> None:
        self._reader.shutdown(wait=False, cancel_futures=True)

    def _read(self, front_end: bytes, number: int, request: LoRARequest) -> None:
        """On the thread."""
        try:
            files = self._book.read(request)
        except Exception as error:
            refusal = reason_of(error)
            self._post(lambda: self._answer(front_end, number, refusal))
            return

        def enter() -> None:
            refusal = ""
            try:
                self._book.check_new(request)  # another may have come meanwhile
                self._book.enter(request, files)
            except OctavoError as error:
                refusal = str(error)
            self._answer(front_end, number, refusal)

        self._post(enter)

    def _answer(self, front_end: bytes, number: int, refusal: str) -> None:
        self._send(front_end, Reply(number, encode(AdaptersAre(self._book.requests, refusal))))
