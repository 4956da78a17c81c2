"""A bar for work of known size, on standard error where that is a terminal; elsewhere nothing is drawn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(title: str, total: int, *, is_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """A function that moves the bar on by so much. is_bytes: shown as MB."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console  # 60 ms to import, so only where a bar is drawn
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    done = DownloadColumn() if is_bytes else MofNCompleteColumn()
    columns = (TextColumn(title), BarColumn(), done, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)
