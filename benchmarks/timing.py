"""Jobs that take turns, and the median time of each.

What comes in: functions by name. What goes out: seconds by name. Turns spread what else the machine does over all jobs.
"""

import time
from collections.abc import Callable

import numpy as np


def median_seconds(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each job; the jobs take turns, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: float(np.median(measured)) for name, measured in seconds.items()}


def rounded(figures: dict[str, object]) -> dict[str, object]:
    """Figures with three digits, for the last line of JSON."""
    return {name: float(f"{value:.3g}") if isinstance(value, float) else value for name, value in figures.items()}
