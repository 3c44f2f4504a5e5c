"""The stream of trials: batches equal to the trials they are of, whatever reads them and wherever it begins."""

import tracemalloc
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from neural_data.prepared import read_prepared
from neural_data.prepared_writer import write_prepared
from neural_data.recording import Recording
from neural_data.sensorium import read_sensorium
from neural_data.sensorium_writer import write_sensorium_video
from neural_data.tables import neuron_table, trial_table
from neural_data.trial_files import TrialFiles
from tests.neural_data.mice import video_mouse
from transfer.normalisation import fit_normalisation
from transfer.trial_stream import StepBatch, TrialStream
from transfer.windows import WindowPlan


def session(animal: str, trials: int, neurons: int, seed: int) -> Recording:
    """Trials of 40 frames, each third one of 25; what is in them says which they are."""
    rng = np.random.default_rng(seed)
    frames = np.where(np.arange(trials) % 3 == 2, 25, 40)
    responses = rng.gamma(2, 3, (trials, neurons, 40)).astype(np.float32)
    table = trial_table(np.arange(trials), np.zeros(trials), "train").assign(frames=frames)
    return Recording(
        name=animal,
        stimuli=rng.integers(0, 256, (trials, 40, 3, 4), np.uint8),
        trials=table,
        responses=responses,
        neurons=neuron_table(range(neurons), animal),
        behavior=rng.normal(5, 2, (trials, 2, 40)).astype(np.float32),
        pupil_center=rng.normal(100, 4, (trials, 2, 40)).astype(np.float32),
        sampling_rate_hz=30.0,
    )


@pytest.fixture(scope="module")
def recordings() -> dict[str, Recording]:
    return {"a": session("a", 7, 5, 0), "b": session("b", 4, 3, 1)}


def stream(recordings: dict[str, Recording], plan: WindowPlan, name: str = "sensorium2023", **options) -> TrialStream:
    rows = {animal: np.arange(len(recording.trials)) for animal, recording in recordings.items()}
    fitted = {animal: fit_normalisation(name, recording, rows[animal]) for animal, recording in recordings.items()}
    return TrialStream(recordings, rows, fitted, plan, **({"batch_size": 3, "workers": 0} | options))


def assert_equal(found: StepBatch, expected: StepBatch) -> None:
    assert list(found) == list(expected)
    for animal, batch in found.items():
        assert list(batch) == list(expected[animal])
        for part, values in batch.items():
            assert torch.equal(values, expected[animal][part]), part


@pytest.mark.parametrize("batching", ["all", "one", "mixed"])
@pytest.mark.parametrize("workers", [1, 4])
def test_batches_do_not_depend_on_workers_or_on_where_one_begins(recordings, batching: str, workers: int):
    plan = WindowPlan(8, 2)
    whole = list(islice(stream(recordings, plan, batching=batching).batches(), 13))
    threaded = stream(recordings, plan, batching=batching, workers=workers)
    for found, expected in zip(islice(threaded.batches(), 13), whole, strict=True):
        assert_equal(found, expected)
    for found, expected in zip(threaded.batches(5, stop=13), whole[5:], strict=True):
        assert_equal(found, expected)


def test_a_batch_holds_the_windows_that_its_rows_have(recordings):
    """With values as recorded, each window is found again in its trial."""
    for step in stream(recordings, WindowPlan(8, 2), "none", batching="all").batches(stop=6):
        for animal, batch in step.items():
            recording = recordings[animal]
            assert batch["video"].shape[1:] == (1, 8, 3, 4)
            assert batch["responses"].shape[1:] == (len(recording.neurons), 8)
            for place, row in enumerate(batch["index"].tolist()):
                trial, video = recording.trial(row), batch["video"][place, 0].numpy()
                starts = [s for s in range(len(trial["video"]) - 14) if (trial["video"][s : s + 15 : 2] == video).all()]
                assert len(starts) == 1
                for part in ("responses", "behavior", "pupil_center"):
                    expected = trial[part][:, starts[0] : starts[0] + 15 : 2]
                    np.testing.assert_array_equal(batch[part][place], expected)
                assert batch["valid"][place].all()


