"""The largest batch: every size of memory, every start and limit; and the words for what did not fit."""

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.largest_batch import (
    explain_out_of_memory,
    is_out_of_memory,
    keys_of_less_memory,
    largest_batch,
    largest_fitting,
    memory_before_training,
)

OUT = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.00 GiB is free."
)


@pytest.fixture(autouse=True)
def quick_collections() -> Iterator[None]:
    """What the libraries hold is not searched for garbage at each try."""
    gc.freeze()
    yield
    gc.unfreeze()


class Memory:
    """A device on which `capacity` images fit."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.tried: list[int] = []

    def fits(self, size: int) -> bool:
        self.tried.append(size)
        return size <= self.capacity

    def step(self, size: int) -> None:
        self.tried.append(size)
        if size > self.capacity:
            raise torch.OutOfMemoryError(OUT)


@given(capacity=st.integers(0, 5000), start=st.integers(1, 700), limit=st.integers(1, 700))
def test_the_search_finds_the_largest_multiple_that_fits(capacity, start, limit):
    memory = Memory(capacity)
    start, limit = 8 * min(start, limit), 8 * limit
    assert largest_fitting(memory.fits, start, limit) == min(capacity, limit) // 8 * 8
    assert memory.tried[0] == start
    assert len(set(memory.tried)) == len(memory.tried) <= 21
    assert all(size % 8 == 0 and 8 <= size <= limit for size in memory.tried)


@pytest.mark.parametrize(
    ("capacity", "limit", "expected"),
    [
        (1000, 5000, 872),  # 7 / 8 of 1000 is 875
        (1000, 875, 872),
        (1000, 870, 864),
        (880, 870, 768),  # 864 fits, but leaves less than an eighth free
        (10_000, 100, 96),
        (20, 5000, 8),
        (8, 8, 8),
    ],
)
def test_an_eighth_stays_free(capacity, limit, expected):
    assert largest_batch(Memory(capacity).step, 256, limit) == expected


def test_the_first_size_is_the_start():
    memory = Memory(10_000)
    largest_batch(memory.step, 256, 4096)
    assert memory.tried[:3] == [256, 512, 1024]


def test_each_try_is_said(capsys):
    largest_batch(Memory(100).step, 64, 1000)
    assert capsys.readouterr().err.splitlines()[:2] == ["batch of 64: fits", "batch of 128: does not fit"]


def test_where_nothing_fits_is_one_line():
    with pytest.raises(ValueError, match=r"not even 8 images fit into the memory; make views\.size smaller, set preci"):
        largest_batch(Memory(7).step, 256, 1000)


def test_a_limit_below_eight_is_one_line():
    with pytest.raises(ValueError, match="a multiple of 8, and no more than 7 images are of use"):
        largest_batch(Memory(100).step, 8, 7)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def step(size: int) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        largest_batch(step, 8, 100)


def test_what_a_failed_step_held_is_free_before_the_next():
    held: list[weakref.ref] = []

    def step(size: int) -> None:
        assert not any(one() is not None for one in held)
        activations = torch.zeros(size)
        held.append(weakref.ref(activations))
        if size > 50:
            raise torch.OutOfMemoryError(OUT)

    assert largest_batch(step, 64, 100) == 40
    assert len(held) > 2


def test_the_real_error_of_a_cpu_is_known_and_explained():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**52)
    assert is_out_of_memory(caught.value)
    line = explain_out_of_memory(caught.value, 256, torch.device("cpu"))
    assert line.startswith(
        "the memory of the cpu has no room for 16,777,216.00 GiB more with batch_size=256; set batch_size=128, or keep"
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError(OUT), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (MemoryError(), True),
        (ValueError("out of memory"), False),
    ],
)
def test_what_is_a_lack_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


def test_the_explanation_is_one_line_with_keys_to_change():
    line = explain_out_of_memory(torch.OutOfMemoryError(OUT), 4096, torch.device("cpu"))
    assert "\n" not in line
    assert "for 2.50 GiB more with batch_size=4096; set batch_size=2048, or keep it with accumulate=2" in line
    for key in ("accumulate=2", "precision=bf16-mixed", "activation_checkpointing=true", "views.size"):
        assert key in line


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            (64, torch.device("cuda")),
            "set batch_size=32 or batch_size=auto, or keep it with accumulate=2, precision=bf16-mixed, "
            "activation_checkpointing=true or a smaller views.size",
        ),
        (
            (64, torch.device("cpu"), 4, "bf16-mixed"),
            "set batch_size=32, or keep it with accumulate=8, activation_checkpointing=true or a smaller views.size",
        ),
        (
            (6, torch.device("cpu"), 2, "16-mixed", True),
            "set batch_size=3, or keep it with a smaller views.size",
        ),
        ((1, torch.device("cpu"), 1, "16-mixed", True), "train with a smaller views.size"),
    ],
)
def test_only_what_can_be_set_and_is_not_is_proposed(given, line):
    assert keys_of_less_memory(*given) == line


def test_memory_that_ends_before_training_is_one_line():
    line = r"^the memory of the machine has no room for [\d,.]+ GiB more for the weights"
    with pytest.raises(MemoryError, match=line), memory_before_training():
        torch.empty(2**52)
    line = r"the memory of the GPU has no room for 2\.50 GiB more"
    with pytest.raises(MemoryError, match=line), memory_before_training():
        raise torch.OutOfMemoryError(OUT)
    with pytest.raises(RuntimeError, match="shapes do not match"), memory_before_training():
        raise RuntimeError("shapes do not match")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
def test_on_a_gpu_the_batch_fills_seven_eighths_of_its_memory():
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    image = 2**28  # 256 MiB each, so that few tries are needed

    def step(size: int) -> None:
        parts = [torch.empty(image, dtype=torch.uint8, device="cuda") for _ in range(size)]
        assert len(parts) == size

    found = largest_batch(step, 8, 10_000)
    assert found == pytest.approx(7 / 8 * free / image, abs=16)
    assert torch.cuda.memory_allocated() < image
    with pytest.raises(torch.OutOfMemoryError) as caught:
        step(10_000)
    line = explain_out_of_memory(caught.value, 10_000, torch.device("cuda"))
    assert torch.cuda.get_device_name() in line
    assert "for 256.00 MiB more with batch_size=10000" in line
