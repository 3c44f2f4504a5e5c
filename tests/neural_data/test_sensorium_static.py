"""Static mice: what the official loader returns for the reference folders, and every quirk of the real ones."""

import pickle
import zipfile

import numpy as np
import pytest

from neural_data.sensorium import read_sensorium
from neural_data.sensorium_writer import write_sensorium_static
from neural_data.trial_files import TrialFiles
from tests.neural_data.mice import COLOUR, NEURONS, STATIC, change, copied, static_mouse, stored_zip

REFERENCE = [
    ("static99999", "static99999-1-2-GrayImageNet-00000000000000000000000000000000.zip"),
    ("static99998", "static99998-1-2-GrayImageNet-00000000000000000000000000000000.zip"),
    ("static99997", "static99997-1-2-ColorImageNet-00000000000000000000000000000000.zip"),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_sensorium_static(static_mouse(), tmp_path_factory.mktemp("static") / STATIC)


@pytest.fixture
def mouse(written, tmp_path):
    return copied(written, tmp_path)


def quarter(images: np.ndarray) -> np.ndarray:
    """What the official loader's `scale=0.25` amounts to: the mean of the central pixels of each 4 x 4 block."""
    n, channels, height, width = images.shape
    blocks = images.reshape(n, channels, height // 4, 4, width // 4, 4)
    return blocks[:, :, :, 1:3, :, 1:3].mean(axis=(3, 5))


def official(recording) -> dict[str, np.ndarray]:
    """The official loader's tensors, from a recording and its statistics (fact sheet, section 1.4)."""
    statistics = recording.statistics
    images = np.stack([recording.trial(i)["images"] for i in range(len(recording.trials))]).astype(float)
    images = images[:, None] if images.ndim == 3 else np.moveaxis(images, -1, 1)
    images = (images - statistics["images/all/mean"]) / statistics["images/all/std"]
    std = statistics["responses/all/std"]
    least = 0.01 * std.mean()
    responses = np.asarray(recording.responses[:], float) / np.where(std > least, std, least)
    behavior = recording.behavior[:] / statistics["behavior/all/std"]
    pupil = (recording.pupil_center[:] - statistics["pupil_center/all/mean"]) / statistics["pupil_center/all/std"]
    planes = np.broadcast_to(behavior[:, :, None, None], (*behavior.shape, *images.shape[2:]))
    return {
        "noscale_images": images,
        "all_images": quarter(np.concatenate([images, planes], axis=1)),
        "all_responses": responses,
        "all_behavior": behavior,
        "all_pupil_center": pupil,
    }


@pytest.mark.parametrize(("case", "archive"), REFERENCE)
def test_the_official_loaders_tensors(shared, case, archive):
    folder = shared / "reference" / "values" / "static" / "data"
    recording = read_sensorium(folder / archive, share_stimuli=False)
    tensors = folder / f"loader_{case}.npz"
    if not tensors.is_file():
        pytest.skip(f"{tensors.name} is not among the reference values")
    expected = np.load(tensors)
    found = official(recording)
    for name, values in found.items():
        wanted = expected[f"out/{name}"]
        if name == "all_responses":
            assert np.isnan(values[recording.withheld]).all()
            assert (wanted[recording.withheld] == 0).all()
            values = np.where(recording.withheld[:, None], 0, values)
        # The official loader is in float32: of a pupil at 150 pixels that leaves 1e-5 standard deviations.
        np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-5, err_msg=name)
    for tier in ("train", "validation", "test", "final_test"):
        rows = np.flatnonzero(recording.trials["tier"] == tier)
        np.testing.assert_array_equal(rows, np.sort(expected[f"out/idx_{tier}"]))
    assert recording.animals == [case.removeprefix("static") + "-1-2"]
    assert list(recording.neurons["area"].unique()) == ["V1"]


def test_channels_of_the_colour_reference(shared):
    """UV and green come last in a recording; of this folder there are no official tensors."""
    archive = shared / "reference" / "values" / "static" / "data" / REFERENCE[2][1]
    recording = read_sensorium(archive, share_stimuli=False)
    with zipfile.ZipFile(archive) as handle, handle.open(f"{archive.stem}/data/images/7.npy") as file:
        image = np.lib.format.read_array(file, allow_pickle=False)
    np.testing.assert_array_equal(recording.trial(7)["images"], image.transpose(1, 2, 0))
    assert "18 colour stimuli of 36 x 64 pixels" in recording.summary()


def test_images_that_differ_though_their_id_is_the_same(shared):
    """So it is in the reference folders, whose images are noise."""
    archive = shared / "reference" / "values" / "static" / "data" / REFERENCE[0][1]
    with pytest.raises(
        ValueError, match=r"data/images/11\.npy: found another image than in data/images/2\.npy, though"
    ):
        read_sensorium(archive)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("form", ["folder", "deflated", "stored"])
def test_what_was_written_is_read(tmp_path, channels, form):
    original = static_mouse(channels)
    path = write_sensorium_static(original, tmp_path / original.name, as_zip=form == "deflated")
    recording = read_sensorium(stored_zip(path) if form == "stored" else path)
    assert recording.name == original.name
    assert recording.animals == original.animals
    assert recording.stimuli.shape == original.stimuli.shape
    for row in range(len(original.trials)):
        wanted, found = original.trial(row), recording.trial(row)
        assert wanted.keys() == found.keys()
        for name, values in wanted.items():
            np.testing.assert_array_equal(found[name], np.asarray(values, np.float32), err_msg=name)
    columns = ["repeat", "tier", "withheld", "trial_id", "image_id", "stimulus_class"]
    assert recording.trials[columns].equals(original.trials[columns])
    assert recording.neurons[original.neurons.columns].equals(original.neurons)
    assert recording.behavior_names == original.behavior_names
    for tier in ("train", "test"):
        wanted, found = (
            original.repeats(original.animals[0], tier=tier),
            recording.repeats(original.animals[0], tier=tier),
        )
        # Stimuli are numbered as they come, so that they are in another order.
        by_image = np.argsort(
            [recording.trials["image_id"][recording.trials["stimulus"] == s].iat[0] for s in found.stimuli]
        )
        np.testing.assert_array_equal(found.responses[:, by_image], wanted.responses)


def test_nothing_is_read_before_it_is_asked_for(mouse):
    recording = read_sensorium(mouse)
    for part in (recording.stimuli, recording.responses, recording.behavior, recording.pupil_center):
        assert isinstance(part, TrialFiles)
    again = pickle.loads(pickle.dumps(recording))
    np.testing.assert_array_equal(again.responses[5], recording.responses[5])
    assert "responses withheld in 6 trials" in recording.summary()


def test_the_data_folder_is_left_alone(mouse):
    before = {path: path.stat().st_mtime_ns for path in mouse.rglob("*")}
    for path in (mouse, *mouse.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)
    recording = read_sensorium(mouse)
    recording.trial(0)
    for path in mouse.rglob("*"):
        path.chmod(path.stat().st_mode | 0o200)
    mouse.chmod(0o755)
    assert {path: path.stat().st_mtime_ns for path in mouse.rglob("*")} == before


def test_behavior_that_is_zero_is_absent(mouse):
    """As in S0 of 2022, whose behavior is withheld."""
    for part in ("behavior", "pupil_center"):
        for file in (mouse / "data" / part).iterdir():
            change(file, np.zeros_like)
    recording = read_sensorium(mouse)
    assert recording.behavior is None
    assert recording.pupil_center is None
    assert recording.behavior_names == ()
    assert "behavior holds nothing but zeros in all trials: taken as absent" in recording.notes
    # One trial that is not zero makes it present, wherever it is.
    change(mouse / "data" / "behavior" / "13.npy", lambda values: values + 1)
    assert read_sensorium(mouse).behavior is not None


def test_rows_with_an_axis_of_their_own(mouse):
    plain = read_sensorium(mouse)
    for part in ("behavior", "pupil_center"):
        for file in (mouse / "data" / part).iterdir():
            change(file, lambda values: values[None])
    found = read_sensorium(mouse)
    np.testing.assert_array_equal(found.behavior[:], plain.behavior[:])
    np.testing.assert_array_equal(found.pupil_center[:], plain.pupil_center[:])


@pytest.mark.parametrize("prefix", ["", "colorframeprojector_"])
def test_image_ids_under_each_of_their_names(mouse, prefix):
    plain = read_sensorium(mouse)
    for what in ("id", "class"):
        file = mouse / "meta" / "trials" / f"frame_image_{what}.npy"
        file.rename(file.with_name(f"{prefix}image_{what}.npy"))
    assert read_sensorium(mouse).trials.equals(plain.trials)


def test_an_image_is_its_class_and_id(mouse):
    """Ids are counted in each class."""
    file = mouse / "meta" / "trials" / "frame_image_class.npy"
    tiers = np.load(mouse / "meta" / "trials" / "tiers.npy")
    np.save(file, np.where(tiers == "test", "gray", "imagenet"))
    change(file.with_name("frame_image_id.npy"), lambda ids: np.where(tiers == "test", ids - 3 * 10, ids))
    recording = read_sensorium(mouse)
    assert len(recording.stimuli) == 15
    assert set(recording.trials["stimulus_class"]) == {"gray", "imagenet"}


def test_without_optional_files(mouse):
    plain = read_sensorium(mouse)
    for path in ("meta/statistics", "meta/neurons", "data/behavior"):
        for file in sorted((mouse / path).rglob("*.npy")):
            file.unlink()
    for name in ("trial_idx", "frame_image_id", "frame_image_class"):
        (mouse / "meta" / "trials" / f"{name}.npy").unlink()
    (mouse / "config.json").unlink()
    recording = read_sensorium(mouse)
    assert len(recording.statistics) == 0
    assert list(recording.neurons["neuron_id"]) == [str(i) for i in range(NEURONS)]
    assert recording.animals == plain.animals
    assert recording.neurons["x_um"].isna().all()
    assert "trial_id" not in recording.trials
    assert len(recording.stimuli) == len(recording.trials)
    notes = " ".join(recording.notes)
    for said in ("no behavior", "unit_ids", "which trials repeat an image"):
        assert said in notes
    np.testing.assert_array_equal(recording.responses[:], plain.responses[:])


def test_names_of_animals(mouse):
    assert read_sensorium(mouse).animals == ["21067-10-18"]
    for folder, animal in (
        ("static22564-2-12-preproc0", "22564-2-12-0"),
        ("some mouse", "21067-10-18"),
        ("static7-8-9-Fluorescence-7b721b", "7-8-9"),
        (COLOUR, "25311-10-26"),
    ):
        mouse = mouse.rename(mouse.with_name(folder))
        assert read_sensorium(mouse).animals == [animal]
    for name in ("animal_ids", "sessions", "scan_idx"):
        (mouse / "meta" / "neurons" / f"{name}.npy").unlink()
    mouse = mouse.rename(mouse.with_name("some mouse"))
    assert read_sensorium(mouse).animals == ["some mouse"]


def test_further_columns_are_kept(mouse):
    n = len(read_sensorium(mouse).trials)
    np.save(mouse / "meta" / "trials" / "frame_trial_ts.npy", np.array([b"2020-01-01 10:00"] * n))
    np.save(mouse / "meta" / "trials" / "repeat.npy", np.arange(n))
    np.save(mouse / "meta" / "trials" / "odd.npy", np.arange(n + 1))
    np.save(mouse / "meta" / "trials" / "objects.npy", np.array([None] * n), allow_pickle=True)
    np.save(mouse / "meta" / "neurons" / "snr.npy", np.linspace(0, 1, NEURONS))
    recording = read_sensorium(mouse)
    assert recording.trials["frame_trial_ts"].iat[0] == "2020-01-01 10:00"
    assert list(recording.trials["source_repeat"]) == list(range(n))
    assert recording.neurons["snr"].iat[-1] == 1
    notes = " ".join(recording.notes)
    assert f"passed over meta/trials/odd.npy: found shape ({n + 1},), expected {n} entries, one per trial" in notes
    assert "passed over meta/trials/objects.npy: found Python objects" in notes


def test_tiers_as_bytes(mouse):
    plain = read_sensorium(mouse)
    change(mouse / "meta" / "trials" / "tiers.npy", lambda tiers: tiers.astype("S"))
    assert read_sensorium(mouse).trials.equals(plain.trials)


def test_absent_responses_are_withheld(mouse):
    plain = read_sensorium(mouse)
    for row in np.flatnonzero(plain.withheld):
        (mouse / "data" / "responses" / f"{row}.npy").unlink()
    recording = read_sensorium(mouse)
    assert recording.trials.equals(plain.trials)
    assert "tier final_test: no response files for its 6 trials, withheld" in recording.notes
    for file in (mouse / "data" / "responses").iterdir():
        file.unlink()
    nothing = read_sensorium(mouse)
    assert nothing.withheld.all()
    assert nothing.responses.shape == plain.responses.shape
    assert np.isnan(nothing.responses[0]).all()


BROKEN = {
    "no tiers": (lambda m: (m / "meta/trials/tiers.npy").unlink(), r"meta/trials/tiers.npy: found no such file"),
    "tiers are numbers": (
        lambda m: change(m / "meta/trials/tiers.npy", lambda t: np.arange(len(t))),
        r"tiers.npy: found int64 of shape \(28,\), expected text \(trials,\)",
    ),
    "tiers are objects": (
        lambda m: np.save(m / "meta/trials/tiers.npy", np.array(["train"] * 28, object), allow_pickle=True),
        "tiers.npy: found Python objects, expected numbers or text",
    ),
    "fewer tiers": (
        lambda m: change(m / "meta/trials/tiers.npy", lambda t: t[:-1]),
        r"data/images/27.npy: found 28 files in data/images/, expected 27 files, one per trial of meta/trials/tiers",
    ),
    "an image less": (
        lambda m: (m / "data/images/3.npy").unlink(),
        r"data/images/3.npy: found no such file \(27 are there\), expected 28 files",
    ),
    "behavior of some trials": (
        lambda m: (m / "data/behavior/27.npy").unlink(),
        r"data/behavior/27.npy: found no such file \(27 are there\)",
    ),
    "responses of some of a tier": (
        lambda m: (m / f"data/responses/{first_of(m, 'train')}.npy").unlink(),
        r"found no such file \(9 of 10 trials of tier train have one\), expected responses to all trials of a tier",
    ),
    "an image that lies": (
        lambda m: change(m / "data/images/5.npy", lambda image: image.transpose(0, 2, 1)),
        r"data/images/5.npy: found shape \(1, 32, 24\), expected \(channels, height, width\) .* as in the first trial",
    ),
    "images without channels": (
        lambda m: [change(file, lambda image: image[0]) for file in (m / "data/images").iterdir()],
        r"data/images/0.npy: found shape \(24, 32\), expected \(channels, height, width\) with 1, 2 or 3 channels",
    ),
    "an image that is cut off": (
        lambda m: (m / "data/images/5.npy").write_bytes((m / "data/images/5.npy").read_bytes()[:-9]),
        r"data/images/5.npy: found \d+ bytes, expected \d+ \(it was cut off\)",
    ),
    "responses of fewer neurons": (
        lambda m: change(m / "data/responses/9.npy", lambda r: r[:-1]),
        r"data/responses/9.npy: found shape \(6,\), expected \(values,\) or \(1, values\) = \(7,\), as in the first",
    ),
    "responses as text": (
        lambda m: change(m / "data/responses/9.npy", lambda r: r.astype(str)),
        r"data/responses/9.npy: found <U32 of shape \(7,\), expected numbers",
    ),
    "responses are NaN": (
        lambda m: [change(file, lambda r: r * np.nan) for file in (m / "data/responses").iterdir()],
        r"data/responses/0.npy: found NaN throughout, expected numbers; responses that are withheld are zeros",
    ),
    "more ids than neurons": (
        lambda m: change(m / "meta/neurons/unit_ids.npy", lambda ids: np.append(ids, 99)),
        r"meta/neurons/unit_ids.npy: found shape \(8,\), expected 7 entries, one per neuron",
    ),
    "ids twice": (
        lambda m: change(m / "meta/neurons/unit_ids.npy", lambda ids: np.where(ids == 9, 17, ids)),
        r"meta/neurons/unit_ids.npy: found 17 twice, expected unique ids",
    ),
    "places without depth": (
        lambda m: change(m / "meta/neurons/cell_motor_coordinates.npy", lambda place: place[:, :2]),
        r"cell_motor_coordinates.npy: found int64 of shape \(7, 2\), expected µm \(neurons, 3\) = \(7, 3\)",
    ),
    "fewer image ids": (
        lambda m: change(m / "meta/trials/frame_image_id.npy", lambda ids: ids[1:]),
        r"meta/trials/frame_image_id.npy: found shape \(27,\), expected 28 entries, one per trial",
    ),
    "three pupils": (
        lambda m: [change(file, lambda p: np.append(p, 1)) for file in (m / "data/pupil_center").iterdir()],
        r"data/pupil_center/0.npy: found shape \(3,\), expected \(2,\) or \(1, 2\)",
    ),
}


def first_of(mouse, tier):
    return int(np.flatnonzero(np.load(mouse / "meta/trials/tiers.npy") == tier)[0])


@pytest.mark.parametrize("how", BROKEN)
def test_one_line_for_what_is_broken(mouse, how):
    damage, message = BROKEN[how]
    damage(mouse)
    with pytest.raises(ValueError, match=message) as error:
        read_sensorium(mouse)
    assert str(error.value).startswith(f"{mouse}: ")
    assert "\n" not in str(error.value)


def test_the_same_lines_for_a_zip(mouse):
    (mouse / "data/images/3.npy").unlink()
    archive = stored_zip(mouse)
    with pytest.raises(ValueError, match=r"stored\.zip: data/images/3\.npy: found no such file"):
        read_sensorium(archive)
    with zipfile.ZipFile(archive, "a") as handle:
        handle.writestr("../outside.npy", b"x")
    with pytest.raises(ValueError, match="a path that leads out of the archive"):
        read_sensorium(archive)
