"""How far work is, on standard error where that is a terminal; elsewhere nothing is drawn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    title: str, total: int, *, is_bytes: bool = False, is_disabled: bool = False
) -> Iterator[Callable[[int], None]]:
    """A bar for work of known size: the function that moves it on by so much. is_bytes: shown as MB."""
    if is_disabled or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console  # 60 ms to import, so only where a bar is drawn
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    done = DownloadColumn() if is_bytes else MofNCompleteColumn()
    columns = (TextColumn(title), BarColumn(), done, TimeRemainingColumn())
    # Four times per second: drawing takes time from the work.
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def progress_line(what: str) -> Iterator[Callable[[str], None]]:
    """For work of unknown size: the function that says what is being done."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    print(what, file=sys.stderr, end="", flush=True)
    yield lambda text: print(f"\r\033[K{what} {text}", file=sys.stderr, end="", flush=True)
    print("\r\033[K", file=sys.stderr, end="", flush=True)
