"""Recordings written as the competitions' mice are laid out, file by file."""

import dataclasses
import json
import zipfile

import numpy as np
import pytest

from neural_data.sensorium import read_sensorium
from neural_data.sensorium_writer import sensorium_folder_name, write_sensorium_static, write_sensorium_video
from tests.neural_data.mice import COLOUR, NEURONS, STATIC, VIDEO, static_mouse, video_mouse


def layout(folder):
    """Every array by its path, without the numbers of trials: shapes and kinds."""
    found = {}
    for file in folder.rglob("*.npy"):
        values = np.load(file)
        name = str(file.relative_to(folder)).replace(file.name, "<i>.npy") if "data" in file.parts else file
        name = name if isinstance(name, str) else str(file.relative_to(folder))
        found.setdefault(name, set()).add(
            (values.ndim, values.dtype.kind, values.dtype.itemsize * (values.dtype.kind != "U"))
        )
    return found


def test_the_same_files_as_the_reference_of_2023(shared, tmp_path):
    reference = next((shared / "reference" / "values" / "video" / "data_fixture").glob("dynamic*"))
    written = layout(write_sensorium_video(video_mouse(), tmp_path / VIDEO))
    for name, kinds in layout(reference).items():
        assert written[name] == kinds, name
    # What real folders have beyond the reference, and what our animals know of their neurons.
    more = {"area", "layer", "animal_ids", "sessions", "scan_idx"}
    assert set(written) - set(layout(reference)) == {f"meta/neurons/{name}.npy" for name in more} | {
        "meta/trials/target_fps.npy"
    }


@pytest.mark.parametrize(("channels", "stem"), [(1, "static99999-1-2-Gray"), (2, "static99997-1-2-Color")])
def test_the_same_files_as_the_references_of_2022(shared, tmp_path, channels, stem):
    archive = next((shared / "reference" / "values" / "static" / "data").glob(f"{stem}*.zip"))
    with zipfile.ZipFile(archive) as handle:
        handle.extractall(tmp_path)
    mouse = static_mouse(channels)
    mouse.trials["trial_id"] = [str(i) for i in range(len(mouse.trials))]
    written = layout(write_sensorium_static(mouse, tmp_path / mouse.name))
    for name, kinds in layout(tmp_path / archive.stem).items():
        assert written[name] == kinds, name
    assert {
        name for name in set(written) - set(layout(tmp_path / archive.stem)) if "stimulus_frame" not in name
    } == set()


def test_the_layout_in_numbers(tmp_path):
    mouse = video_mouse()
    folder = write_sensorium_video(mouse, tmp_path / VIDEO)
    row = int(np.flatnonzero(mouse.frames == 48)[0])
    video = np.load(folder / f"data/videos/{row}.npy")
    assert video.shape == (12, 16, 324)
    assert video.flags.c_contiguous
    assert np.isnan(video[..., 48:]).all()
    np.testing.assert_array_equal(video[..., :48], np.moveaxis(mouse.trial(row)["video"], 0, -1))
    withheld = int(np.flatnonzero(mouse.withheld)[0])
    responses = np.load(folder / f"data/responses/{withheld}.npy")
    assert (responses[:, : mouse.frames[withheld]] == 0).all()
    assert np.isnan(responses[:, mouse.frames[withheld] :]).all()
    train = np.stack([mouse.responses[i] for i in np.flatnonzero(mouse.trials["tier"] == "train")]).astype(float)
    std = np.load(folder / "meta/statistics/responses/all/std.npy")
    assert std.shape == (NEURONS, 324)
    np.testing.assert_allclose(std[:, :60], np.nanstd(train, axis=0), rtol=1e-9)
    assert np.load(folder / "meta/trials/tiers.npy").dtype.kind == "U"
    assert np.load(folder / "meta/neurons/unit_ids.npy").tolist() == [4, 1, 3, 17, 6, 9, 8]
    assert json.loads((folder / "config.json").read_text()) == {"links": {}}


def test_colour_images(tmp_path):
    mouse = static_mouse(2)
    folder = write_sensorium_static(mouse, tmp_path / COLOUR)
    image = np.load(folder / "data/images/0.npy")
    assert image.shape == (2, 24, 32)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, np.moveaxis(mouse.trial(0)["images"], -1, 0))
    assert (folder / "meta/trials/colorframeprojector_image_id.npy").is_file()


def test_a_mouse_without_behavior_is_as_s0(tmp_path):
    mouse = dataclasses.replace(static_mouse(), behavior=None, pupil_center=None, behavior_names=())
    folder = write_sensorium_static(mouse, tmp_path / STATIC)
    assert np.load(folder / "data/behavior/3.npy").tolist() == [0, 0, 0]
    recording = read_sensorium(folder)
    assert recording.behavior is None
    assert recording.pupil_center is None


