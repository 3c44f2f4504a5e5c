"""What tests of Sensorium's layout share: small mice with everything that is ugly in the real ones, and ways to break
them."""

import shutil
import zipfile
from pathlib import Path

import numpy as np

from neural_data.recording import Recording
from neural_data.tables import neuron_table, trial_table

STATIC = "static21067-10-18-GrayImageNet-94c6ff995dac583098847cfecd43e7b6"
COLOUR = "static25311-10-26-ColorImageNet-104e446ed0128d89c639eef0abe4655b"
VIDEO = "dynamic29515-10-12-Video-9b4f6a1a067fe51e15306b9628efea20"
NEURONS = 7


def neurons(animal: str) -> object:
    rng = np.random.default_rng(1)
    ids = [4, 1, 3, 17, 6, 9, 8]  # neither sorted nor contiguous
    x, y, z = rng.integers(-500, 500, (3, NEURONS))
    return neuron_table(ids, animal, "V1", "L2/3", x, y, z)


def static_mouse(channels: int = 1) -> Recording:
    """10 train images once, 3 test images 4 times, 2 final_test images 3 times whose responses are withheld."""
    rng = np.random.default_rng(2)
    shape = (15, 24, 32) if channels == 1 else (15, 24, 32, channels)
    images = rng.integers(0, 256, shape).astype(np.uint8)
    stimulus = np.concatenate([np.arange(10), np.tile([10, 11, 12], 4), np.tile([13, 14], 3)])
    tier = np.array(["train"] * 10 + ["test"] * 12 + ["final_test"] * 6)
    order = rng.permutation(len(stimulus))
    stimulus, tier = stimulus[order], tier[order]
    repeat = np.array([(stimulus[:i] == s).sum() for i, s in enumerate(stimulus)])
    withheld = tier == "final_test"
    responses = rng.gamma(1.0, 3.0, (len(stimulus), NEURONS)).astype(np.float32)
    responses[withheld] = np.nan
    hashed = [f"{i:032x}" for i in rng.permutation(len(stimulus))]
    return Recording(
        name=STATIC if channels == 1 else COLOUR,
        stimuli=images,
        trials=trial_table(stimulus, repeat, tier).assign(
            withheld=withheld, trial_id=hashed, image_id=1000 + 3 * stimulus, stimulus_class="imagenet"
        ),
        responses=responses,
        neurons=neurons("21067-10-18" if channels == 1 else "25311-10-26"),
        behavior=rng.normal(5, 1, (len(stimulus), 3)),
        pupil_center=rng.normal(120, 5, (len(stimulus), 2)),
        behavior_names=("pupil_dilation", "pupil_dilation_derivative", "running_speed"),
    )


def clips(n: int, frames: int = 60, height: int = 12, width: int = 16, seed: int = 3) -> np.ndarray:
    """uint8 (n, frames, height, width): blocks that change every five frames."""
    blocks = np.random.default_rng(seed).integers(0, 256, (n, frames // 5, height // 4, width // 4))
    return blocks.repeat(5, 1).repeat(4, 2).repeat(4, 3).astype(np.uint8)


def video_mouse() -> Recording:
    """8 train clips once, 2 oracle clips 3 times, 2 live_test_main clips 3 times whose responses are withheld, one
    trial of tier none; clips of 60, 57 and 48 frames; responses down to -3e-7."""
    rng = np.random.default_rng(4)
    videos = clips(13).astype(np.float32)
    length = np.full(13, 60)
    length[[2, 9]] = 48, 57
    stimulus = np.concatenate([np.arange(8), np.tile([8, 9], 3), np.tile([10, 11], 3), [12]])
    tier = np.array(["train"] * 8 + ["oracle"] * 6 + ["live_test_main"] * 6 + ["none"])
    order = rng.permutation(len(stimulus))
    stimulus, tier = stimulus[order], tier[order]
    # The reader numbers stimuli as they come.
    first = np.sort(np.unique(stimulus, return_index=True)[1])
    rank = {s: i for i, s in enumerate(stimulus[first])}
    videos, length = videos[stimulus[first]], length[stimulus[first]]
    stimulus = np.array([rank[s] for s in stimulus])
    repeat = np.array([(stimulus[:i] == s).sum() for i, s in enumerate(stimulus)])
    frames, withheld = length[stimulus], np.isin(tier, ["live_test_main", "none"])
    n = len(stimulus)
    after = np.arange(60) >= frames[:, None, None]
    fires = rng.random((n, NEURONS, 60)) < 0.7
    responses = np.where(fires, rng.gamma(1.0, 3.0, fires.shape), -3e-7).astype(np.float32)
    responses[withheld] = np.nan
    for i, frames_of_clip in enumerate(length):
        videos[i, frames_of_clip:] = np.nan
    return Recording(
        name=VIDEO,
        stimuli=videos,
        trials=trial_table(stimulus, repeat, tier).assign(frames=frames, withheld=withheld),
        responses=np.where(after, np.float32(np.nan), responses),
        neurons=neurons("29515-10-12"),
        behavior=np.where(after, np.nan, rng.normal(5, 1, (n, 2, 60))),
        pupil_center=np.where(after, np.nan, rng.normal(120, 5, (n, 2, 60))),
        sampling_rate_hz=30.0,
        behavior_names=("pupil_dilation", "running_speed"),
    )


def change(file: Path, change_values: object) -> None:
    """Saves what a function makes of the array in a file."""
    np.save(file, change_values(np.load(file)))


def stored_zip(folder: Path) -> Path:
    """A zip of a folder without compression, as some tools write it."""
    archive = folder.with_name(f"{folder.name}.stored.zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as handle:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            handle.write(file, f"{folder.name}/{file.relative_to(folder).as_posix()}")
    return archive


def copied(folder: Path, to: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(folder, to / folder.name))
