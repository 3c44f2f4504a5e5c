"""Every key of the `fit` stage: type, default, unit, range and meaning.

What comes in: nothing. What goes out: dataclasses in the form that `pretrain/config.py` describes. The recipes in
`configs/fit/` hold the settings of each published solution; the defaults here are those of ViV1T's short relatives:
all animals in each step, Poisson loss, validation by single-trial correlation.
"""

from dataclasses import dataclass
from typing import Any

from pretrain.config import AverageConfig, CheckpointConfig, LoggingConfig, setting


@dataclass
class TrialsConfig:
    """Which trials train an encoder, and which ones measure it. Trials whose responses are withheld do neither."""

    train_tiers: list[str] = setting(
        ["train"], "tiers that train; an animal may lack some of them; [] for all trials with responses"
    )
    validation_tiers: list[str] = setting(["oracle", "validation"], "tiers that measure; an animal may lack some")
    validation_animals: list[str] = setting([], "animals that count in the validation (default: all)")
    folds: int = setting(
        0, "parts into which the clips of all train_tiers are divided by their perceptual hash; 0: by tiers", low=0
    )
    fold: int = setting(0, "the part that measures, the others train", low=0)
    train_list: str | None = setting(
        None, "own list instead: a .csv file with columns animal and row of the trials that train"
    )
    validation_list: str | None = setting(None, "own list instead: of the trials that measure")
    train_limit: int = setting(0, "train trials of each animal, drawn at random; 0: all", "trials", 0)
    max_frames: int = setting(0, "trials are cut to their first frames; 0: as long as they are", "frames", 0)
    min_frames: int = setting(0, "trials that are shorter are left out, and counted", "frames", 0)


@dataclass
class WindowConfig:
    """What an encoder sees of a trial at a time. Images have no window."""

    frames: int = setting(0, "frames of a window; 0: whole trials", "frames", 0)
    stride: int = setting(1, "from one frame of the window to the next", "frames of the recording", 1)
    sampling: str = setting(
        "random",
        "random: one window of each trial, anywhere in it; dense: windows side by side; whole: the trial as it is",
        choices=("random", "dense", "whole"),
    )


@dataclass
class CoreConfig:
    """The core, instead of the published encoder's own, or with other arguments."""

    name: str | None = setting(None, "core by name (default: the model's)")
    args: dict[str, Any] = setting({}, "arguments of the core's constructor, over the model's")
    checkpoint: str | None = setting(
        None,
        "run folder or file of a pretraining, or published weights: its backbone, cut at core.layer, is the core; of a "
        "fit: its core",
    )
    layer: str | None = setting(None, "layer of the backbone whose maps the readouts see (with core.checkpoint)")
    freeze: bool = setting(False, "the core does not learn, and its norms keep their statistics")
    lr: float | None = setting(None, "learning rate (default: optimizer.lr)", low=0)
    weight_decay: float | None = setting(None, "decay (default: optimizer.weight_decay)", low=0)


@dataclass
class PartConfig:
    """Readouts, shifters, modulators or output activations, instead of the published encoder's own."""

    name: str | None = setting(None, "by name (default: the model's); `without`: left out, of shifters and modulators")
    args: dict[str, Any] = setting({}, "arguments of the constructor, over the model's")
    lr: float | None = setting(None, "learning rate (default: optimizer.lr)", low=0)
    weight_decay: float | None = setting(None, "decay (default: optimizer.weight_decay)", low=0)


@dataclass
class ReadoutConfig(PartConfig):
    """The readout of each animal."""

    coordinate_axes: int | None = setting(
        None,
        "columns of neurons' places in cortex from which a Gaussian readout predicts where they look; 0: they look "
        "anywhere (default: the model's)",
        low=0,
        high=3,
    )


@dataclass
class CutMixConfig:
    """A box of another clip of the same animal is pasted into a clip, and their responses are mixed (DwiseNeuro)."""

    probability: float = setting(0.0, "share of the samples that are mixed", low=0, high=1)
    alpha: float = setting(1.0, "of the Beta distribution that the share of the box is drawn from", low=1e-3)


@dataclass
class DistillationConfig:
    """A fitted teacher says what the animals without a response to a clip would have answered (DwiseNeuro)."""

    teacher: str | None = setting(None, "run folder of a fit with the same animals; `{fold}` stands for trials.fold")
    share: float = setting(0.36, "share of the teacher's answers in the weight of a batch", low=0, high=0.99)


@dataclass
class FitOptimizerConfig:
    """How the weights are changed."""

    name: str = setting(
        "adamw", "adam, adamw, sgd, momentum, ...; schedule_free_adamw; or timm/<name> of timm's optimisers"
    )
    args: dict[str, Any] = setting({}, "further arguments of the optimiser, for example {betas: [0.9, 0.95]}")
    lr: float = setting(0.003, "highest learning rate", low=0)
    weight_decay: float = setting(0.0, "decoupled decay, or L2 penalty where the optimiser has that", low=0)
    clip_norm: float = setting(0.0, "longest gradient over all parameters; 0: any", low=0)
    autoclip: float = setting(
        0.0, "gradients are shortened to this percentile of all former lengths; 0: not (ViV1T: 10)", "%", 0, 100
    )


