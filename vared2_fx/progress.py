"""A progress bar for those who wait."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from threading import Timer
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

T = TypeVar("T")

QUIET_S = 2.0
"""Nothing is shown before that."""


def track(items: Iterable[T], description: str, *, total: int | None = None, enabled: bool = True) -> Iterator[T]:
    """Yield `items`; show a bar on stderr once it takes more than two seconds, where stderr is a terminal.

    `total` is their number, where they do not know it themselves.
    """
    if not enabled or not sys.stderr.isatty():
        yield from items
        return
    total = _length(items) if total is None else total
    progress = _bar()
    task = progress.add_task(description, total=total)
    started = time.monotonic()
    try:
        for item in items:
            yield item
            progress.advance(task)
            if not progress.live.is_started and time.monotonic() - started > QUIET_S:
                progress.start()
    finally:
        progress.stop()


@contextmanager
def waiting(description: str) -> Iterator[None]:
    """Show that something goes on, once the block takes more than two seconds, where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    progress = _bar(*columns)
    progress.add_task(description, total=None)
    timer = Timer(QUIET_S, progress.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        progress.stop()


def _bar(*columns: ProgressColumn) -> Progress:
    """On stderr; what is printed meanwhile stands above it, but only if both are for a terminal."""
    together = sys.stdout.isatty()
    return Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=together)


def _length(items: Iterable[object]) -> int | None:
    try:
        return len(items) if isinstance(items, Sized) else None
    except TypeError:  # a loader of unknown length says so only when asked
        return None
