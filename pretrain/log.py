"""The log of a training: a row of figures, to metrics.csv and to every tracker that was asked for.

What comes in: the figures of a step, by name. What goes out: rows of `metrics.csv`, and what the trackers keep.
"""

from contextlib import suppress
from functools import partial
from pathlib import Path

from pretrain.run_folder import MetricsFile
from pretrain.trackers import Tracker, attempted


class Log:
    """Rows to metrics.csv and to the trackers, on the first process only."""

    def __init__(self, folder: Path, step: int, trackers: list[Tracker] | None, samples: str) -> None:
        self.trackers, self.samples = trackers, samples
        # A row of step 0 is of before the first step, and is written again.
        self.file = MetricsFile(folder / "metrics.csv", step or -1) if trackers is not None else None

    def add(self, step: int, epoch: int, seen: int, values: dict[str, float]) -> None:
        if self.file is None:
            return
        self.file.add({"step": step, "epoch": epoch, f"{self.samples}_seen": seen, **values})
        for tracker in list(self.trackers):
            if not attempted(tracker, partial(tracker.add, step, values)):
                self.trackers.remove(tracker)
                # What broke is said already; this only gives back what the tracker holds.
                with suppress(Exception):
                    tracker.close(failed=True)

    def close(self, failed: bool) -> None:
        for tracker in self.trackers or ():
            attempted(tracker, partial(tracker.close, failed))
