"""`.npy` stacks: images and clips of every shape, their labels and signals, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from pretrain.config import ShardsConfig
from pretrain.items import Source
from pretrain.sources import open_source


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def opened(place: Path, **keys: object) -> Source:
    return open_source(ShardsConfig(source=str(place), **keys))


@pytest.mark.parametrize("shape", [(7, 5, 6), (7, 5, 6, 3)])
def test_images_of_a_stack_with_labels_and_signals(tmp_path, shape):
    stack, running = pixels(*shape), np.arange(14.0).reshape(7, 2)
    np.save(tmp_path / "a.npy", stack)
    np.save(tmp_path / "labels.npy", np.arange(7) % 3)
    np.save(tmp_path / "a.running.npy", running)
    for place in (tmp_path, tmp_path / "a.npy"):
        source = opened(place)
        assert (source.count, source.kind, source.signals) == (7, "images", ("running",))
        items = list(source.items(0))
        assert sorted(item.name for item in items) == [f"a.npy {n}" for n in range(7)]
        assert [item.name for item in items] != sorted(item.name for item in items)
        for item in items:
            number = int(item.name.split()[1])
            np.testing.assert_array_equal(item.image, stack[number])
            np.testing.assert_array_equal(item.signals["running"].read(), running[number])
            assert item.label == number % 3
        assert [item.name for item in source.items(3)] == [item.name for item in items][3:]


@pytest.mark.parametrize("shape", [(10, 5, 6), (10, 5, 6, 3), (4, 10, 5, 6), (4, 10, 5, 6, 3)])
@pytest.mark.parametrize("clip_frames", [0, 4])
def test_clips_of_a_stack_whole_or_cut(tmp_path, capsys, shape, clip_frames):
    stack = pixels(*shape)
    many = stack if shape[0] == 4 else stack[None]
    signal = np.random.default_rng(1).normal(size=(len(many), 2, 10)).astype(np.float32)
    np.save(tmp_path / "a.npy", stack)
    np.save(tmp_path / "a.behavior.npy", signal if shape[0] == 4 else signal[0])
    source = opened(tmp_path, frame_rate_hz=30.0, clip_frames=clip_frames)
    assert source.kind == "clips"
    assert source.count == len(many) * (2 if clip_frames else 1)
    assert source.frames_left_out == (2 * len(many) if clip_frames else 0)
    assert ("fill no clip" in capsys.readouterr().err) == bool(clip_frames)
    found = {}
    for item in source.items(0):
        number = int(item.name.split()[1]) if shape[0] == 4 else 0
        first = item.clip.first
        frames = np.stack(list(item.clip.frames()))
        found[number, first] = frames
        np.testing.assert_array_equal(frames, many[number, first : first + (clip_frames or 10)])
        np.testing.assert_array_equal(
            item.signals["behavior"].read(), signal[number][:, first : first + (clip_frames or 10)]
        )
        assert item.clip.frame_rate_hz == 30
    assert sorted(found) == [(n, first) for n in range(len(many)) for first in ((0, 4) if clip_frames else (0,))]


def test_a_folder_of_stacks_is_one_sequence(tmp_path):
    for n in range(3):
        np.save(tmp_path / f"{n}.npy", np.full((n + 1, 4, 4), 10 * n, np.uint8))
    np.save(tmp_path / "labels.npy", np.arange(6))
    items = {item.name: (int(item.image[0, 0]), item.label) for item in opened(tmp_path).items(0)}
    assert items == {
        "0.npy 0": (0, 0), "1.npy 0": (10, 1), "1.npy 1": (10, 2), "2.npy 0": (20, 3), "2.npy 1": (20, 4),
        "2.npy 2": (20, 5),
    }  # fmt: skip


def test_the_fingerprint_changes_with_whatever_changes_the_items(tmp_path):
    np.save(tmp_path / "a.npy", pixels(6, 8, 8))
    np.save(tmp_path / "labels.npy", np.arange(6))
    prints = {opened(tmp_path, **keys).fingerprint for keys in ({}, {"seed": 1})}
    np.save(tmp_path / "labels.npy", np.arange(6)[::-1].copy())
    prints.add(opened(tmp_path).fingerprint)
    np.save(tmp_path / "b.npy", pixels(6, 8, 8))
    (tmp_path / "labels.npy").unlink()
    clips = {"frame_rate_hz": 5.0, "clip_frames": 2}
    prints |= {opened(tmp_path, **keys).fingerprint for keys in ({}, clips, clips | {"clip_frames": 3})}
    prints.add(opened(tmp_path, frame_rate_hz=6.0).fingerprint)
    assert len(prints) == 7


@pytest.mark.parametrize(
    ("arrays", "keys", "line"),
    [
        ({"a": np.zeros((3, 4, 4))}, {}, "a.npy holds float64; pixels of a stack are uint8"),
        ({"a": pixels(4, 4)}, {}, r"a.npy has shape \(4, 4\); images are \(N, H, W\)"),
        ({"a": pixels(3, 4, 4, 5)}, {}, r"a.npy has shape \(3, 4, 4, 5\); .* clips, with frame_rate_hz=<rate>"),
        ({"a": pixels(0, 4, 4)}, {}, "a.npy has shape"),
        ({"a": pixels(2, 3, 4, 4, 4)}, {"frame_rate_hz": 1.0}, "a.npy has shape"),
        ({"a": np.array([object()])}, {}, "a.npy' cannot be read as .npy: .*Python objects"),
        ({"a": pixels(3, 4, 4), "labels": np.arange(2)}, {}, "labels.npy should have 3 whole numbers from 0, found"),
        ({"a": pixels(3, 4, 4), "labels": np.arange(3) - 1}, {}, "labels.npy should have 3 whole numbers from 0"),
        ({"a": pixels(3, 4, 4), "a.Run": np.arange(3)}, {}, "signal 'Run' of a.Run.npy: .* small letters"),
        ({"a": pixels(3, 4, 4), "a.label": np.arange(3)}, {}, "signal 'label' of a.label.npy: batches have an entry"),
        ({"a": pixels(3, 4, 4), "a.gaze": np.zeros((6, 2))}, {}, r"a.gaze.npy has shape \(6, 2\), should have 3 rows"),
        ({"a": pixels(3, 4, 4), "a.gaze": np.zeros((2, 2))}, {}, r"a.gaze.npy has shape \(2, 2\), should have 3 rows"),
        (
            {"a": pixels(2, 5, 4, 4), "a.gaze": np.zeros((3, 2, 5))},
            {"frame_rate_hz": 1.0},
            r"a.gaze.npy has shape \(3, 2, 5\), should have 2 rows, one for each of a.npy",
        ),
        ({"labels": np.arange(3)}, {}, "no stack in .*, only labels.npy; put the .npy stacks beside it"),
        ({"a": pixels(3, 4, 4)}, {"clip_frames": 2}, "say frame_rate_hz=<rate> if these stacks are clips"),
        ({"a": pixels(3, 4, 4)}, {"clip_frames": 9, "frame_rate_hz": 1.0}, "no clip in .* has clip_frames=9 frames"),
        ({"a": pixels(3, 4, 4)}, {"depth": "d"}, "depth is not for .npy stacks"),
        ({"a": pixels(3, 4, 4)}, {"labels": "l"}, "labels is not for .npy stacks; their labels lie beside them"),
        ({"a": pixels(3, 4, 4)}, {"format": "encoded", "frame_rate_hz": 1.0}, "stacks have none, choose format=raw"),
    ],
)
def test_what_is_no_stack_is_one_line(tmp_path, arrays, keys, line):
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=line):
        opened(tmp_path, **keys)
