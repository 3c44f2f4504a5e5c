"""What an objective sees of a batch: random views, local views, patches and depth maps, made on the training device.

What comes in: batches of `pretrain.stream`. What goes out: the dictionaries that `pretrain.objectives.objective.Wants`
describes, and central views (batch, 3, size, size) for probes. Every parameter is a pure function of the seed, the
step, the number of the view and the image's place in the batch over all processes, so neither resuming nor the number
of processes changes what an image looks like at a step.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.accumulate import split_batch
from pretrain.augment import ViewParameters, draw_parameters, evaluation_view, make_views
from pretrain.checkpoint import BackboneSpec
from pretrain.clip_times import ShownTimes, probe_times, training_times, view_generator
from pretrain.clip_views import draw_clips, evaluation_clip, given_times, make_clip_view
from pretrain.config import ViewsConfig
from pretrain.objectives.objective import Wants
from pretrain.patches import draw_patches, make_patches, require_patches_fit
from pretrain.resample import resample_nearest
from pretrain.step_timer import StepTimer

# A device is given the views of this many steps at a time: drawing and starting kernels then cost next to nothing.
STEPS_AT_ONCE = 8
# Of a batch: what the parameters of views are drawn from, which a CPU does.
DRAWN_FROM = ("sizes", "frames", "times")


class ViewMaker:
    """Makes what an objective wants of each batch.

    Args:
        config: ranges and probabilities.
        spec: the backbone, whose input size, mean and standard deviation the views have.
        wants: how many views of which kind.
        seed: of the run.
        device: where views are made.
        rank, world: which of how many processes; this one has rows rank, rank + world, ... of every batch.

    Raises:
        ValueError: keys of the config that contradict each other, or the objective.
    """

    def __init__(
        self,
        config: ViewsConfig,
        spec: BackboneSpec,
        wants: Wants,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        require_possible(config, wants)
        self.config, self.size, self.wants, self.seed = config, spec.input_size, wants, seed
        self.device, self.rank, self.world = device, rank, world
        self.mean = torch.tensor(spec.mean, device=device)
        self.std = torch.tensor(spec.std, device=device)

    def stream(self, batches: Iterable[dict[str, Tensor]], step: int, timer: StepTimer) -> Iterator[dict[str, Tensor]]:
        """What the objective wants of each batch in turn, the first of which is that of `step`."""
        batches = iter(batches)
        while True:
            with timer.part("data"):
                some = list(islice(batches, self.at_once))
            if not some:
                return
            with timer.part("views"):
                made = self.of_steps(some, step)
            step += len(some)
            yield from made

    def of_steps(self, batches: list[dict[str, Tensor]], step: int) -> list[dict[str, Tensor]]:
        """What the objective wants of each of several batches, the first of which is that of `step`, made together."""
        # One by one, because they may lie in pinned memory, and joined they would not.
        batch = joined([self.brought(batch) for batch in batches])
        return split_batch(self.training(batch, step, len(batches)), len(batches))

    def brought(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What views are made of, on the device but for what parameters are drawn from."""
        wanted = {"images", "video", "index", *DRAWN_FROM}
        wanted |= {key for key in ("depth", "label") if getattr(self.wants, key)}
        return {
            key: value if key in DRAWN_FROM else value.to(self.device, non_blocking=True)
            for key, value in batch.items()
            if key in wanted
        }

    def training(self, batch: dict[str, Tensor], step: int, steps: int = 1) -> dict[str, Tensor]:
        """What the objective wants of a batch of uint8 `images`, and their `index`; or of those of several `steps`.

        Depth maps come in as `depth` (batch, 1, height, width), padded like the images, and undergo the first view's
        crop and flip. Of clips, which come in as `video`, there are views alone, (views, batch, 3, frames, size, size).
        """
        if "video" in batch:
            return self.training_clips(batch, range(step, step + steps))
        images, sizes = batch["images"].to(self.device, non_blocking=True), batch["sizes"]
        wants, first_local, during = self.wants, self.wants.views, range(step, step + steps)
        made = {"index": batch["index"].to(self.device, non_blocking=True)}
        views = [self.draw(sizes, during, view) for view in range(wants.views)]
        local_views = [self.draw(sizes, during, first_local + view, local=True) for view in range(wants.local_views)]
        if views:
            made["views"] = self.stack(images, views, self.size)
        if local_views:
            made["local_views"] = self.stack(images, local_views, self.config.local_size)
        if wants.patches:
            generators = [self.generator("patches", one) for one in during]
            drawn = draw_patches(sizes, self.config, generators, self.rank, self.world)
            with self.full_precision():
                made["patches"] = make_patches(images, drawn, self.size, self.mean, self.std)
        if wants.depth:
            depth = batch["depth"].to(self.device, non_blocking=True)
            made["depth"] = resample_nearest(depth, views[0].crop, self.size, views[0].flip)
        if wants.label:
            made["label"] = batch["label"].to(self.device, non_blocking=True)
        return made

    def training_clips(self, batch: dict[str, Tensor], during: range) -> dict[str, Tensor]:
        """Views of clips, and their `index` and class."""
        video, views = batch["video"].to(self.device, non_blocking=True), []
        for view in range(self.wants.views):
            generators = [self.generator("views", step, view) for step in during]
            drawn = draw_clips(
                batch["frames"], batch["sizes"], self.config, generators, view, self.rank, self.world,
                given_times(batch, view),
            )  # fmt: skip
            with self.full_precision():
                views.append(make_clip_view(video, drawn, self.size, self.mean, self.std))
        made = {"index": batch["index"], "views": torch.stack(views)}
        if self.wants.label:
            made["label"] = batch["label"]
        return {key: value.to(self.device, non_blocking=True) for key, value in made.items()}

    def times(self, step: int) -> ShownTimes:
        """Which frames of clips a reader has to decode, of the batches from that of `step` on."""
        return training_times(self.config, self.seed, step, self.wants.views, self.rank, self.world)

    def probe_times(self) -> ShownTimes:
        """Which frames of clips `evaluation` and `pair` show."""
        return probe_times(self.config, self.seed)

    @property
    def at_once(self) -> int:
        """Batches whose views are made together: one on a CPU, whose caches are small, and several where it pays."""
        return 1 if self.device.type == "cpu" else STEPS_AT_ONCE

    def evaluation(self, batch: dict[str, Tensor]) -> Tensor:
        """The central view (batch, 3, size, size), 224 / 256 of the short side, as mouse-vision evaluates.

        Of clips (batch, 3, frames, size, size): that of the frames around their middle.
        """
        with self.full_precision():
            if "video" in batch:
                return evaluation_clip(batch, self.config, self.size, self.mean, self.std)
            return evaluation_view(batch["images"].to(self.device), batch["sizes"], self.size, self.mean, self.std)

    def pair(self, batch: dict[str, Tensor]) -> Tensor:
        """Two random views (2, batch, 3, size, size) of each image, as the first of training, the same at each call."""
        sizes, generators = batch["sizes"], [self.generator("probe", view) for view in range(2)]
        # A process makes those of all images it is given, not of its part of a batch.
        if "video" in batch:
            video = batch["video"].to(self.device, non_blocking=True)
            clips = [
                # The first of the times that probes look at are those of the central view.
                draw_clips(
                    batch["frames"], sizes, self.config, generators[view], view, times=given_times(batch, 1 + view)
                )
                for view in range(2)
            ]
            with self.full_precision():
                return torch.stack([make_clip_view(video, one, self.size, self.mean, self.std) for one in clips])
        images = batch["images"].to(self.device, non_blocking=True)
        drawn = [draw_parameters(sizes, self.config, generators[view], view) for view in range(2)]
        return self.stack(images, drawn, self.size)

    def draw(self, sizes: Tensor, during: range, view: int, local: bool = False) -> ViewParameters:
        """The parameters of one view at some steps; local views are counted on from the others."""
        generators = [self.generator("views", step, view) for step in during]
        return draw_parameters(sizes, self.config, generators, view, local, self.rank, self.world)

    def full_precision(self) -> torch.autocast:
        """Probes make views within a run's autocast, where grey levels would be rounded to 8 bits of a float."""
        return torch.autocast(self.device.type, enabled=False)

    def generator(self, *parts: int | str) -> torch.Generator:
        """Randomness that follows from the run's seed and these parts alone."""
        return view_generator(self.seed, *parts)

    def stack(self, images: Tensor, drawn: list[ViewParameters], size: int) -> Tensor:
        """Views (views, batch, 3, size, size)."""
        with self.full_precision():
            return make_views(images, drawn, size, self.mean, self.std)


