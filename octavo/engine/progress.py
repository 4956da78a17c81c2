"""A progress bar: finished requests, tokens per second, and the share of KV blocks in use."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from octavo.engine.core_protocol import EngineStats
from octavo.errors import InvalidRequestError
from octavo.outputs import RequestOutput

REFRESH_SECONDS = 0.2


class Progress:
    """Drawn on standard error, if that is a terminal; otherwise it costs nothing.

    stats: None leaves out the KV blocks. is_shown: or a function that makes the bar to use instead: tqdm, or one that
    takes its `total` and `desc`."""

    def __init__(
        self, num_requests: int, stats: Callable[[], EngineStats] | None, is_shown: bool | Callable[..., Any]
    ) -> None:
        if not isinstance(is_shown, bool) and not callable(is_shown):
            raise InvalidRequestError(f"use_tqdm is {is_shown!r}, allowed are True, False and what makes a bar")
        self._num_requests = num_requests
        self._stats = stats
        self._foreign: Any = None
        self._make_foreign = is_shown if callable(is_shown) else None
        self._is_shown = is_shown is True and sys.stderr.isatty()
        self._num_tokens = 0
        self._begin = time.perf_counter()
        self._usage, self._asked = "", 0.0
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self._is_shown:
            self._bar, self._bar_id = _make_bar(self._num_requests)
            self._bar.start()
        if self._make_foreign is not None:
            self._foreign = _foreign_bar(self._make_foreign, self._num_requests)
        return self

    def update(self, output: RequestOutput) -> None:
        """A request has finished."""
        self.advance(sum(len(completion.token_ids) for completion in output.outputs))

    def advance(self, num_tokens: int) -> None:
        """A request has finished, with this many new tokens."""
        if self._foreign is not None:
            self._foreign.update(1)
        if self._bar is None:
            return
        self._num_tokens += num_tokens
        now = time.perf_counter()
        if self._stats is not None and now - self._asked >= REFRESH_SECONDS:  # it looks at every block table
            self._usage, self._asked = f", KV {self._stats().kv_cache_usage:.0%}", now
        rate = self._num_tokens / (now - self._begin)
        self._bar.update(self._bar_id, advance=1, detail=f"{rate:,.0f} tok/s{self._usage}")

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._foreign is not None:
            self._foreign.close()


def _foreign_bar(make: Callable[..., Any], total: int) -> Any:
    try:
        bar = make(total=total, desc="Processed prompts")
    except TypeError as error:
        raise InvalidRequestError(f"use_tqdm is {make!r}, which makes no bar of total and desc: {error}") from error
    if not (hasattr(bar, "update") and hasattr(bar, "close")):
        raise InvalidRequestError(f"use_tqdm is {make!r}, which makes no bar that can be updated and closed")
    return bar


def _make_bar(num_requests: int) -> tuple[Any, Any]:
    from rich.console import Console  # 60 ms to import, so only where a bar is drawn
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("requests"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    bar = RichProgress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=1 / REFRESH_SECONDS)
    return bar, bar.add_task("requests", total=num_requests, detail="")
