"""The log of a training: a row of figures, to metrics.csv and to every tracker that was asked for.

What comes in: the figures of a step, by name. What goes out: rows of `metrics.csv`, and what the trackers keep.
"""

from contextlib import nullcontext, suppress
from pathlib import Path

from pretrain.run_folder import MetricsFile
from pretrain.trackers import Tracker


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
        for tracker in self.trackers:
            tracker.add(step, values)

    def close(self, failed: bool) -> None:
        for tracker in self.trackers or ():
            # What a full disk does not take of a training that failed must not hide why it did.
            with suppress(OSError) if failed else nullcontext():
                tracker.close(failed)
