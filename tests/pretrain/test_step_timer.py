"""The parts of a step: what is counted, on a CPU by a clock that is set by hand and on a GPU by real work."""

import pytest
import torch

from pretrain import step_timer
from pretrain.step_timer import StepTimer


@pytest.fixture
def seconds(monkeypatch) -> list[float]:
    """The time in its only entry."""
    now = [50.0]
    monkeypatch.setattr(step_timer.time, "perf_counter", lambda: now[0])
    return now


def test_parts_are_means_over_steps_since_the_last_read(seconds):
    timer = StepTimer(torch.device("cpu"))
    for _ in range(4):
        for name, spent in (("data", 0.5), ("views", 0.25)):
            with timer.part(name):
                seconds[0] += spent
        seconds[0] += 100  # outside of all parts
    assert timer.read(4) == {"data_ms": 500.0, "views_ms": 250.0}
    with timer.part("views"):
        seconds[0] += 1
    assert timer.read(1) == {"views_ms": 1000.0}
    assert timer.read(0) == {}


def test_a_part_that_comes_twice_in_a_step_is_added_up(seconds):
    timer = StepTimer(torch.device("cpu"))
    for _ in range(2):
        with timer.part("forward_backward"):
            seconds[0] += 0.125
    assert timer.read(1) == {"forward_backward_ms": 250.0}


def test_what_was_counted_can_be_forgotten(seconds):
    timer = StepTimer(torch.device("cpu"))
    with timer.part("data"):
        seconds[0] += 7
    timer.reset()
    assert timer.read(3) == {}


def test_parts_have_their_names_in_a_profile():
    timer = StepTimer(torch.device("cpu"))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler, timer.part("optimizer"):
        torch.ones(3).sum()
    assert "optimizer" in {event.key for event in profiler.key_averages()}


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")


def keep_busy(milliseconds: float) -> None:
    """Queue work that takes about so long on any GPU of 1 to 3 GHz, without waiting."""
    torch.cuda._sleep(int(milliseconds * 2e6))


@gpu
def test_a_gpus_parts_are_what_its_stream_was_at_without_waiting(monkeypatch):
    timer = StepTimer(torch.device("cuda"))
    waits = []
    monkeypatch.setattr(torch.cuda.Event, "synchronize", lambda event: waits.append(event), raising=True)
    for _ in range(3):
        with timer.part("views"):
            keep_busy(10)
        with timer.part("forward_backward"):
            keep_busy(30)
        with timer.part("data"):
            pass  # the stream is still busy, so nothing waits for data
    assert not waits
    assert len(timer.pending) == 9
    monkeypatch.undo()
    read = timer.read(3)
    assert 3 < read["views_ms"] < 25
    assert read["forward_backward_ms"] == pytest.approx(3 * read["views_ms"], rel=0.2)
    assert read["data_ms"] < 0.5
    assert read["device_memory_mib"] == torch.cuda.max_memory_allocated() / 2**20
    assert (len(timer.pending), len(timer.spare)) == (0, 18)


@gpu
def test_events_are_added_up_as_they_pass_and_used_again(monkeypatch):
    monkeypatch.setattr(step_timer, "MOST_PENDING", 4)
    timer = StepTimer(torch.device("cuda"))
    for _ in range(50):
        with timer.part("views"):
            keep_busy(0.1)
        torch.cuda.synchronize()
    assert len(timer.pending) <= 5
    assert len(timer.spare) + 2 * len(timer.pending) <= 12
    assert timer.read(50)["views_ms"] > 0.02