def test_names_and_places_that_the_layout_cannot_hold_as_numbers(tmp_path):
    mouse = video_mouse()
    neurons = mouse.neurons.assign(animal="animal1", area="", layer="", x_um=np.nan)
    neurons["neuron_id"] = [f"n-{i}" for i in range(NEURONS)]
    mouse = dataclasses.replace(mouse, neurons=neurons)
    assert sensorium_folder_name(mouse) == f"dynamicanimal1-Video-{'0' * 32}"
    folder = write_sensorium_video(mouse, tmp_path / sensorium_folder_name(mouse), padded_frames=10)
    assert sorted(file.name for file in (folder / "meta/neurons").iterdir()) == ["unit_ids.npy"]
    assert np.load(folder / "data/responses/0.npy").shape == (NEURONS, 60)
    recording = read_sensorium(folder, tmp_path / "cache")
    assert recording.animals == ["animal1"]
    assert recording.neurons["neuron_id"].tolist() == [f"n-{i}" for i in range(NEURONS)]


def test_names_of_folders():
    assert sensorium_folder_name(static_mouse()) == f"static21067-10-18-GrayImageNet-{'0' * 32}"
    assert sensorium_folder_name(static_mouse(2)) == f"static25311-10-26-ColorImageNet-{'0' * 32}"
    assert sensorium_folder_name(video_mouse()) == f"dynamic29515-10-12-Video-{'0' * 32}"


def test_without_training_trials_statistics_are_of_all(tmp_path):
    mouse = static_mouse()
    mouse.trials["tier"] = mouse.trials["tier"].replace("train", "validation")
    folder = write_sensorium_static(mouse, tmp_path / STATIC)
    found = np.load(folder / "meta/statistics/responses/all/mean.npy")
    np.testing.assert_allclose(found, mouse.responses[~mouse.withheld].mean(axis=0), rtol=1e-6)


def test_a_zip_holds_the_folder(tmp_path):
    path = write_sensorium_static(static_mouse(), tmp_path / STATIC, as_zip=True)
    assert path == tmp_path / f"{STATIC}.zip"
    with zipfile.ZipFile(path) as handle:
        assert all(name.startswith(f"{STATIC}/") for name in handle.namelist())
    assert list(tmp_path.iterdir()) == [path]


def gap(mouse):
    mouse.responses[np.flatnonzero(~mouse.withheld)[0], 2, 5] = np.nan


def no_tier(mouse):
    mouse.trials.loc[3, "tier"] = ""


def no_frames(mouse):
    mouse.trials.loc[3, "frames"] = 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (gap, r"responses of trial \d+ hold NaN, which the layout keeps for padding"),
        (no_tier, "has trials without tier, expected one such as train"),
        (no_frames, "has trials without frames, expected one or more"),
    ],
)
def test_what_the_layout_cannot_hold(tmp_path, damage, message):
    mouse = video_mouse()
    damage(mouse)
    with pytest.raises(ValueError, match=message):
        write_sensorium_video(mouse, tmp_path / VIDEO)
    assert not list(tmp_path.iterdir())


def test_behavior_must_be_resolved_in_time(tmp_path):
    mouse = video_mouse()
    mouse = dataclasses.replace(mouse, behavior=mouse.behavior[:, :, 0])
    with pytest.raises(
        ValueError, match=r"behavior of trial 0: found shape \(2,\), expected 60 frames as its last axis"
    ):
        write_sensorium_video(mouse, tmp_path / VIDEO)


def test_other_kinds_of_recordings(tmp_path):
    with pytest.raises(ValueError, match="expected images and one value each"):
        write_sensorium_static(video_mouse(), tmp_path / "x")
    with pytest.raises(ValueError, match="expected grey videos, and responses in time"):
        write_sensorium_video(static_mouse(), tmp_path / "x")
    mouse = static_mouse()
    mouse.neurons.loc[0, "animal"] = "another"
    with pytest.raises(ValueError, match="holds 2 animals"):
        write_sensorium_static(
            dataclasses.replace(mouse, behavior=None, pupil_center=None, behavior_names=()), tmp_path
        )
    (tmp_path / STATIC).mkdir()
    (tmp_path / STATIC / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="exists already; name a new or an empty folder"):
        write_sensorium_static(static_mouse(), tmp_path / STATIC)
    (tmp_path / STATIC / "mine.txt").unlink()
    assert write_sensorium_static(static_mouse(), tmp_path / STATIC) == tmp_path / STATIC
