"""The largest batch that fits into a device's memory, and what to say when one did not.

What comes in: a function that runs a whole step with a batch of a given size. What goes out: a size, found by doubling
and then halving the interval between what fitted and what did not, with an eighth of it left free, because some steps
take more memory than others and memory is cut into pieces as training goes on.
"""

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from pretrain.progress import say

# Sizes are multiples of what tensor cores like.
MULTIPLE = 8
# An eighth stays free.
SHARE_USED = (7, 8)
# Libraries of the GPU and the CPU say in words of their own that memory is exhausted.
SIGNS = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
)


def largest_batch(try_step: Callable[[int], None], start: int, limit: int) -> int:
    """A multiple of 8, at most `limit`, that leaves an eighth of the memory free; 8 where only that fits.

    Args:
        try_step: runs forward, backward and optimiser with so many images of the right size, whatever they show, twice
            or more, since optimisers allocate in their first step; sizes up to 8 / 7 of `limit` are asked for.
        start: the first size to try.
        limit: largest size that is of use, for example the images of an epoch.

    Raises:
        ValueError: the limit is below 8, or not even 8 images fit.
    """
    if limit < MULTIPLE:
        raise ValueError(f"the largest batch is a multiple of {MULTIPLE}, and no more than {limit} images are of use")
    most = down(limit)
    # What must fit for `most` to leave its eighth free.
    roomy = up(-(-most * SHARE_USED[1] // SHARE_USED[0]))
    fits = largest_fitting(lambda size: fits_in_memory(try_step, size), min(max(down(start), MULTIPLE), roomy), roomy)
    if not fits:
        raise ValueError(
            f"not even {MULTIPLE} images fit into the memory; make views.size smaller, set precision=bf16-mixed or "
            "activation_checkpointing=true, or take a smaller model"
        )
    return min(max(down(fits * SHARE_USED[0] // SHARE_USED[1]), MULTIPLE), most)


def largest_fitting(fits: Callable[[int], bool], start: int, limit: int) -> int:
    """The largest multiple of 8 up to `limit` that fits, 0 if none does; `start` and `limit` are multiples of 8."""
    found, fails, size = 0, None, start
    while fails is None and found < limit:
        if fits(size):
            found, size = size, min(2 * size, limit)
        else:
            fails = size
    while fails is not None and fails - found > MULTIPLE:
        size = down((found + fails) // 2)
        if fits(size):
            found = size
        else:
            fails = size
    return found


def down(size: int) -> int:
    return size // MULTIPLE * MULTIPLE


def up(size: int) -> int:
    return -(-size // MULTIPLE) * MULTIPLE


def fits_in_memory(try_step: Callable[[int], None], size: int) -> bool:
    """Whether a step with that many images finds memory; what it took is free again afterwards."""
    fits = True
    try:
        try_step(size)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        fits = False
    # Not within `except`, where the error still holds the frames of the step with their tensors.
    gc.collect()
    torch.cuda.empty_cache()
    say(f"batch of {size:,}: {'fits' if fits else 'does not fit'}")
    return fits


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is exhausted, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
    )


def explain_out_of_memory(
    error: BaseException, batch_size: int, device: torch.device, less_memory: str | None = None
) -> str:
    """One line: how much was wanted where, and which keys need less: `less_memory`, or those of a pretraining."""
    remedies = less_memory or keys_of_less_memory(batch_size, device)
    return f"{memory_of(device)} has no room{wanted_more(error)} with batch_size={batch_size}; {remedies}"


def keys_of_less_memory(
    batch_size: int,
    device: torch.device,
    accumulate: int = 1,
    precision: str = "32-true",
    activation_checkpointing: bool = False,
) -> str:
    """Which keys of a pretraining need less memory than they do as they are set."""
    smaller = [f"batch_size={batch_size // 2}"] if batch_size > 1 else []
    if device.type == "cuda":
        smaller.append("batch_size=auto")
    kept = [f"accumulate={2 * accumulate}"] if batch_size % (2 * accumulate) == 0 else []
    if precision == "32-true":
        kept.append("precision=bf16-mixed")
    if not activation_checkpointing:
        kept.append("activation_checkpointing=true")
    keep = ", ".join(kept) + (" or " if kept else "") + "a smaller views.size"
    return f"set {' or '.join(smaller)}, or keep it with {keep}" if smaller else f"train with {keep}"


@contextmanager
def memory_before_training() -> Iterator[None]:
    """Say in one line that memory ended before the first step, in the block or the function that this decorates.

    Raises:
        MemoryError: it did.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        where = "the GPU" if isinstance(error, torch.OutOfMemoryError) else "the machine"
        raise MemoryError(explain_before_training(error, f"the memory of {where}")) from error


def explain_before_training(error: BaseException, memory: str) -> str:
    """One line: how much was wanted before there was a batch, and what needs less."""
    return (
        f"{memory} has no room{wanted_more(error)} for the weights, the heads and what the optimiser keeps; take a "
        "smaller model or smaller heads (objective_args), or an optimizer.name that keeps less"
    )


def wanted_more(error: BaseException) -> str:
    """How much an error says was asked for in vain, in GiB where it says bytes."""
    wanted = re.search(r"[Tt]ried to allocate ([\d.]+) (\w+)", str(error))
    if not wanted:
        return ""
    size, unit = wanted.groups()
    return f" for {float(size) / 2**30:,.2f} GiB more" if unit == "bytes" else f" for {size} {unit} more"


def memory_of(device: torch.device) -> str:
    """A device's memory in words."""
    if device.type != "cuda":
        return f"the memory of the {device.type}"
    total = torch.cuda.get_device_properties(device).total_memory
    used = torch.cuda.max_memory_allocated(device)
    name = torch.cuda.get_device_name(device)
    return f"the memory of {name} ({total / 2**30:.1f} GiB, of which this run used up to {used / 2**30:.1f})"
