"""Every key of the `shards` and `pretrain` stages: type, default, unit, range and meaning.

What comes in: nothing. What goes out: dataclasses that OmegaConf merges recipes and `key=value` overrides into.
The notes of a key lie in its field's `metadata` (`meaning`, `unit`, `low`, `high`, `choices`), from which the
command's help and its range checks are made. Imports nothing heavy, so that help is instant.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# What `auto` stands for in the keys that have it.
AUTO = -1


def setting(
    default: Any,
    meaning: str,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[Any] | None = None,
    words: Mapping[str, Any] | None = None,
) -> Any:
    """A dataclass field with its meaning, unit, inclusive range and allowed values.

    `words` stand for values outside of the range, such as "auto".
    A range or a list of choices on a list-valued key holds for every entry. Mutable defaults are copied.
    """
    notes = {"meaning": meaning, "unit": unit, "low": low, "high": high, "choices": choices, "words": words}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=notes)
    if isinstance(default, type):
        return field(default_factory=default, metadata=notes)
    return field(default=default, metadata=notes)


@dataclass
class ShardsConfig:
    """Images or clips become WebDataset tar shards, or `verify` checks shards against their index."""

    source: str | None = setting(
        None,
        "images or videos (flat or class folders), a .tar or .zip of them, ImageNet's or WebDataset's tars, Parquet "
        "files, .npy stacks; a path or URL; or `simulated` for images made on the spot",
    )
    out: str | None = setting(None, "folder or URL that receives the shards and index.json")
    verify: str | None = setting(None, "folder or URL of shards to check against its index instead of writing")
    size: int = setting(96, "short side after resizing", "pixels", 8, 4096)
    format: str = setting(
        "jpeg",
        "how pixels are stored; clips are raw, or, encoded, the videos as they were",
        choices=("jpeg", "raw", "encoded"),
    )
    quality: int = setting(95, "JPEG quality", low=1, high=100)
    clip_frames: int = setting(0, "videos are cut into clips of this length; 0: each is one clip", "frames", 0)
    frame_rate_hz: float | None = setting(
        None, "of `.npy` stacks, which are images without it, and clips with it", "Hz", 0.001, 100000
    )
    shard_samples: int = setting(2000, "samples in one shard", low=1)
    max_unreadable: float = setting(
        0.01,
        "share of images that are unreadable, or over 16 times as long as wide, above which writing fails",
        low=0,
        high=1,
    )
    labels: str | None = setting(
        None,
        "text file, or its URL, with a name and its label on each line, or the labels alone in the order of the names, "
        "such as ImageNet's ILSVRC2012_validation_ground_truth.txt beside its meta.mat",
    )
    image_column: str | None = setting(None, "Parquet column with the image (default: found by its content)")
    label_column: str | None = setting(
        None, "Parquet column with the label, or `unlabelled` (default: `label`, or the one of classes)"
    )
    depth: str | None = setting(
        None,
        "folder or URL of depth images, named as the source's images are (suffixes may differ), or `simulated` with "
        "source=simulated; depth is grey, 8 or 16 bit, in any units",
    )
    depth_column: str | None = setting(None, "Parquet column with the depth image")
    where: str | None = setting(
        None, "Parquet rows to keep, as `column=value`, or the split of a data set's parts, for example `split=train`"
    )
    images: int = setting(10000, "how many images `source=simulated` makes", low=1)
    seed: int = setting(0, "seed of the order of images and clips, and of the images that are made", low=0)
    workers: int = setting(0, "threads that read and encode; 0: one for each core", low=0, high=256)


@dataclass
class DataConfig:
    """Where training images come from."""

    shards: str | None = setting(None, "folder or URL of training shards (made by `murine shards`)")
    labelled: str | None = setting(None, "folder or URL of held-out labelled shards for the probes")
    cache_folder: str | None = setting(
        None, "where shards of URLs are kept (default: murine/shards in the user's cache)"
    )
    cache_gib: float = setting(100.0, "most that is kept there; what was longest unused goes first", "GiB", 0.001)
    workers: int = setting(
        AUTO,
        "processes that read and decode beside the training process of each device; auto: 1 on a CPU, up to 8 on a GPU",
        low=0,
        high=256,
        words={"auto": AUTO},
    )
    shuffle_buffer: int = setting(10000, "samples, at least, that are shuffled together", "samples", low=1)
    device_share: float = setting(
        0.5, "share of the GPU's free memory that decoded images may take, which are then read once", low=0, high=1
    )
    memory_share: float = setting(
        0.25, "share of free RAM that they may take where the GPU has no room, or where there is none", low=0, high=1
    )
    damaged_share: float = setting(
        0.001,
        "share of samples that may be missing or damaged, and are left out; above it the run stops",
        low=0,
        high=1,
    )


@dataclass
class ViewsConfig:
    """Random views of an image; the defaults are those of instance recognition in mouse-vision (Nayebi 2023).

    A list of probabilities holds one for each view; the last one is for all further views.
    """

    size: int = setting(64, "side of a view", "pixels", 8, 1024)
    crop_area_min: float = setting(0.2, "smallest crop, as a share of the image's area", low=0.001, high=1)
    crop_area_max: float = setting(1.0, "largest crop, as a share of the image's area", low=0.001, high=1)
    crop_side: float = setting(
        0.0, "instead: side of a square crop of fixed size, as a share of the short side; 0: random area", low=0, high=1
    )
    crop_pad: float = setting(
        0.0, "black border around the image before a crop of fixed size, as a share of the short side", low=0, high=1
    )
    interpolation: str = setting("bilinear", "how crops are resized", choices=("bilinear", "bicubic"))
    flip_probability: float = setting(0.5, "horizontal flip", low=0, high=1)
    grayscale_probability: float = setting(0.2, "colours replaced by their luma", low=0, high=1)
    grayscale_first: bool = setting(True, "grey before the jitter (instance recognition), otherwise after it")
    jitter_probability: float = setting(1.0, "brightness, contrast, saturation and hue jitter", low=0, high=1)
    brightness: float = setting(0.4, "factor drawn from 1 ± this", low=0, high=1)
    contrast: float = setting(0.4, "factor drawn from 1 ± this", low=0, high=1)
    saturation: float = setting(0.4, "factor drawn from 1 ± this", low=0, high=1)
    hue: float = setting(0.4, "shift drawn from ± this", "turns of the colour circle", low=0, high=0.5)
    blur_probability: list[float] = setting([0.0], "Gaussian blur, for each view", low=0, high=1)
    blur_sigma_min: float = setting(0.1, "narrowest blur", "pixels of a view of 224 pixels", low=0.01)
    blur_sigma_max: float = setting(2.0, "widest blur", "pixels of a view of 224 pixels", low=0.01)
    solarize_probability: list[float] = setting([0.0], "bright values inverted, for each view", low=0, high=1)
    clip_frames: int = setting(16, "frames in a view of a clip", "frames", 1)
    clip_stride: float = setting(
        1.0, "frames of the clip from one frame of the view to the next, before its speed", "frames", 0.01
    )
    speed_min: float = setting(1.0, "slowest view of a clip, as a factor of its stride", low=0.01)
    speed_max: float = setting(1.0, "fastest view of a clip", low=0.01)
    local_size: int = setting(32, "side of a local view (DINO, SwAV)", "pixels", 8, 1024)
    local_crop_area_min: float = setting(0.05, "smallest crop of a local view, share of the area", low=0.001, high=1)
    local_crop_area_max: float = setting(0.4, "largest crop of a local view, share of the area", low=0.001, high=1)
    patch_image: int = setting(292, "short side of an image that is cut into a grid of patches", "pixels", 8, 4096)
    patch_field: int = setting(255, "side of the random square that the 3 x 3 grid covers", "pixels", 8, 4096)


# timm's learning-rate schedules that are functions of the time alone; `plateau` is not.
TIMM_SCHEDULES = ("cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant")


@dataclass
class OptimizerConfig:
    """Optimiser and learning rate by epoch; the defaults are the published recipe of alexnet_bn_ir."""

    name: str = setting(
        "momentum",
        "momentum: plain SGD with momentum; nesterov: Nesterov's; adam; adamw; lars: layer-wise rates for large "
        "batches; schedule_free_adamw; timm/<name>: any of timm's, for example timm/lamb",
    )
    args: dict[str, Any] = setting({}, "further arguments of the optimiser, for example {betas: [0.9, 0.95]}")
    lr: float = setting(0.003, "learning rate at the start, or after the warm-up", low=0)
    momentum: float = setting(0.9, "momentum of optimisers that have one", low=0, high=1)
    weight_decay: float = setting(5e-4, "L2 penalty, or decoupled decay where the optimiser has that", low=0)
    decay_biases: bool = setting(
        True,
        "penalty on every parameter, as published; false: not on biases, norm layers and other vectors, nor on what "
        "decay_tokens names; with lars always false",
    )
    decay_tokens: bool = setting(
        False,
        "with decay_biases=false: penalty on the class tokens, position embeddings and the like that timm's models "
        "name as free of it",
    )
    trust: float = setting(1e-3, "LARS: a layer's step as a share of its weights' length", low=0)
    schedule: str = setting(
        "step",
        "step: multiplied at epochs; cosine: falls to min_lr in the last epoch; timm/<name>: timm's own",
        choices=("step", "cosine", *(f"timm/{name}" for name in TIMM_SCHEDULES)),
    )
    schedule_by: str = setting(
        "epoch",
        "when the rate changes: at the start of an epoch, as published, or at every step; then the rates at the starts "
        "of epochs are the same, and step and cosine reach their highest and lowest rate at the start of the epoch "
        "that has it",
        choices=("epoch", "step"),
    )
    schedule_args: dict[str, Any] = setting(
        {},
        "of timm's schedules: further arguments of timm.scheduler.create_scheduler_v2, for example {cycle_limit: 2}; "
        "num_epochs is epochs unless it is given",
    )
    decay_epochs: list[int] = setting(
        [120, 160], "step and timm/multistep: the rate is multiplied at the start of these", "epochs", 0
    )
    decay_rate: float = setting(
        0.1, "step, timm/step and timm/multistep: by this factor; timm/poly: the power", low=0, high=1
    )
    min_lr: float = setting(0.0, "cosine: learning rate of the last epoch; timm's: that they fall to", low=0)
    warmup_epochs: int = setting(0, "the rate rises linearly over these", "epochs", 0)
    warmup_ratio: float = setting(1e-4, "where the warm-up starts, as a share of the rate", low=0, high=1)
    clip_norm: float = setting(0.0, "longest gradient over all parameters; longer ones are shortened; 0: any", low=0)


PROBE_MEASURES = ("knn", "linear", "rankme", "feature_std", "uniformity", "alignment")


@dataclass
class AverageConfig:
    """A moving average of the backbone's weights, which probes measure and checkpoints hold beside the weights."""

    decay: float = setting(
        0.0, "share of the average that a step keeps, for example 0.999; 0: no average", low=0, high=0.99999
    )
    warmup: bool = setting(
        True, "the share rises from 0 as 1 - n^(-2/3) at step n, up to decay; false: decay from step 2"
    )
    initial: bool = setting(
        False, "with warmup=false: decay from step 1, so that the weights of the start have a share too (DwiseNeuro)"
    )


