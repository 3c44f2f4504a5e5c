"""What a few steps of training spend their time on, operation by operation.

What comes in: a training that says where its steps end. What goes out, in the run folder: `trace.json.gz`, a timeline
that chrome://tracing and https://ui.perfetto.dev show, and `profile.txt`, a table of the costliest operations, those of
the GPU where there is one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.cuda import is_available
from torch.profiler import ProfilerActivity, profile, schedule

from pretrain.durable import write_atomically
from pretrain.progress import say

TRACE, TABLE = "trace.json.gz", "profile.txt"
OPERATIONS = 20


@contextmanager
def profile_steps(run_folder: Path, wait: int = 10, warmup: int = 3, active: int = 5) -> Iterator[profile]:
    """A profiler, whose `step()` is to be called after each step; it records a few and costs little afterwards.

    Args:
        run_folder: where trace and table go.
        wait: steps that are let pass, in which caches fill and kernels are chosen.
        warmup: steps that are recorded and thrown away, because starting to record takes time itself.
        active: steps that are recorded; fewer where training ends before.
    """
    written: list[Path] = []

    def write(profiler: profile) -> None:
        written.extend(write_profile(profiler, run_folder))
        say(f"profile of {active} steps: {written[0]} (open in https://ui.perfetto.dev) and {written[1]}")

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * is_available()
    steps = schedule(wait=wait, warmup=warmup, active=active, repeat=1)
    with profile(activities=activities, schedule=steps, on_trace_ready=write, profile_memory=True) as profiler:
        yield profiler
    if not written:
        say(f"no profile: training ended within the first {wait + warmup} steps, which are not recorded")


def write_profile(profiler: profile, run_folder: Path) -> tuple[Path, Path]:
    """Write trace and table of what was recorded; returns their paths."""
    trace, table = run_folder / TRACE, run_folder / TABLE
    temporary = trace.with_name(f".{os.getpid()}.tmp.{TRACE}")  # the profiler goes by the ending
    try:
        profiler.export_chrome_trace(str(temporary))
        os.replace(temporary, trace)
    finally:
        temporary.unlink(missing_ok=True)
    order = "self_cuda_time_total" if is_available() else "self_cpu_time_total"
    text = profiler.key_averages().table(sort_by=order, row_limit=OPERATIONS) + "\n"
    write_atomically(table, lambda file: file.write(text.encode()))
    return trace, table