@dataclass
class FitScheduleConfig:
    """How the learning rate changes from step to step, and when a fit ends early."""

    name: str = setting(
        "constant",
        "constant; warmup_cosine: up over warmup_epochs, then one cosine to min_lr; two_cosines: constant until "
        "second_epoch, then one cosine to min_lr (Dynamic-VFM); plateau: multiplied by factor where the validation no "
        "longer improves",
        choices=("constant", "warmup_cosine", "two_cosines", "plateau"),
    )
    warmup_epochs: float = setting(0.0, "the rate rises linearly over these", "epochs", 0)
    warmup_steps: int = setting(0, "the rate rises linearly over these; instead of warmup_epochs", "steps", 0)
    warmup_ratio: float = setting(0.0, "where the warm-up starts, as a share of the rate", low=0, high=1)
    min_lr: float = setting(0.0, "rate that it falls to", low=0)
    second_epoch: int = setting(80, "two_cosines: start of the second cosine", "epochs", 0)
    factor: float = setting(0.3, "plateau: the rate is multiplied by this", low=0, high=1)
    patience: int = setting(
        0, "validations without a better one, after which plateau acts, or any other schedule ends; 0: never", low=0
    )
    reductions: int = setting(3, "plateau: how often it multiplies the rate before training ends", low=0)
    counting: str = setting(
        "viv1t",
        "plateau: whose counting of failures and restores of the best weights",
        choices=("viv1t", "v1t", "neuralpredictors"),
    )
    tolerance: float = setting(0.0, "what counts as better, absolute", low=0)


@dataclass
class ValidationConfig:
    """Single-trial correlation of whole validation trials: over time and trials together, mean over neurons."""

    every_epochs: int = setting(1, "epochs between validations; 0 for none", "epochs", 0)
    first_frame: int = setting(50, "of a trial that counts; images have none", "frames", 0)
    batch_size: int = setting(8, "windows, or images, at a time", low=1)


@dataclass
class FitConfig:
    """Recordings of one or many animals fit an encoder: a core that they share, and a readout of each."""

    recording: str | None = setting(
        None, "recording of any format that `murine data info` knows, or a folder of several recordings"
    )
    recordings: list[str] = setting([], "several such recordings or folders, one after the other")
    animals: list[str] = setting([], "names of recordings, or of their animals, that are fitted (default: all)")
    trials: TrialsConfig = setting(TrialsConfig, "trials for training and validation")
    model: str | None = setting(None, "published encoder whose parts are built (default: that of `initial`)")
    core: CoreConfig = setting(CoreConfig, "core")
    readout: ReadoutConfig = setting(ReadoutConfig, "readout of each animal")
    shifter: PartConfig = setting(PartConfig, "shifter of each animal")
    modulator: PartConfig = setting(PartConfig, "modulator of each animal")
    activation: PartConfig = setting(PartConfig, "output activation")
    initial: str | None = setting(
        None, "run folder of a fit whose core, and parts of the animals that it has, training starts from"
    )
    normalisation: str | None = setting(
        None,
        "normalisation of stimuli, signals and responses, by name (default: that of `initial`, else sensorium2023 for "
        "videos and sensorium2022 for images)",
    )
    stimulus_scale: float | None = setting(
        None,
        "both sides of images or frames are multiplied by this, for example 0.25 of the 144 x 256 pixels of 2022 "
        "(default: that of `initial`, else 1)",
        low=0.01,
        high=4,
    )
    window: WindowConfig = setting(WindowConfig, "window of training (default: that of `initial`, else whole trials)")
    loss: str = setting("sensorium", "loss with its scaling, by the name of the repository")
    loss_args: dict[str, Any] = setting({}, "arguments of the loss")
    cutmix: CutMixConfig = setting(CutMixConfig, "mixed clips")
    distillation: DistillationConfig = setting(DistillationConfig, "answers of a teacher")
    batching: str = setting(
        "all",
        "one: a batch of one animal at each step, in turn; all: a batch of every animal, with gradients added up; "
        "mixed: samples of all animals in one batch",
        choices=("one", "all", "mixed"),
    )
    batch_size: int = setting(8, "samples of a batch", "windows, trials or images", 1)
    samples_per_epoch: int = setting(0, "samples that count as an epoch; 0: one of each trial", "samples", 0)
    micro_batch: int = setting(
        0, "samples whose gradients are computed at a time, where a batch does not fit; 0: the batch", "samples", 0
    )
    optimizer: FitOptimizerConfig = setting(FitOptimizerConfig, "optimiser")
    schedule: FitScheduleConfig = setting(FitScheduleConfig, "learning rate, and the end of training")
    average: AverageConfig = setting(AverageConfig, "moving average of the encoder's weights")
    validation: ValidationConfig = setting(ValidationConfig, "measurements while training")
    checkpoint: CheckpointConfig = setting(CheckpointConfig, "saving")
    logging: LoggingConfig = setting(LoggingConfig, "figures for other programs")
    epochs: int = setting(200, "most epochs", "epochs", 1)
    precision: str = setting(
        "32-true",
        "arithmetic of the forward and backward pass",
        choices=("32-true", "bf16-mixed", "16-mixed"),
    )
    accelerator: str = setting("auto", "kind of device", choices=("auto", "cpu", "cuda", "mps"))
    activation_checkpointing: bool = setting(
        False, "keep only what goes into the core's blocks, and compute the rest again: less memory, more time"
    )
    compile: bool = setting(False, "compile the core with torch.compile; needs a C++ compiler, or Triton on a GPU")
    workers: int = setting(1, "threads that read trials ahead of training; 0: none", low=0, high=64)
    seed: int = setting(1, "seed of weights, order, windows, CutMix and dropout", low=0)
    log_every: int = setting(10, "between rows of metrics.csv", "steps", 1)
    profile: bool = setting(False, "write what a few steps spend their time on: trace.json.gz and profile.txt")
    out: str | None = setting(None, "run folder (default: runs/fit-<model>-<hash of the config>)")
