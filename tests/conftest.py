"""What tests share: the reference values, if they are here, and tiny images, shards, recordings and runs.

Tiny runs train timm's `test_resnet` (0.4 million parameters) on 32-pixel views.
"""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from neural_data.simulate import SimulationConfig, write_simulation
from pretrain.config import PretrainConfig, ShardsConfig

TINY_MODEL = "timm/test_resnet"
TINY_IMAGES = 50


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference values and real data beside the project; tests that need it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "reference" / "values").is_dir():
        pytest.skip(f"reference values and real data are not here ({folder} is absent)")
    return folder


@pytest.fixture(scope="session")
def mouse_vision(shared: Path) -> Path:
    """Reference values of the mouse-vision code."""
    return shared / "reference" / "values" / "mouse_vision"


@pytest.fixture(scope="session")
def keyed_fill() -> Callable[..., Any]:
    """Gives a module weights that follow from the names of its state dict, as the reference values were made."""
    import torch
    from torch import nn

    def drawn(key: str, shape: torch.Size) -> torch.Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        if key.endswith("num_batches_tracked"):
            return torch.tensor(1)
        if key.endswith(("running_mean", ".bias")):
            return 0.1 * torch.randn(shape, generator=generator)
        if key.endswith("running_var") or len(shape) == 1:
            return 0.5 + torch.rand(shape, generator=generator)
        if key.endswith(".mask"):
            return (torch.rand(shape, generator=generator) < 0.25).float()
        return torch.randn(shape, generator=generator) * (2 / shape[1:].numel()) ** 0.5

    def fill(model: nn.Module) -> nn.Module:
        model.load_state_dict({key: drawn(key, value.shape) for key, value in model.state_dict().items()})
        return model

    return fill


def smooth_image(rng: np.random.Generator, width: int, height: int, hue: int = 0) -> Image.Image:
    """A picture of a few soft blobs, which JPEG keeps nearly as it is; `hue` is the channel that is strongest."""
    coarse = rng.integers(0, 140, (4, 4, 3), np.uint8)
    coarse[..., hue] += 110
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def class_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two class folders, "green" and "red", with 25 JPEGs each, of various sizes."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(TINY_IMAGES):
        name, hue = (("green", 1), ("red", 0))[number % 2]
        (folder / name).mkdir(exist_ok=True)
        width, height = rng.integers(40, 72, 2)
        smooth_image(rng, width, height, hue).save(folder / name / f"{number:03d}.jpg", quality=95)
    return folder


@pytest.fixture(scope="session")
def tiny_shards(class_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards with the images of `class_folder`, 40 pixels on the short side."""
    from pretrain.shards import write_shards
    from pretrain.sources import open_source

    out = tmp_path_factory.mktemp("shards") / "tiny"
    config = ShardsConfig(source=str(class_folder), out=str(out), size=40, shard_samples=16)
    write_shards(open_source(config), config)
    return out


@pytest.fixture(scope="session")
def long_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard of 12 clips of 40 to 51 frames of noise, 12 by 16 pixels, with a signal `gaze` of two channels."""
    from pretrain.shards import write_shards
    from pretrain.sources import open_source

    folder, rng = tmp_path_factory.mktemp("long"), np.random.default_rng(0)
    (folder / "stacks").mkdir()
    for number in range(12):
        np.save(folder / "stacks" / f"{number:02d}.npy", rng.integers(0, 256, (1, 40 + number, 12, 16, 3), np.uint8))
        np.save(folder / "stacks" / f"{number:02d}.gaze.npy", rng.normal(size=(1, 2, 40 + number)).astype(np.float32))
    config = ShardsConfig(
        source=str(folder / "stacks"), out=str(folder / "shards"), size=12, frame_rate_hz=30.0, format="raw"
    )
    write_shards(open_source(config), config)
    return folder / "shards"


@pytest.fixture(scope="session")
def write_video() -> Callable[..., Path]:
    """Writes a video whose frames show their own number, in eight stripes of black and white: `frame_number` reads it.

    48 x 64 pixels, 25 frames per second unless `rate` says otherwise; `size` (width, height).
    """
    av = pytest.importorskip("av")

    def write(path: Path, frames: int = 30, codec: str = "libx264", pixels: str = "yuv420p", **options: Any) -> Path:
        width, height = options.pop("size", (64, 48))
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=options.pop("rate", 25), options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, pixels
            stream.codec_context.gop_size = 12
            for number in range(frames):
                stripes = np.array([255 * (number >> bit & 1) for bit in range(8)], np.uint8)
                picture = np.broadcast_to(np.repeat(stripes, width // 8)[None, :, None], (height, width, 3))
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture(scope="session")
def frame_number() -> Callable[[np.ndarray], int]:
    """The number that a frame (height, width) or (height, width, 3) of `write_video` shows, whatever its size."""

    def number(frame: np.ndarray) -> int:
        columns = frame.astype(float).mean(tuple(axis for axis in range(frame.ndim) if axis != 1))
        middles = ((np.arange(8) + 0.5) * len(columns) / 8).astype(int)
        return int(((columns[middles] > 128) << np.arange(8)).sum())

    return number


@pytest.fixture(scope="session")
def tiny_config(tiny_shards: Path) -> Callable[..., PretrainConfig]:
    """Makes the config of a tiny pretraining: 2 epochs of 6 steps; keyword `keys` are dotted keys to change."""
    from ray_jobs.config import compose_mapping

    def make(out: Path, keys: dict[str, Any] | None = None) -> PretrainConfig:
        tiny = {
            "model": TINY_MODEL,
            "objective_args": {"dim": 16, "negatives": 20},
            "data": {"shards": str(tiny_shards), "labelled": str(tiny_shards), "workers": 0, "shuffle_buffer": 20},
            "views": {"size": 32},
            "probe": {"k": 5},
            "epochs": 2,
            "batch_size": 8,
            "accelerator": "cpu",
            "log_every": 1,
            "out": str(out),
        }
        return compose_mapping("pretrain", tiny | (keys or {}))

    return make


@pytest.fixture(scope="session")
def tiny_run(tiny_config: Callable[..., PretrainConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished tiny pretraining; tests only read it."""
    from pretrain.run import pretrain

    return pretrain(tiny_config(tmp_path_factory.mktemp("runs") / "tiny"))


@pytest.fixture(scope="session")
def tiny_recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated recording: 2 animals, 2 areas, 5 neurons in each, 30 stimuli of 32 pixels, 10 repeats."""
    out = tmp_path_factory.mktemp("recordings") / "tiny"
    return write_simulation(
        SimulationConfig(str(out), animals=2, neurons_per_area=5, stimuli=30, repeats=10, size=32, dead_neurons=0.1)
    )
