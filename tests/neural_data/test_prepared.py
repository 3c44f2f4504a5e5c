"""Prepared recordings: the same as what they were made of, whole or gone on with, and told where they are not."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neural_data import prepared_writer
from neural_data.formats import read_recordings
from neural_data.prepared import check_prepared, read_prepared
from neural_data.prepared_writer import prepared_bytes, prepared_rows, write_prepared
from neural_data.recording import Recording
from neural_data.sensorium import read_sensorium
from neural_data.sensorium_writer import write_sensorium_static, write_sensorium_video
from tests.neural_data.mice import clips, static_mouse, video_mouse

EXACT = {"stimuli": "float32", "responses": "float32"}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    folder = tmp_path_factory.mktemp("published") / video_mouse().name
    write_sensorium_video(video_mouse(), folder, padded_frames=72)
    return read_sensorium(folder, cache=folder.parent / "cache")


def assert_same(found: Recording, expected: Recording, rtol: float = 0.0) -> None:
    pd.testing.assert_frame_equal(found.trials, expected.trials)
    pd.testing.assert_frame_equal(found.neurons, expected.neurons)
    for key in ("name", "source", "sampling_rate_hz", "response_start_ms", "behavior_names"):
        assert str(getattr(found, key)) == str(getattr(expected, key))
    assert found.notes[: len(expected.notes)] == expected.notes
    assert set(found.statistics) == set(expected.statistics)
    for name in expected.statistics:
        np.testing.assert_array_equal(found.statistics[name], expected.statistics[name])
    for row in range(len(expected.trials)):
        trial = expected.trial(row)
        assert list(found.trial(row)) == list(trial)
        for part, values in found.trial(row).items():
            np.testing.assert_allclose(values, trial[part], rtol=rtol, atol=3e-8 if rtol else 0)


@pytest.mark.parametrize("options", [EXACT, {}])
def test_videos_are_the_same_as_published(options: dict, published: Recording, tmp_path: Path):
    write_prepared(published, tmp_path / "mouse", **options)
    found = read_prepared(tmp_path / "mouse")
    assert_same(found, published, 0.0 if options else 2.0**-11)
    for row in range(len(found.trials)):
        part, whole = found.trial(row, 5, 12), published.trial(row, 5, 12)
        np.testing.assert_array_equal(part["video"], whole["video"])
        np.testing.assert_allclose(part["responses"], whole["responses"], rtol=2.0**-11, atol=3e-8)
    np.testing.assert_allclose(found.responses[[3, 1]], published.responses[[3, 1]], rtol=2.0**-11, atol=3e-8)
    assert found.summary().split("note:")[0] == published.summary().split("note:")[0]
    assert pickle.loads(pickle.dumps(found)).trial(0)["responses"].shape == found.trial(0)["responses"].shape


@pytest.mark.parametrize("channels", [1, 2])
def test_images_are_the_same_as_published(channels: int, tmp_path: Path):
    write_sensorium_static(static_mouse(channels), tmp_path / static_mouse(channels).name)
    published = read_sensorium(tmp_path / static_mouse(channels).name)
    write_prepared(published, tmp_path / "out" / "mouse", **EXACT)
    assert_same(read_prepared(tmp_path / "out" / "mouse"), published)
    assert not read_prepared(tmp_path / "out" / "mouse").video


def test_whole_grey_levels_take_a_byte_each(published: Recording, tmp_path: Path):
    write_prepared(published, tmp_path / "mouse")
    assert (tmp_path / "mouse" / "stimuli.bin").stat().st_size == sum([60] * 11 + [48, 57]) * 12 * 16
    big = sum(file.stat().st_size for file in (tmp_path / "mouse").glob("*.bin"))
    signals = 4 * 4 * 60 * len(published.trials)
    assert big + signals == prepared_bytes(published)


def test_rounding_is_told(tmp_path: Path):
    mouse = replace(video_mouse(), stimuli=clips(13) * np.float32(0.99))
    notes = read_prepared(write_prepared(mouse, tmp_path / "mouse")).notes
    assert notes == (
        "prepared: grey levels are rounded to whole ones, by 0.5 at most",
        "prepared: responses are rounded to float16, by 0.05 % at most",
    )
    assert read_prepared(write_prepared(mouse, tmp_path / "exact", **EXACT)).notes == ()


def test_an_interrupted_one_goes_on(published: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prepared_writer, "NOTED_BYTES", 1)
    write_prepared(published, tmp_path / "whole")
    for stop in (4, 20):
        done = []

        def interrupt(rows: int, done: list = done, stop: int = stop) -> None:
            done.append(rows)
            if len(done) > stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_prepared(published, tmp_path / "mouse", advance=interrupt)
        assert not (tmp_path / "mouse").exists()
    rows = []
    write_prepared(published, tmp_path / "mouse", advance=rows.append)
    assert rows[0] == len(published.stimuli)
    assert sum(rows) == 2 * prepared_rows(published)
    for file in ("stimuli.bin", "responses.bin", "prepared.json"):
        assert (tmp_path / "mouse" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mouse", "whole"]


@pytest.mark.parametrize("kept_bytes", [0, 1000, None])
def test_what_a_crash_has_lost_is_written_again(
    kept_bytes: int | None, published: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A file can be shorter than was noted, or longer where the note came too late."""
    monkeypatch.setattr(prepared_writer, "NOTED_BYTES", 2**28 if kept_bytes is None else 1)
    done = []

    def interrupt(rows: int) -> None:
        done.append(rows)
        if len(done) > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_prepared(published, tmp_path / "mouse", advance=interrupt)
    if kept_bytes is not None:
        with open(tmp_path / ".mouse.unfinished" / "stimuli.bin", "r+b") as stream:
            stream.truncate(kept_bytes)
    assert_same(read_prepared(write_prepared(published, tmp_path / "mouse")), published, 2.0**-11)


