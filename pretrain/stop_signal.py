"""Signals that ask a training to stop, noted so that it can save first.

What comes in: Ctrl-C, SIGTERM, and SIGUSR1, which Slurm sends where a job asked to be warned before its time is over
(`--signal=USR1@120`). What goes out: which of them came; the second of its kind does what it does without this.
"""

import os
import signal
import threading
from types import FrameType

from pretrain.progress import say

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopSignal:
    """Notes Ctrl-C, SIGTERM and SIGUSR1, so that the loop can save and stop between two steps."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.process = os.getpid()

    def __enter__(self) -> "StopSignal":
        # Only the main thread may set handlers; a Ray trial runs in another and is stopped by Ray.
        self.handlers = {}
        if threading.current_thread() is threading.main_thread():
            self.handlers = {s: signal.signal(s, self.note) for s in STOPS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        # Reader processes inherit the handler, and leave stopping to the process that trains.
        if os.getpid() == self.process:
            self.received = signal.Signals(number)
            say(f"{self.received.name}: saving after this step (again to stop at once)")
            signal.signal(number, self.handlers[number])