def test_shorter_trials_are_padded_and_say_so(recordings):
    padded = stream(recordings, WindowPlan(30), batching="all", batch_size=7)
    assert padded.notes[0] == (
        "a: 2 of 7 trials are shorter than a window of 30 frames, and padded with zeros that do not count"
    )
    batch = next(padded.batches())["a"]
    short = torch.tensor([row % 3 == 2 for row in batch["index"].tolist()])
    assert batch["valid"][~short].all()
    assert batch["valid"][short].sum(1).tolist() == [25, 25]
    assert not batch["responses"][short][..., 25:].any()
    assert not batch["video"][short][:, :, 25:].any()


def test_whole_trials_are_as_long_as_the_longest_of_their_batch(recordings):
    batch = next(stream(recordings, WindowPlan(sampling="whole"), batch_size=7).batches())["a"]
    assert batch["video"].shape == (7, 1, 40, 3, 4)
    assert sorted(batch["valid"].sum(1).tolist()) == [25, 25, 40, 40, 40, 40, 40]


def test_dense_windows_show_every_frame(recordings):
    dense = stream(recordings, WindowPlan(10, sampling="dense"), "none", batching="mixed", batch_size=4, shuffle=False)
    counts = {animal: np.zeros(len(recording.trials)) for animal, recording in recordings.items()}
    for step in dense.batches(stop=dense.steps_per_epoch):
        for animal, batch in step.items():
            np.add.at(counts[animal], batch["index"].numpy(), 1)
    for animal, recording in recordings.items():
        np.testing.assert_array_equal(counts[animal], np.ceil(recording.frames / 10))


def test_only_the_windows_asked_for_are_read(recordings):
    read = []

    class Watched(TrialFiles):
        def __getitem__(self, key):
            read.append(key)
            return super().__getitem__(key)

    recording = recordings["a"]
    watched = Watched(recording.responses.__getitem__, recording.responses.shape)

    next(stream({"a": replace(recording, responses=watched)}, WindowPlan(8), "none").batches())
    assert len(read) == 3
    assert all(key[2].stop - key[2].start == 8 for key in read)


@pytest.mark.parametrize("name", ["dwiseneuro", "sensorium2023", "viv1t_2", "viv1t_closed_loop"])
@pytest.mark.parametrize("plan", [WindowPlan(16, 2), WindowPlan(sampling="whole"), WindowPlan(55)])
def test_prepared_recordings_give_the_same_batches(name: str, plan: WindowPlan, tmp_path: Path):
    write_sensorium_video(video_mouse(), tmp_path / video_mouse().name, padded_frames=72)
    published = read_sensorium(tmp_path / video_mouse().name, cache=tmp_path)
    exact = read_prepared(write_prepared(published, tmp_path / "exact", "uint8", "float32"))
    small = read_prepared(write_prepared(published, tmp_path / "small"))
    rows = {"m": np.flatnonzero(~published.withheld)}
    of_layouts = []
    for recording in (published, exact, small):
        normalisation = fit_normalisation(name, recording, rows["m"])
        made = TrialStream({"m": recording}, rows, {"m": normalisation}, plan, batch_size=5, workers=2)
        of_layouts.append(list(made.batches(stop=4)))
    for whole, same, near in zip(*of_layouts, strict=True):
        assert_equal(same, whole)
        for part, values in near["m"].items():
            rounding = 2.0**-10 if part == "responses" else 1e-6
            torch.testing.assert_close(values, whole["m"][part], rtol=rounding, atol=1e-4 if part == "responses" else 0)


def endless(trials: int, neurons: int = 1000, frames: int = 300) -> Recording:
    """A recording that takes no memory until a trial is read, of which a fresh array is made."""
    rng = np.random.default_rng(0)
    traces = rng.gamma(2, 3, (neurons, frames)).astype(np.float32)
    video = rng.integers(0, 256, (frames, 36, 64), np.uint8)
    signals = rng.normal(5, 2, (2, frames)).astype(np.float32)
    return Recording(
        name="endless",
        stimuli=TrialFiles(lambda row: video.copy(), (trials, frames, 36, 64), np.uint8),
        trials=trial_table(np.arange(trials), np.zeros(trials), "train"),
        responses=TrialFiles(lambda row: traces * np.float32(1 + row % 7), (trials, neurons, frames)),
        neurons=neuron_table(range(neurons), "endless"),
        behavior=TrialFiles(lambda row: signals.copy(), (trials, 2, frames)),
        pupil_center=TrialFiles(lambda row: signals.copy(), (trials, 2, frames)),
        sampling_rate_hz=30.0,
    )