@dataclass
class ProbeConfig:
    """What has been learned so far, measured on features of images, those of labelled ones where there are any."""

    every_epochs: int = setting(1, "epochs between probes; 0 for none", "epochs", 0)
    every_steps: int = setting(0, "steps between probes, besides those of every_epochs; 0 for none", "steps", 0)
    measures: list[str] = setting(
        list(PROBE_MEASURES),
        "what is measured; knn and linear only where training and held-out images have labels; collapse is warned of "
        "by feature_std and rankme",
        choices=PROBE_MEASURES,
    )
    k: int = setting(200, "neighbours that vote", low=1)
    temperature: float = setting(0.1, "of the neighbours' weights exp(similarity / temperature)", low=1e-3)
    bank_images: int = setting(
        10000, "first training images: neighbours that vote, and what the linear probe learns from", "images", 1
    )
    test_images: int = setting(10000, "held-out images that are classified, or ranked where no labels are", "images", 2)
    collapse_share: float = setting(
        0.1,
        "feature spread, as a share of isotropic features' spread, below which collapse is warned of",
        low=0,
        high=1,
    )
    collapse_rank: float = setting(
        3.0, "RankMe below which, and below 2 % of what it can be at most, collapse is warned of; 0: never", low=0
    )
    keep_mib: int = setting(
        2048, "decoded images of each of the two folders that are kept in memory for further probes", "MiB", 0
    )


