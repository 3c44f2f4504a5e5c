"""Clips, from a source through shards to decoded frames and signals."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pretrain.clips import Clip, clip_facts, decode_clip, decode_signal, is_clip
from pretrain.config import ShardsConfig
from pretrain.shards import read_index, verify_shards, write_shards
from pretrain.sources import open_source


def samples(folder: Path) -> list[dict]:
    """Samples as WebDataset's own reader gives them."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    return list(wds.DataPipeline(wds.SimpleShardList(urls), wds.tarfile_to_samples()))


def write(place: Path, out: Path, **keys: object) -> dict:
    config = ShardsConfig(source=str(place), out=str(out), **{"shard_samples": 2, **keys})
    return write_shards(open_source(config), config)


@pytest.fixture
def stacks(tmp_path: Path) -> Path:
    """Three clips of 9, 10 and 11 frames with their signals and labels."""
    rng = np.random.default_rng(0)
    (tmp_path / "stacks").mkdir()
    for n in range(3):
        np.save(tmp_path / "stacks" / f"{n}.npy", rng.integers(0, 256, (9 + n, 20, 30, 3), np.uint8))
        np.save(tmp_path / "stacks" / f"{n}.behavior.npy", rng.normal(size=(2, 9 + n)))
        np.save(tmp_path / "stacks" / f"{n}.pupil_center.npy", rng.normal(size=9 + n))
    np.save(tmp_path / "stacks" / "labels.npy", np.array([2, 0, 1]))
    return tmp_path / "stacks"


def test_clips_of_stacks_come_back_exactly_at_their_size(stacks, tmp_path):
    index = write(stacks, tmp_path / "s", size=20, frame_rate_hz=30.0)
    assert index["format"] == "murine-shards-2"
    assert (index["kind"], index["samples"], index["labels"]) == ("clips", 3, [0, 1, 2])
    assert index["signals"] == {"behavior": 2, "pupil_center": 1}
    assert index["frame_rates_hz"] == [30.0]
    assert verify_shards(tmp_path / "s") == []
    assert read_index(tmp_path / "s") == index
    seen = set()
    for sample in samples(tmp_path / "s"):
        assert is_clip(sample)
        facts, clip = clip_facts(sample), decode_clip(sample)
        number = facts.frames - 9
        np.testing.assert_array_equal(clip.frames, np.load(stacks / f"{number}.npy"))
        for name in ("behavior", "pupil_center"):
            expected = np.atleast_2d(np.load(stacks / f"{number}.{name}.npy")).astype(np.float32)
            np.testing.assert_array_equal(clip.signals[name], expected)
        assert int(sample["cls"]) == (2, 0, 1)[number]
        assert clip.frame_rate_hz == 30
        seen.add(number)
    assert seen == {0, 1, 2}


def test_frames_are_resized_as_images_are(stacks, tmp_path):
    write(stacks, tmp_path / "s", size=10, frame_rate_hz=30.0)
    for sample in samples(tmp_path / "s"):
        facts = clip_facts(sample)
        stack = np.load(stacks / f"{facts.frames - 9}.npy")
        expected = [np.asarray(Image.fromarray(f).resize((15, 10), Image.Resampling.BILINEAR)) for f in stack]
        assert (facts.height, facts.width) == (10, 15)
        np.testing.assert_array_equal(decode_clip(sample).frames, expected)


def test_grey_clips_stay_grey_in_shards_and_have_three_channels_when_decoded(tmp_path):
    stack = np.random.default_rng(0).integers(0, 256, (6, 12, 12), np.uint8)
    np.save(tmp_path / "a.npy", stack)
    write(tmp_path / "a.npy", tmp_path / "s", size=12, frame_rate_hz=10.0)
    (sample,) = samples(tmp_path / "s")
    assert np.load(io.BytesIO(sample["clip.npy"])).shape == (6, 12, 12)
    np.testing.assert_array_equal(decode_clip(sample).frames, np.repeat(stack[..., None], 3, 3))


