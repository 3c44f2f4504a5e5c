"""Video cores as models that are compared: features in time, of whole clips.

Comes in: a core (`pretrain/models/cores.py`) with random, pretrained or published weights, and clips. Goes out:
features (frames, features) of every frame, of which the mean over a bin is what neurons are predicted from.

A core sees what came before a frame, so that its features are computed of whole clips and not of single frames. Before
a clip its first frame stands still: that gives features of the first frames to cores that need some frames before each.
Frames are grey and resized to the core's input. A core that was pretrained on clips sees them standardised as there; of
the others DwiseNeuro sees grey levels from 0 to 255, and the rest standardised ones, with one mean and standard
deviation for all that is scored. What the animal does is no property of a stimulus: cores that take behaviour and gaze
see zeros, which is their mean where they are standardised.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.checkpoint import TrainedBackbone, load_published
from pretrain.models.cores import CORES, CoreInfo
from transfer.video_bins import BinnedClips

CORE = "core"
BEHAVIOR, GAZE = 2, 2  # pupil dilation and running speed; the two coordinates of gaze
# Mean and standard deviation of cores that were published with grey levels as they are.
GREY_LEVELS = {"dwiseneuro": (0.0, 1.0), "dwiseneuro_distillation": (0.0, 1.0)}
FRAMES_EACH = {"dynamic_vfm": 2}  # frames that one frame of the output is made of; 1 of all others
PROBE_FRAMES = 32  # the longest memory is ViV1T's, 24 frames
GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601, of RGB


@dataclass(frozen=True)
class TrainedCore:
    """A video core in evaluation mode; `path` is the file that its weights are from, or `untrained_<core>`.

    `args`: of its constructor. `size`: (height, width) of what it sees. `moments`: mean and standard deviation of the
    grey levels by which it was pretrained; None where there are none, and those of the recording count.
    """

    core: nn.Module
    info: CoreInfo
    path: Path
    epoch: int = 0
    step: int = 0
    args: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] = (36, 64)
    moments: tuple[float, float] | None = None

    def untrained(self) -> nn.Module:
        """The same core with weights as torch draws them now."""
        return self.info.build(**self.args).eval()


@dataclass(frozen=True)
class VideoModel:
    """A name, and `in_time(video)`: features (frames, features) of a video (1, 1, frames, height, width), of which
    each clip asked for is resized to `size` (height, width) and standardised by `moments`, or those of the clips."""

    label: str
    layers: tuple[str, ...]
    size: tuple[int, int]
    in_time: Callable[[Tensor], Tensor]
    moments: tuple[float, float] | None = None


def is_video_core(name: str | None) -> bool:
    return name in CORES and CORES[name].video


def open_core(name: str, path: str, seed: int) -> TrainedCore:
    """A core with weights drawn from the seed, and then, where `path` is a file, those of the file."""
    torch.manual_seed(seed)
    core = CORES[name].build()
    if path != f"untrained_{name}" or Path(path).exists():
        load_published(core, path)
        path = str(Path(path).resolve())
    info = CORES[name]
    return TrainedCore(core.eval(), info, Path(path), size=info.input[2:], moments=GREY_LEVELS.get(name))


def pretrained_core(found: TrainedBackbone) -> TrainedCore:
    """The core in a checkpoint of a pretraining, which wraps it to pool its features and standardises what it sees."""
    spec = found.spec
    moments = 255 * sum(spec.mean) / len(spec.mean), 255 * sum(spec.std) / len(spec.std)
    place = {"path": found.path, "epoch": found.epoch, "step": found.step}
    backbone = found.backbone
    return TrainedCore(
        backbone.core, CORES[spec.name], **place, args=spec.args, size=backbone.input_size, moments=moments
    )


def core_model(label: str, core: nn.Module, of: TrainedCore) -> VideoModel:
    """A core as a model of one layer, `core`: its output. `of`: what it is, or what it is compared with."""
    each = FRAMES_EACH.get(of.info.name, 1)
    behavior = of.args.get("behavior_channels", BEHAVIOR)
    parameter = next(core.parameters())
    probe = torch.zeros(1, 1, PROBE_FRAMES, *of.size, device=parameter.device)
    lost = PROBE_FRAMES - each * run_core(core, probe, behavior).shape[2]
    return VideoModel(
        label, (CORE,), of.size, lambda video: core_in_time(core, video, lost, each, behavior), of.moments
    )


def frame_model(label: str, layer: str, of: TrainedCore, features: Callable[[Tensor], Tensor]) -> VideoModel:
    """A model without time, of `features(images)` (frames, features), that sees what a core sees."""
    return VideoModel(label, (layer,), of.size, lambda video: features(video[0].transpose(0, 1)), of.moments)


def core_in_time(core: nn.Module, video: Tensor, lost: int, each: int, behavior: int = BEHAVIOR) -> Tensor:
    """Features (frames, features) of a video (1, 1, frames, height, width), on its device.

    `lost`: the first frames that the core has no features of; `each`: frames that one frame of its output is made of;
    `behavior`: values of behaviour that it takes.
    """
    frames = video.shape[2]
    before = lost + (-(frames + lost)) % each
    padded = torch.cat([video[:, :, :1].expand(-1, -1, before, -1, -1), video], 2)
    found = run_core(core, padded, behavior).repeat_interleave(each, 2)[0]
    if found.shape[1] < frames:
        raise ValueError(f"the core gives features of {found.shape[1]} frames of a clip of {frames}; take longer clips")
    return found[:, -frames:].transpose(0, 1).flatten(1)


def run_core(core: nn.Module, video: Tensor, behavior: int = BEHAVIOR) -> Tensor:
    states, gaze = (video.new_zeros(len(video), number, video.shape[2]) for number in (behavior, GAZE))
    with torch.no_grad():
        return core(video, behavior=states, pupil_center=gaze)


def clip_features(
    model: VideoModel, clips: BinnedClips, rows: np.ndarray, device: torch.device
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Clip by clip: the places in `rows` of its bins, and their features float32 (bins, features).

    One clip is in memory at a time, up to its last frame that counts.
    """
    clip, bin = clips.places(rows)
    mean, std = model.moments or pixel_moments(clips, clip, bin)
    for number in np.unique(clip):
        these = np.flatnonzero(clip == number)
        first, each = clips.first_frame(bin[these]), clips.timing.frames
        video = (prepared(clips.clip(number, int(first.max()) + each), model.size) - mean) / std
        found = model.in_time(video[None, None].to(device)).float()
        at = torch.from_numpy(first[:, None] + np.arange(each)).to(found.device)
        yield these, found[at].mean(1).cpu().numpy()


