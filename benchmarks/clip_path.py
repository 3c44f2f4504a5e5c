"""Clips per second on one core, from shards of encoded videos to two views of 16 frames of 64 pixels.

Comes in: `--videos` and `--frames` say how many videos of how many frames are simulated (256 x 192 pixels, H.264);
`--quick` takes few of them. Goes out: a table and one line of JSON.

All ways start from the same shards in one process and take turns: ours decodes the frames that the two views show and
makes the views; "whole clips" is ours, but that all frames are decoded; "PyAV and torchvision v2" decodes each video
and transforms the frames of two spans, as an ordinary data set does. The limit is reading and decoding the frames that
are shown, without views. `mib_a_batch` is what a batch of 8 clips holds, decoded.
"""

import argparse
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch
from timing import median_seconds, rounded
from torchvision_views import simclr_transform

from neural_data.natural_videos import make_clip
from pretrain.checkpoint import BackboneSpec
from pretrain.config import ShardsConfig, ViewsConfig
from pretrain.objectives.objective import Wants
from pretrain.shard_set import ShardSet, open_shards
from pretrain.shards import write_shards
from pretrain.sources import open_source
from pretrain.stream import EpochBatches, load_batches
from pretrain.views import ViewMaker

SIZE, SHOWN, STRIDE, BATCH, RATE_HZ = 64, 16, 2, 8, 30
HEIGHT, WIDTH = 192, 256
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
VIEWS = ViewsConfig(size=SIZE, clip_frames=SHOWN, clip_stride=STRIDE, blur_probability=[0.5])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=16)
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--quick", action="store_true", help="8 videos of 120 frames, 1 round instead of 5")
    options = parser.parse_args()
    if options.quick:
        options.videos, options.frames = 8, 120
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        shards = simulated_shards(Path(scratch), options.videos, options.frames)
        jobs = {
            "murine": lambda: ours(shards),
            "whole clips": lambda: ours(shards, whole=True),
            "PyAV and torchvision v2": lambda: torchvision_on_shards(shards),
            "read and decode alone": lambda: [batch["index"] for batch in batches(shards)],
        }
        seconds = median_seconds(jobs, 1 if options.quick else 5)
        mib = [max(megabytes(batch) for batch in batches(shards, whole)) for whole in (False, True)]
    for name, each in seconds.items():
        ratio = each / seconds["murine"]
        print(f"{name:>24}  {shards.samples / each:7.1f} clips/s   murine is {ratio:6.2f} times as fast")
    figures = {
        "clips_per_s_per_core": shards.samples / seconds["murine"],
        "speedup_vs_whole_clips": seconds["whole clips"] / seconds["murine"],
        "speedup_vs_torchvision": seconds["PyAV and torchvision v2"] / seconds["murine"],
        "decode_limit": shards.samples / seconds["read and decode alone"],
        "mib_a_batch": mib[0],
        "mib_a_batch_of_whole_clips": mib[1],
    }
    print(json.dumps(rounded(figures)))


def simulated_shards(folder: Path, videos: int, frames: int) -> ShardSet:
    """Shards of videos as they were encoded."""
    (folder / "videos").mkdir()
    for number in range(videos):
        clip = make_clip("movie", frames, HEIGHT, WIDTH, RATE_HZ, np.random.default_rng(number))
        write_video(folder / "videos" / f"{number:03d}.mp4", clip)
    config = ShardsConfig(source=str(folder / "videos"), out=str(folder / "shards"), format="encoded")
    write_shards(open_source(config), config)
    return open_shards(folder / "shards")


def write_video(path: Path, clip: np.ndarray) -> None:
    """A grey clip (frames, height, width) in H.264 with the settings that players expect."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE_HZ)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for picture in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="gray")))
        container.mux(stream.encode())


def view_maker() -> ViewMaker:
    return ViewMaker(VIEWS, BackboneSpec("any", {}, SIZE, MEAN, STD), Wants(views=2), 0, torch.device("cpu"))


def batches(shards: ShardSet, whole: bool = False) -> Iterator[dict[str, torch.Tensor]]:
    """An epoch, decoded: what the views of its steps show, or all of it."""
    times = None if whole else view_maker().times(step=0)
    return load_batches(EpochBatches(shards, BATCH, epoch=0, times=times), workers=0)


def ours(shards: ShardSet, whole: bool = False) -> None:
    maker = view_maker()
    for step, batch in enumerate(batches(shards, whole)):
        maker.training(batch, step)


def torchvision_on_shards(shards: ShardSet) -> None:
    transform = simclr_transform(SIZE, MEAN, STD)
    reader, rng = shards.reader(), np.random.default_rng(0)
    for index in range(shards.samples):
        with av.open(io.BytesIO(shards.read(reader, index)["mp4"])) as container:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        clip = torch.from_numpy(frames).permute(0, 3, 1, 2)
        for _ in range(2):
            start = rng.integers(len(clip) - SHOWN * STRIDE)
            transform(clip[start : start + SHOWN * STRIDE : STRIDE])


def megabytes(batch: dict[str, torch.Tensor]) -> float:
    return batch["video"].nbytes / 2**20


if __name__ == "__main__":
    main()
