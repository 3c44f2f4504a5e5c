"""Loops over pixels that are compiled for the CPU they run on, by numba, and that threads share.

What comes in: functions over numpy arrays. What goes out: the same ones as machine code, which is compiled at the first
call, some seconds long, and kept on disk for the next process. They hold no lock of Python's, so that threads run them
side by side; what one sample becomes does not depend on how many threads there are.

numba checks only the file a kernel stands in when it takes it from disk: a kernel calls none of another file, and the
constants it takes from others must not change without it.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import torch
from numba.core import event

from pretrain.progress import say

# Sums may be taken in any order and products added in one rounding. Nothing here is infinite or NaN.
ANY_ORDER = {"reassoc", "contract", "nsz", "nnan", "ninf"}


def kernel(function: Callable) -> Callable:
    """Compile a function of whole numbers, or of floats that are rounded one by one."""
    return compiled(function, fastmath=False)


def fast_kernel(function: Callable) -> Callable:
    """Compile a function of floats whose sums may be taken in any order."""
    return compiled(function, fastmath=ANY_ORDER)


def compiled(function: Callable, **options: Any) -> Callable:
    """Compile with numba; where no folder can be written to, in each process anew."""
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written to
        return numba.njit(function, **options)


class CompilingIsSaid(event.Listener):
    """One line before a process compiles the first of our kernels; those that lie on disk take no time."""

    said = False

    def on_start(self, event: event.Event) -> None:
        """numba begins to compile a function, of ours or of another package."""
        ours = event.data["dispatcher"].py_func.__module__.startswith("pretrain.")
        if ours and not self.said:
            self.said = True
            say("compiling what makes views for this CPU, which happens once and takes some ten seconds")

    def on_end(self, event: event.Event) -> None:
        """Nothing is said of the end."""


event.register("numba:compile", CompilingIsSaid())


def share(samples: int, work: Callable[[slice], None]) -> None:
    """Call `work` with consecutive parts of so many samples, one for each of torch's threads."""
    threads = max(1, min(torch.get_num_threads(), samples))
    parts = [slice(samples * part // threads, samples * (part + 1) // threads) for part in range(threads)]
    if threads == 1:
        work(parts[0])
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, parts))