@dataclass
class CheckpointConfig:
    """How often the state of training is saved, and how many are kept."""

    every_minutes: float = setting(5.0, "between checkpoints within an epoch", "minutes", 0.001)
    keep: int = setting(2, "newest checkpoints that are kept", low=1)


TRACKER_NAMES = ("tensorboard", "wandb", "mlflow")


@dataclass
class LoggingConfig:
    """Where figures go besides metrics.csv."""

    trackers: list[str] = setting(
        ["tensorboard"],
        "wandb and mlflow need murine[wandb] and murine[mlflow]; WANDB_MODE=offline and MLFLOW_TRACKING_URI work as "
        "they always do; what W&B wrote offline is sent by one `wandb sync RUN/wandb/offline-run-*`, all folders of a "
        "run together",
        choices=TRACKER_NAMES,
    )


@dataclass
class PretrainConfig:
    """Shards train a backbone without labels."""

    model: str = setting("alexnet_bn", "backbone; `timm/<name>` for any of timm's")
    model_args: dict[str, Any] = setting({}, "arguments of the backbone's constructor")
    objective: str = setting("instance_recognition", "what the backbone is trained on")
    objective_args: dict[str, Any] = setting({}, "arguments of the objective's constructor")
    data: DataConfig = setting(DataConfig, "training images")
    views: ViewsConfig = setting(ViewsConfig, "random views of them")
    initial_weights: str | None = setting(
        None, "checkpoint whose backbone training starts from: a run folder, a file of ours, or a published one"
    )
    optimizer: OptimizerConfig = setting(OptimizerConfig, "optimiser and schedule")
    average: AverageConfig = setting(AverageConfig, "moving average of the backbone's weights")
    probe: ProbeConfig = setting(ProbeConfig, "measurements while training")
    checkpoint: CheckpointConfig = setting(CheckpointConfig, "saving")
    logging: LoggingConfig = setting(LoggingConfig, "figures for other programs")
    epochs: int = setting(200, "passes over the training images", "epochs", 1)
    batch_size: int = setting(
        256, "images per step, over all devices; auto: as many as fit on a GPU", "images", 2, words={"auto": AUTO}
    )
    accumulate: int = setting(
        1, "parts that each device's share of a batch is cut into, one after the other, where it does not fit", low=1
    )
    precision: str = setting(
        "32-true",
        "arithmetic of the forward and backward pass",
        choices=("32-true", "bf16-mixed", "16-mixed"),
    )
    accelerator: str = setting("auto", "kind of device", choices=("auto", "cpu", "cuda", "mps"))
    devices: int = setting(1, "devices that share a batch", low=1)
    channels_last: bool = setting(False, "weights laid out with channels last, which convolutions in 16 bits like")
    activation_checkpointing: bool = setting(
        False, "keep only what goes into the backbone's blocks, and compute the rest again: less memory, more time"
    )
    compile: bool = setting(False, "compile the backbone with torch.compile; needs a C++ compiler, or Triton on a GPU")
    sync_batch_norm: bool = setting(False, "batch statistics over all devices rather than each device's own")
    seed: int = setting(1, "seed of weights, order, views and dropout", low=0)
    log_every: int = setting(10, "between rows of metrics.csv", "steps", 1)
    profile: bool = setting(False, "write what a few steps spend their time on: trace.json.gz and profile.txt")
    out: str | None = setting(None, "run folder (default: runs/<model>-<objective>-<hash of the config>)")
