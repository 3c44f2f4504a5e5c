"""What tests of whole fits share: tiny recordings of videos and of images, and a config that fits them in seconds."""

from pathlib import Path
from typing import Any

import numpy as np

from neural_data.simulate import SimulationConfig, VideoConfig, write_simulation
from ray_jobs.config import compose_mapping
from transfer.fit_config import FitConfig

NEURONS, FRAMES, SIZE = 17, 60, (20, 32)
# A core of some hundred weights, whose output lacks 6 of the frames that go in.
SMALL_CORE = {"channels": [4, 4], "spatial_kernels": [5, 3], "temporal_kernels": [5, 3]}
TINY = {
    "model": "sensorium2023_factorized",
    "core": {"args": SMALL_CORE},
    "window": {"frames": 30},
    "batch_size": 4,
    "epochs": 2,
    "validation": {"first_frame": 10},
    "accelerator": "cpu",
    "log_every": 1,
    "workers": 1,
}


def write_videos(out: Path, animals: int = 2) -> Path:
    """Animals in the layout of Sensorium 2023, 17 neurons each; 8 train clips of up to 60 frames, 2 repeated ones."""
    shown = {"height": SIZE[0], "width": SIZE[1], "frames": FRAMES, "train_clips": 8, "test_clips": 2, "repeats": 2}
    videos = VideoConfig(**shown, short_clips=0.2, withheld=["final_test_main"])
    kind = {"dynamic": True, "format": "sensorium_video", "videos": videos}
    return write_simulation(SimulationConfig(str(out), animals, ["VISp"], NEURONS, **kind))


def write_images(out: Path) -> Path:
    """Two animals in the layout of Sensorium 2022, 17 neurons each; 30 images of 32 pixels, shown 4 times."""
    kind = {"stimuli": 30, "repeats": 4, "size": 32, "format": "sensorium_static"}
    return write_simulation(SimulationConfig(str(out), 2, ["VISp"], NEURONS, **kind))


def write_colours(out: Path) -> Path:
    """One animal that saw 20 images in UV and green, 17 neurons, arrays of its own."""
    rng = np.random.default_rng(0)
    out.mkdir()
    arrays = {
        "images": rng.integers(0, 256, (20, *SIZE, 2), np.uint8),
        "responses": rng.gamma(1, size=(2, 20, NEURONS)).astype(np.float32),
        "behavior": rng.random((2, 20, 3), np.float32),
        "pupil_center": rng.random((2, 20, 2), np.float32),
        "tier": np.array((["train"] * 4 + ["validation"]) * 4),
    }
    for name, values in arrays.items():
        np.save(out / f"{name}.npy", values)
    return out


def tiny_fit(recording: Path, out: Path | None, **keys: Any) -> FitConfig:
    """The config of a tiny fit; `keys` are dotted keys, with `__` for a dot, over those of `TINY`."""
    given = {name.replace("__", "."): value for name, value in keys.items()}
    return compose_mapping("fit", TINY | {"recording": str(recording), "out": out and str(out)} | given)
