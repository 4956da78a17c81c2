"""Inbox: the unread outputs of one call's requests."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence

from octavo.outputs import RequestOutput
from octavo.request import Request
from octavo.sampling_params import RequestOutputKind


class Inbox:
    """A stream's unread outputs. The engine refers to the inbox, not to the stream, so the stream can be dropped."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = list(requests)
        self._unread: OrderedDict[object, RequestOutput] = OrderedDict()
        self._numbers = itertools.count()
        self.is_begun = False
        self.waits_for: set[str] = set()  # requests whose last output has not been read

    def begin(self) -> Sequence[Request]:
        """The requests to queue; none if that was done. Once `is_begun`, `waits_for` is complete."""
        if self.is_begun:
            return ()
        self.waits_for.update(request.request_id for request in self._requests)
        self.is_begun = True
        return self._requests

    @property
    def has_news(self) -> bool:
        """There is an output to read, or none to wait for."""
        return bool(self._unread) or not self.waits_for

    def add(self, request_id: str, parent_id: str) -> bool:
        """Wait for another request as well. False: the parent is not waited for any more."""
        if parent_id in self.waits_for:
            self.waits_for.add(request_id)
        return request_id in self.waits_for

    def put(self, output: RequestOutput, kind: RequestOutputKind) -> None:
        key: object = output.request_id if kind is RequestOutputKind.CUMULATIVE else next(self._numbers)
        self._unread[key] = output

    def take(self) -> RequestOutput | None:
        if not self._unread:
            return None
        _, output = self._unread.popitem(last=False)
        if output.finished:
            self.waits_for.discard(output.request_id)
        return output

    def end(self) -> set[str]:
        """Wait for no more outputs -> the requests that were waited for."""
        left, self.waits_for, self.is_begun = self.waits_for, set(), True
        self._unread.clear()
        return left
