"""Kernels run without a place to keep them, and threads share samples without loss."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core import event

from pretrain.cpu_kernel import CompilingIsSaid, kernel, share


def of_no_file(module: str) -> Callable:
    """A function that stands in no file, so that it cannot be kept on disk either."""
    names = {"__name__": module}
    exec("def double(values):\n    for i in range(len(values)):\n        values[i] *= 2", names)
    return names["double"]


def test_a_kernel_that_cannot_be_kept_on_disk_is_compiled_all_the_same():
    values = np.arange(3)
    kernel(of_no_file("pretrain.doubled"))(values)
    assert values.tolist() == [0, 2, 4]


@pytest.mark.parametrize(("module", "lines"), [("pretrain.doubled", 1), ("another.package", 0)])
def test_compiling_is_said_once_and_of_our_kernels_alone(module, lines, capsys):
    with event.install_listener("numba:compile", CompilingIsSaid()):
        capsys.readouterr()
        for number in (int, float):
            kernel(of_no_file(module))(np.arange(3, dtype=number))
    # What is registered for the process may have spoken before this test, or here.
    assert capsys.readouterr().err.count("compiling") in (lines, 2 * lines)


@settings(deadline=None, max_examples=30)
@given(samples=st.integers(0, 40), threads=st.integers(1, 5))
def test_every_sample_has_one_thread(samples, threads):
    before, done = torch.get_num_threads(), np.zeros(samples, np.int64)

    def work(part: slice) -> None:
        done[part] += 1

    torch.set_num_threads(threads)
    try:
        share(samples, work)
    finally:
        torch.set_num_threads(before)
    assert (done == 1).all()


def test_what_fails_in_a_thread_is_raised(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def fails(part: slice) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("no such view")

    with pytest.raises(ValueError, match="no such view"):
        share(4, fails)