@pytest.mark.parametrize("form", ["jpeg", "raw", "encoded"])
def test_videos_decoded_or_as_they_were(write_video, frame_number, tmp_path, form):
    path = write_video(tmp_path / "v" / "walk.mp4", frames=30)
    np.savez(tmp_path / "v" / "walk.npz", behavior=np.arange(60.0).reshape(2, 30))
    index = write(tmp_path / "v", tmp_path / "s", size=24, format=form)
    assert index["frame_rates_hz"] == [25.0]
    (sample,) = samples(tmp_path / "s")
    if form == "encoded":
        assert sample["mp4"] == path.read_bytes()
    facts = json.loads(sample["clip.json"])
    size = (48, 64) if form == "encoded" else (24, 32)
    assert facts == {
        "frames": 30, "height": size[0], "width": size[1], "frame_rate_hz": 25.0, "video": "walk.mp4", "first_frame": 0,
    }  # fmt: skip
    numbers = [3, 7, 8, 11, 29]
    clip = decode_clip(sample, numbers)
    assert clip.frames.shape == (5, *size, 3)
    assert [frame_number(frame) for frame in clip.frames] == numbers
    assert clip.frame_rate_hz == 25
    np.testing.assert_array_equal(clip.signals["behavior"], np.arange(60.0).reshape(2, 30)[:, numbers])


def test_clips_of_a_long_video_say_where_they_begin(write_video, frame_number, tmp_path):
    write_video(tmp_path / "v" / "long.mkv", frames=50)
    index = write(tmp_path / "v", tmp_path / "s", size=24, clip_frames=12)
    assert (index["samples"], index["frames_left_out"], index["plan"]["clip_frames"]) == (4, 2, 12)
    for sample in samples(tmp_path / "s"):
        first = json.loads(sample["clip.json"])["first_frame"]
        assert [frame_number(frame) for frame in decode_clip(sample).frames] == list(range(first, first + 12))


def test_damaged_videos_and_wrong_signals_are_listed_and_left_out(write_video, tmp_path):
    for name in ("a", "b", "c", "d"):
        write_video(tmp_path / "v" / f"{name}.mkv", frames=20)
        np.save(tmp_path / "v" / f"{name}.behavior.npy", np.zeros((2, 19 if name == "c" else 20)))
    whole = (tmp_path / "v" / "b.mkv").read_bytes()
    (tmp_path / "v" / "b.mkv").write_bytes(whole[:100])
    (tmp_path / "v" / "d.behavior.npy").unlink()
    for form in ("raw", "encoded"):
        index = write(tmp_path / "v", tmp_path / form, size=24, format=form, max_unreadable=1)
        assert index["samples"] == 1
        lines = sorted(index["unreadable"])
        assert lines[0].startswith("b.mkv: OSError: ")
        assert "signal behavior: c.behavior.npy has shape (2, 19)" in lines[1]
        assert lines[2] == "d.mkv: signal behavior: it has none, and others do"


def test_clips_of_an_extreme_shape_are_unreadable(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 5, 8, 129), np.uint8))
    with pytest.raises(ValueError, match=r"a.npy 0: 129 x 8 pixels, whose long side is more than 16 times the short"):
        write(tmp_path, tmp_path / "s", frame_rate_hz=30.0)


def test_signals_need_as_many_channels_in_all_samples(stacks, tmp_path):
    np.save(stacks / "1.behavior.npy", np.zeros((3, 10)))
    with pytest.raises(ValueError, match="signal 'behavior' has 2 and 3 channels; it needs as many in all samples"):
        write(stacks, tmp_path / "s", frame_rate_hz=30.0)


