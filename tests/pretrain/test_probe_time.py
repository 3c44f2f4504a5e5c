"""The share of probes in the time of a run: exact figures of a clock that is set by hand."""

import pytest

from pretrain.probe_time import ProbeTime


class Clock:
    """Seconds that pass when they are told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def run(times: ProbeTime, clock: Clock, training: float, probing: float, part: str = "knn") -> None:
    """Train and probe for so many seconds, half of the probe in one part."""
    clock.now += training
    with times.measuring():
        clock.now += probing / 2
        with times.part(part):
            clock.now += probing / 2


def test_seconds_are_counted_within_and_outside_of_probes():
    clock = Clock()
    times = ProbeTime(clock=clock)
    run(times, clock, 95, 3)
    run(times, clock, 100, 2, "linear")
    assert (times.training, times.probing) == (195, 5)
    assert times.parts == {"knn": 1.5, "linear": 1.0}
    assert times.share == pytest.approx(0.025)


def test_a_costly_probe_is_told_once_with_figures_and_keys(capsys):
    clock = Clock()
    times = ProbeTime(clock=clock)
    run(times, clock, 95, 5)
    assert capsys.readouterr().err == ""  # five per cent, and not more
    for _ in range(3):
        run(times, clock, 90, 20, "linear")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(
        "probes took 25.0 s of the 210.0 s so far (11.9%, more than 5%), 10.0 s of them for linear; raise probe.every_"
    )
    assert "probe.every_steps, lower probe.bank_images and probe.test_images, or shorten probe.measures" in said


def test_nothing_is_told_within_the_first_minute(capsys):
    clock = Clock()
    times = ProbeTime(clock=clock)
    run(times, clock, 20, 39)
    assert capsys.readouterr().err == ""
    run(times, clock, 0, 1)
    assert capsys.readouterr().err.startswith("probes took 40.0 s of the 60.0 s so far")


def test_a_run_shorter_than_a_minute_is_told_at_its_end(capsys):
    clock = Clock()
    times = ProbeTime(clock=clock)
    run(times, clock, 20, 10)
    clock.now += 5
    assert capsys.readouterr().err == ""
    times.tell_at_end()
    times.tell_at_end()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("probes took 10.0 s of the 35.0 s so far (28.6%")


def test_cheap_probes_are_not_told_at_the_end(capsys):
    clock = Clock()
    times = ProbeTime(clock=clock)
    run(times, clock, 19, 1.1)
    clock.now += 3
    times.tell_at_end()
    assert capsys.readouterr().err == ""


def test_a_resumed_run_goes_on_counting_without_the_time_in_between(capsys):
    clock = Clock()
    times = ProbeTime(clock=clock)
    run(times, clock, 40, 40)
    assert "probes took" in capsys.readouterr().err
    clock.now += 1000
    resumed = ProbeTime(clock=clock)
    resumed.restore(times.state())
    run(resumed, clock, 10, 10)
    assert (resumed.training, resumed.probing, resumed.parts) == (50, 50, {"knn": 25})
    assert capsys.readouterr().err == ""


def test_the_state_does_not_change_with_what_it_was_taken_from():
    clock = Clock()
    times = ProbeTime(clock=clock)
    run(times, clock, 100, 1)
    state = times.state()
    run(times, clock, 100, 1)
    assert state == {"probing": 1, "training": 100, "parts": {"knn": 0.5}, "told": False}
