"""Freed memory that a process keeps, instead of giving it back and asking for it again.

What comes in: nothing. What goes out: whether the C library could be told. glibc gives every block above 32 MiB back to
the system as soon as it is freed, and the system fills the next one with zeros, page by page. The activations of a
window of DwiseNeuro are larger than that: predicting it on a CPU takes half the processor time when they are kept
(`benchmarks/prediction.py`), and a training step of AlexNet with 128 images nine tenths of the time. The process then
keeps the most that it ever held.
"""

import ctypes

# Of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed, for the rest of this process; False where the C library is another one."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Blocks that are mapped one by one are those that go back: 0 of them, so that all come from the heap.
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST))