def test_images_have_signals_too(tmp_path):
    (tmp_path / "i").mkdir()
    for n in range(3):
        Image.new("RGB", (12, 12), (n, 0, 0)).save(tmp_path / "i" / f"{n}.png")
        np.save(tmp_path / "i" / f"{n}.behavior.npy", np.array([n, 2.0 * n]))
    index = write(tmp_path / "i", tmp_path / "s", size=12, format="raw")
    assert (index["format"], index["kind"], index["signals"]) == ("murine-shards-2", "images", {"behavior": 2})
    for sample in samples(tmp_path / "s"):
        n = np.load(io.BytesIO(sample["npy"]))[0, 0, 0]
        np.testing.assert_array_equal(decode_signal(sample["behavior.signal.npy"], None, "behavior"), [n, 2 * n])


def sample_of(frames: np.ndarray, rate: float = 10.0) -> dict:
    facts = {"frames": len(frames), "height": frames.shape[1], "width": frames.shape[2], "frame_rate_hz": rate}
    buffers = {"clip.npy": frames, "behavior.signal.npy": np.arange(2.0 * len(frames), dtype=np.float32).reshape(2, -1)}
    sample: dict = {"__key__": "000000007", "clip.json": json.dumps(facts).encode()}
    for name, array in buffers.items():
        buffer = io.BytesIO()
        np.save(buffer, array)
        sample[name] = buffer.getvalue()
    return sample


@settings(deadline=None, max_examples=100)
@given(frames=st.integers(1, 30), numbers=st.lists(st.integers(-2, 35), max_size=12))
def test_any_frames_are_those_of_the_whole(frames, numbers):
    whole = np.arange(frames * 12, dtype=np.uint8).reshape(frames, 2, 2, 3)
    sample = sample_of(whole)
    if not numbers or sorted(set(numbers)) != numbers or min(numbers) < 0 or max(numbers) >= frames:
        with pytest.raises(ValueError, match=rf"sample 000000007 has frames 0 to {frames - 1}, and wanted were \["):
            decode_clip(sample, numbers)
        numbers = sorted({number % frames for number in [0, *numbers]})
    clip = decode_clip(sample, numbers)
    assert isinstance(clip, Clip)
    np.testing.assert_array_equal(clip.frames, whole[numbers])
    np.testing.assert_array_equal(clip.signals["behavior"], np.arange(2.0 * frames).reshape(2, -1)[:, numbers])
    assert clip.frame_rate_hz == 10
    clip.frames[:] = 0


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"clip.json": b"{"}, "clip.json of sample 000000007 cannot be read"),
        ({"clip.json": b'{"frames": 3}'}, "clip.json of sample 000000007 cannot be read"),
        ({"clip.json": b'{"frames": 0, "height": 2, "width": 2, "frame_rate_hz": 1}'}, "clip.json of sample"),
        ({"clip.json": b'{"frames": 9, "height": 2, "width": 2, "frame_rate_hz": 1}'}, "not what clip.json says"),
        ({"clip.npy": None}, "sample 000000007 has neither clip.npy nor a video"),
        ({"clip.npy": b"\x93NUMPY"}, "magic string"),
        ({"clip.npy": None, "mp4": b"no video"}, "it is no MP4"),
        (
            {"behavior.signal.npy": sample_of(np.zeros((4, 2, 2, 3), np.uint8))["behavior.signal.npy"]},
            "should be float32",
        ),
    ],
)
def test_a_damaged_sample_is_one_line(changes, line):
    sample = sample_of(np.zeros((3, 2, 2, 3), np.uint8)) | changes
    with pytest.raises(ValueError, match=line):
        decode_clip({key: value for key, value in sample.items() if value is not None})


def test_objects_are_never_unpickled():
    buffer = io.BytesIO()
    np.save(buffer, np.array([[object()]]), allow_pickle=True)
    sample = sample_of(np.zeros((1, 2, 2, 3), np.uint8)) | {"behavior.signal.npy": buffer.getvalue()}
    with pytest.raises(ValueError, match="not unpickled"):
        decode_clip(sample)
