"""Progress of anything that takes more than a few seconds, with an estimate of the time left.

What comes in: a total, and advances with short notes ("loss 3.21"). What goes out: a rich bar on a terminal, and one
plain line now and then where output goes to a file.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pretrain.process_group import is_first_process

LINE_INTERVAL_S = 10.0


class Meter:
    """Counts towards `total`; `advance(count, note)` shows where it stands."""

    def __init__(self, label: str, total: int, done: int, bar: Progress | None) -> None:
        self.label, self.total, self.done, self.first = label, total, done, done
        self.bar = bar
        self.started = self.line_shown = time.monotonic()
        self.task = bar.add_task(label, total=total, completed=done, note="") if bar else None

    def advance(self, count: int = 1, note: str = "") -> None:
        """Move on by `count`, with a note that replaces the last one."""
        self.done += count
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, note=note)
        elif time.monotonic() - self.line_shown >= LINE_INTERVAL_S:
            self.line_shown = time.monotonic()
            say(f"{self.label}: {self.done:,} of {self.total:,}, {self.time_left()} left  {note}".rstrip())

    def time_left(self) -> str:
        """Time to the end at the pace since this meter started, as hours:minutes:seconds."""
        moved = max(self.done - self.first, 1)
        seconds = (time.monotonic() - self.started) / moved * max(self.total - self.done, 0)
        return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


@contextmanager
def progress(label: str, total: int, done: int = 0) -> Iterator[Meter]:
    """A meter on stderr for the duration of the block."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Meter(label, total, done, None)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=16), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        yield Meter(label, total, done, bar)


def say(line: str) -> None:
    """One line for the user, on stderr so that tables on stdout stay clean; of several processes the first speaks."""
    if is_first_process():
        print(line, file=sys.stderr, flush=True)