def pixel_moments(clips: BinnedClips, clip: np.ndarray, bin: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the grey levels of clips up to their last bin, one clip in memory at a time."""
    count, first, second = 0, 0.0, 0.0
    for number in np.unique(clip):
        stop = int(clips.first_frame(bin[clip == number].max())) + clips.timing.frames
        grey = grey_of(clips.clip(number, stop)).astype(np.float64)
        count, first, second = count + grey.size, first + grey.sum(), second + np.square(grey).sum()
    mean = first / count
    return mean, math.sqrt(max(second / count - mean**2, 0)) or 1.0


def prepared(frames: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Frames as grey levels float32 (frames, height, width), resized where they have another size."""
    grey = torch.from_numpy(np.ascontiguousarray(grey_of(frames), np.float32))
    if tuple(grey.shape[1:]) == tuple(size):
        return grey
    return F.interpolate(grey[:, None], size=size, mode="bilinear", antialias=True, align_corners=False)[:, 0]


def grey_of(frames: np.ndarray) -> np.ndarray:
    """Grey levels (frames, height, width) of frames that may have 3 channels (RGB), or 2 (UV and green), averaged."""
    if frames.ndim == 3:
        return frames
    return frames @ np.array(GREY_WEIGHTS if frames.shape[3] == 3 else (0.5, 0.5), np.float32)
