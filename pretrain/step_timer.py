"""Where the time of a training step goes: waiting for data, views, forward and backward, optimiser.

What comes in: the beginnings and ends of named parts. What goes out: milliseconds per step of each, and the device's
peak memory in MiB. On a GPU, whose work is queued, the ends are CUDA events in its stream, and are read only when a row
is logged: no step waits for the device. There the time of a part is how long the stream was at it, so that waiting for
data that the GPU did not have to wait for, because it was still busy, counts nothing.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Pairs of events, after which those that have passed are added up; an event costs a little memory.
MOST_PENDING = 1024


class StepTimer:
    """Adds up the parts of steps on a device; `with timer.part("views"): ...` around each, `read` now and then.

    A part may come several times in a step, as when a batch is cut into pieces. Parts also have their names in the
    trace of a profiler.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"
        self.milliseconds: dict[str, float] = {}
        self.pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self.spare: list[torch.cuda.Event] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block as that part of a step."""
        with torch.profiler.record_function(name):
            if self.on_gpu:
                begin = self.record()
                yield
                self.pending.append((name, begin, self.record()))
                if len(self.pending) > MOST_PENDING:
                    self.add_passed()
            else:
                begun = time.perf_counter()
                yield
                self.add(name, 1000 * (time.perf_counter() - begun))

    def read(self, steps: int) -> dict[str, float]:
        """`<part>_ms`, mean over the `steps` since the last read, and `device_memory_mib`, the peak so far, on a GPU.

        Waits for the device.
        """
        if self.pending:
            self.pending[-1][2].synchronize()
            self.add_passed()
        values = {f"{name}_ms": total / max(steps, 1) for name, total in self.milliseconds.items()}
        self.milliseconds.clear()
        if self.on_gpu:
            values["device_memory_mib"] = torch.cuda.max_memory_allocated(self.device) / 2**20
        return values

    def reset(self) -> None:
        """Forget what was counted since the last read, as after a probe or a checkpoint within it."""
        self.spare += [event for _, *events in self.pending for event in events]
        self.pending.clear()
        self.milliseconds.clear()

    def record(self) -> torch.cuda.Event:
        """An event at this place of the device's current stream."""
        event = self.spare.pop() if self.spare else torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def add_passed(self) -> None:
        """Add up the parts, in their order, that the device has passed; their events are used again."""
        passed = 0
        for name, begin, end in self.pending:
            if not end.query():
                break
            self.add(name, begin.elapsed_time(end))
            self.spare += [begin, end]
            passed += 1
        del self.pending[:passed]

    def add(self, name: str, milliseconds: float) -> None:
        self.milliseconds[name] = self.milliseconds.get(name, 0.0) + milliseconds