def joined(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Several batches as one; what has different sizes is padded to the largest, as within a batch."""
    if len(batches) == 1:
        return batches[0]
    return {key: torch.cat(alike_in_size([batch[key] for batch in batches])) for key in batches[0]}


def alike_in_size(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors (batch, ...) with zeros behind each dimension but the first, up to the largest."""
    largest = [max(sides) for sides in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        missing = [most - have for have, most in zip(tensor.shape[:0:-1], reversed(largest), strict=True)]
        # Padding by nothing would be a copy.
        padded.append(F.pad(tensor, [side for each in missing for side in (0, each)]) if any(missing) else tensor)
    return padded


def require_possible(config: ViewsConfig, wants: Wants) -> None:
    """One line for keys that contradict each other, or what the objective wants."""
    for key in ("blur_probability", "solarize_probability"):
        if not getattr(config, key):
            raise ValueError(f"views.{key}=[] names no probability; give one for each view, or [0.0] for never")
    if config.speed_min > config.speed_max:
        raise ValueError(f"views.speed_min={config.speed_min} is larger than views.speed_max={config.speed_max}")
    if config.crop_pad and not config.crop_side:
        raise ValueError(
            f"views.crop_pad={config.crop_pad} is the border of crops of fixed size, and views.crop_side=0 makes "
            "crops of random area; set views.crop_side=1.0, or views.crop_pad=0"
        )
    if wants.depth and not wants.views:
        raise ValueError("an objective that wants depth must want a view: depth is that of the first one")
    if wants.patches:
        require_patches_fit(config)