def test_another_recording_does_not_go_on(published: Recording, tmp_path: Path):
    def stop(rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_prepared(published, tmp_path / "mouse", advance=stop)
    other = replace(published, trials=published.trials.assign(tier="train"))
    assert_same(read_prepared(write_prepared(other, tmp_path / "mouse", **EXACT)), other)


def test_damage_is_found(published: Recording, tmp_path: Path):
    folder = write_prepared(published, tmp_path / "mouse")
    check_prepared(folder)
    with open(folder / "responses.bin", "r+b") as stream:
        stream.seek(900)
        stream.write(b"damage")
    with pytest.raises(ValueError, match=r"responses.bin: row \d+ is damaged"):
        check_prepared(folder)
    with open(folder / "responses.bin", "ab") as stream:
        stream.truncate(1000)
    with pytest.raises(ValueError, match="found 1000 bytes"):
        read_prepared(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda index: index.pop("responses"), "found no 'responses'"),
        (lambda index: index.update(version=9), "version 9, expected"),
        (lambda index: index["stimuli"].update(file="/etc/passwd"), "in a file here"),
    ],
)
def test_an_index_that_is_wrong_is_one_line(change, said: str, published: Recording, tmp_path: Path):
    folder = write_prepared(published, tmp_path / "mouse")
    index = json.loads((folder / "prepared.json").read_text())
    change(index)
    (folder / "prepared.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=said) as caught:
        read_prepared(folder)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_told_before_writing(published: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(ValueError, match="GB are needed, found 0"):
        write_prepared(published, tmp_path / "mouse")
    assert not list(tmp_path.iterdir())


def test_data_folders_are_never_written_to(published: Recording):
    source = Path(published.source)
    before = sorted(source.rglob("*"))
    with pytest.raises(ValueError, match="lies in the recording's own folder"):
        write_prepared(published, source / "prepared")
    assert sorted(source.rglob("*")) == before


def test_a_folder_of_prepared_mice_is_read_by_name(published: Recording, tmp_path: Path):
    for name in ("b", "a"):
        write_prepared(replace(published, name=name), tmp_path / name)
    assert [recording.name for recording in read_recordings(tmp_path)] == ["a", "b"]
    with pytest.raises(ValueError, match="exists already"):
        write_prepared(published, tmp_path / "a")
    with pytest.raises(ValueError, match="responses: found 'int8', expected float16 or float32"):
        write_prepared(published, tmp_path / "c", responses="int8")