def test_memory_is_that_of_a_few_batches_however_long_the_recording():
    """711 trials of 1,000 neurons are 0.85 GB; a trial as it is read 1.9 MB, a batch of four windows 3.1 MB."""
    peaks = []
    for trials, steps in ((20, 5), (711, 40)):
        recording = endless(trials)
        tracemalloc.start()
        normalisation = fit_normalisation("sensorium2023", recording, np.arange(20))
        of_fit = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        made = TrialStream(
            {"a": recording}, {"a": np.arange(trials)}, {"a": normalisation}, WindowPlan(80), batch_size=4, workers=2
        )
        for _ in made.batches(stop=steps):
            pass
        peaks.append((of_fit, tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
    for few, many in zip(*peaks, strict=True):
        # Threads are ahead by more or fewer batches, as the machine has time; all trials would be 850 MB.
        assert many < 2 * few
    assert max(max(peak) for peak in peaks) < 80e6


def test_images_are_whole(shared: Path):
    data = shared / "reference/values/static/data"
    recording = read_sensorium(next(data.glob("static99999-*.zip")), share_stimuli=False)
    rows = np.flatnonzero(recording.trials["tier"] == "train")
    normalisation = fit_normalisation("sensorium2022", recording, rows, scale=0.25)
    made = TrialStream({"x": recording}, {"x": rows}, {"x": normalisation}, WindowPlan(16), batch_size=4, workers=2)
    batches = [step["x"] for step in made.batches(stop=made.steps_per_epoch)]
    assert sorted(torch.cat([batch["index"] for batch in batches]).tolist()) == rows.tolist()
    assert {part: tuple(values.shape[1:]) for part, values in batches[0].items()} == {
        "images": (1, 9, 16),
        "responses": (6,),
        "behavior": (3,),
        "pupil_center": (2,),
        "index": (),
    }
    expected = np.load(data / "loader_static99999.npz")
    for batch in batches:
        np.testing.assert_allclose(batch["responses"], expected["out/all_responses"][batch["index"]], atol=1e-5)


def test_images_whose_responses_have_time_are_shown_whole():
    recording = session("a", 6, 5, 0)
    shown = replace(recording, stimuli=recording.stimuli[:, 0], behavior=recording.behavior[:, :, 0])
    batch = next(stream({"a": shown}, WindowPlan(30), "none", batch_size=6).batches())["a"]
    shapes = {part: tuple(values.shape[1:]) for part, values in batch.items()}
    assert shapes == {
        "images": (1, 3, 4),
        "responses": (5, 30),
        "behavior": (2,),
        "pupil_center": (2, 30),
        "valid": (30,),
        "index": (),
    }
    np.testing.assert_array_equal(batch["images"][:, 0], shown.stimuli[batch["index"].numpy()])


def test_what_cannot_be_trained_on_is_one_line(recordings, shared: Path):
    mouse = read_sensorium(next((shared / "reference/values/video/data_fixture").glob("dynamic*")), share_stimuli=False)
    none = fit_normalisation("none", mouse, np.arange(3))
    with pytest.raises(
        ValueError, match="2 training trials have withheld responses, such as 5 of tier 'live_test_main'"
    ):
        TrialStream({"m": mouse}, {"m": np.array([0, 5, 6])}, {"m": none}, WindowPlan(16))
    with pytest.raises(ValueError, match="reach from 0 to 9, expected 0 to 8"):
        TrialStream({"m": mouse}, {"m": np.array([0, 9])}, {"m": none}, WindowPlan(16))
    with pytest.raises(ValueError, match="normalisations of animal m: found none"):
        TrialStream({"m": mouse}, {"m": np.arange(3)}, {}, WindowPlan(16))


def test_nan_stops_with_its_trial():
    recording = session("a", 4, 5, 0)
    recording.behavior[2, 1, 20] = np.nan
    made = stream({"a": recording}, WindowPlan(sampling="whole"), "none", workers=2)
    with pytest.raises(ValueError, match="a: behavior of trial 2 hold NaN or infinity"):
        list(made.batches(stop=2))
