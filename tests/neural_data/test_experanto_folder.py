"""ExperantoFolder: chunks as experanto cuts them, names of animals, folders that are none."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from neural_data.experanto_folder import ChunkPart, chunk, open_experanto


@pytest.fixture(scope="module")
def reference(shared, tmp_path_factory):
    values = shared / "reference" / "values" / "static" / "experanto"
    folder = tmp_path_factory.mktemp("experanto")
    with zipfile.ZipFile(next(values.glob("*.zip"))) as archive:
        archive.extractall(folder)
    return values, open_experanto(next(folder.iterdir()))


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(
    ("file", "items", "screen_samples"),
    [("chunks_train_blanks", (0, 125, 249), 15), ("chunks_validation_noblanks_stride5", (0, 5, 10), 10)],
)
def test_chunks_agree_with_experanto(reference, file, items, screen_samples):
    """Its `ChunkDataset` normalises what is read; the reference's statistics and settings are applied here."""
    values, folder = reference
    before, truth = listing(folder.path), np.load(values / f"{file}.npz")
    parts = {
        "screen": ChunkPart(30, screen_samples),
        "responses": ChunkPart(8, 4, 0.1),
        "eye_tracker": ChunkPart(20, 10),
        "treadmill": ChunkPart(20, 10),
    }
    for item in items:
        start = truth["out/start_times"][item]
        for name, (found, valid) in chunk(folder, start, parts).items():
            expected = truth[f"out/item{item}_{name}"]
            assert valid.all()
            if name == "screen":
                found, expected = (found - 100.0) / 55.0, expected[0]
            else:
                mean, std = (np.load(folder.path / name / "meta" / f"{stem}.npy") for stem in ("means", "stds"))
                if name == "responses":
                    mean, std = 0.0, np.maximum(std, 0.01 * std.mean())
                found = (found - mean) / std
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
        for name in ("screen", "responses"):
            since = parts[name].times_s(start) - folder.devices["responses"].start_s
            np.testing.assert_allclose(since, truth[f"out/item{item}_time_{name}"], atol=1e-5)
    assert listing(folder.path) == before


@pytest.mark.parametrize(
    ("meta", "folder", "animal"),
    [
        ({"data_key": "m7"}, "x", "m7"),
        ({"scan_key": {"animal_id": "99999", "session": 1, "scan_idx": 2}}, "x", "99999-1-2"),
        ({}, "dynamic29515-10-12-Video-9b4f6a1a067f_30hz", "29515-10-12"),
        (None, "dynamic29515-10-12-Video-9b4f6a1a067f_30hz", "29515-10-12"),
        (None, "tuesday", "tuesday"),
    ],
)
def test_animals_are_named_by_what_there_is(tmp_path, meta, folder, animal):
    device = tmp_path / folder / "responses"
    device.mkdir(parents=True)
    fields = {"modality": "sequence", "sampling_rate": 1, "start_time": 0, "end_time": 2, "n_signals": 1}
    (device / "meta.yml").write_text(yaml.safe_dump(fields))
    np.save(device / "data.npy", np.ones((3, 1)))
    if meta is not None:
        (device.parent / "meta.json").write_text(json.dumps(meta))
    assert open_experanto(device.parent).animal == animal


def test_folders_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none: no such folder$"):
        open_experanto(tmp_path / "none")
    archive = tmp_path / "dynamic1-2-3-Video.tar"
    archive.write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"tar: no such folder; unpack the archive first"):
        open_experanto(archive)
    with pytest.raises(FileNotFoundError, match="no devices, expected folders such as screen and responses"):
        open_experanto(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "expected a table with data_key"),
        ('{"scan_key": 3}', "found another"),
    ],
)
def test_each_mistake_in_the_key_is_one_line(tmp_path, text, message):
    test_animals_are_named_by_what_there_is(tmp_path, None, "a", "a")
    (tmp_path / "a" / "meta.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        open_experanto(tmp_path / "a")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "a" / "meta.json") in str(caught.value)
