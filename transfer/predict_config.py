"""Every key of the `predict`, `score` and `submission` stages: type, default, unit, range and meaning.

What comes in: nothing. What goes out: dataclasses in the form that `pretrain/config.py` describes.
"""

from dataclasses import dataclass

from pretrain.config import AUTO, setting

RESPONSE_SPACES = ("raw", "per_frame_std", "per_neuron_std")
BLENDINGS = ("auto", "ones", "linear", "last", "dynamic_vfm")
TEAMS = (
    "organisers",
    "dwiseneuro",
    "dwiseneuro_submission",
    "viv1t",
    "viv1t_submission",
    "dynamic_vfm",
    "viv1t_closed_loop",
    "sensorium2022",
    "v1t",
)


@dataclass
class PredictConfig:
    """Fitted encoders, one or an ensemble, predict every frame of every trial that is asked for."""

    runs: list[str] = setting(
        [], "run folders or checkpoint files of `murine fit`, as [a,b,c]; several are averaged: models, folds, seeds"
    )
    weights: list[float] = setting([], "weight of each run in the average (default: all alike)", low=0)
    recording: str | None = setting(
        None, "recording, or folder of several, with the animals of the runs (default: where they were fitted)"
    )
    animals: list[str] = setting([], "animals that are predicted (default: all, which every run must have)")
    tiers: list[str] = setting([], "tiers of the trials that are predicted (default: all but `none`)")
    max_frames: int = setting(0, "trials are cut to their first frames; 0: as in the fit", "frames", 0)
    window: str = setting(
        "auto",
        "what an encoder sees at a time: sliding: windows as in its fit, anywhere in the trial; whole: the trial; "
        "auto: as published, sliding for dwiseneuro and dynamic_vfm",
        choices=("auto", "sliding", "whole"),
    )
    blending: str = setting(
        "auto",
        "how overlapping windows become one response: ones: the mean; linear: later outputs of a window count more; "
        "last: its last output alone; side_by_side: every frame once; dynamic_vfm: the same, laid as published; "
        "auto: as published",
        choices=BLENDINGS,
    )
    batch_size: int = setting(
        AUTO,
        "windows, whole trials or images at a time; auto: 32, but on a CPU one window or trial, which is faster there",
        low=1,
        words={"auto": AUTO},
    )
    response_space: str | None = setting(
        None, "unit of the predictions (default: that of the first run)", choices=RESPONSE_SPACES
    )
    precision: str = setting("32-true", "arithmetic", choices=("32-true", "bf16-mixed"))
    accelerator: str = setting("auto", "kind of device", choices=("auto", "cpu", "cuda", "mps"))
    out: str | None = setting(None, "run folder (default: runs/predict-<hash of the config>)")


@dataclass
class ScoreConfig:
    """Predictions are scored as a team of the competitions scores them; every option can be changed on its own."""

    predictions: str | None = setting(None, "run folder of `murine predict`")
    recording: str | None = setting(None, "recording, or folder of several (default: where predictions are of)")
    animals: list[str] = setting([], "animals that are scored (default: all)")
    tiers: list[str] = setting([], "tiers that are scored (default: all that were predicted and have responses)")
    classes: bool = setting(True, "scores of each class of stimuli as well, where classes are known")
    protocol: str = setting(
        "auto",
        "team whose options are the defaults of those below; auto: organisers of videos, sensorium2022 of images",
        choices=("auto", *TEAMS),
    )
    trial_length: str | None = setting(
        None, "rule for where a trial ends", choices=("all", "statistics", "video", "responses")
    )
    max_frames: int | None = setting(None, "frames of a trial that are looked at; 0: all", "frames", 0)
    response_space: str | None = setting(None, "unit of responses and predictions", choices=RESPONSE_SPACES)
    first_frame: int | None = setting(None, "first frame that counts", "frames", 0)
    drop_last: int | None = setting(None, "frames at the end that do not count", "frames", 0)
    most_frames: int | None = setting(None, "of what is left only so many of the last; 0: all", "frames", 0)
    average: str | None = setting(None, "mean over all neurons, or of the animals", choices=("neurons", "animals"))
    undefined: str | None = setting(None, "what a neuron without a score counts for", choices=("zero", "omit", "keep"))
    to_average: str | None = setting(
        None, "correlation to average: mean over clips, or clips one after the other",
        choices=("per_clip", "concatenated"),
    )  # fmt: skip
    least_explainable: float | None = setting(
        None, "share of the variance that must be explainable where FEVE counts", low=0, high=1
    )
    memory_gb: float = setting(1.0, "responses and predictions that are held at a time", "GB", 0.001)
    out: str | None = setting(None, "run folder (default: runs/score-<hash of the config>)")


@dataclass
class SubmissionConfig:
    """Predictions become the files that a competition takes, or `check` looks at one."""

    predictions: str | None = setting(None, "run folder of `murine predict`")
    check: str | None = setting(None, "submission file to be checked instead: .csv of 2022, .parquet.brotli of 2023")
    truth: str | None = setting(None, "with check: ground truth of 2022, .csv, which the submission is scored by")
    recording: str | None = setting(
        None, "recording, or folder of several (default: where predictions are of); with check: what it must be of"
    )
    animals: list[str] = setting([], "animals that are submitted (default: all)")
    tiers: list[str] = setting(
        [], "tiers that become a file each (default: those of the competition that were predicted)"
    )
    protocol: str = setting(
        "auto",
        "whose frames and response space: dwiseneuro_submission, viv1t_submission, dynamic_vfm, organisers; auto: "
        "dwiseneuro_submission of videos, sensorium2022 of images",
        choices=("auto", *TEAMS),
    )
    response_space: str | None = setting(None, "unit, instead of the protocol's", choices=RESPONSE_SPACES)
    first_frame: int | None = setting(None, "first frame that is submitted, instead of the protocol's", "frames", 0)
    drop_last: int | None = setting(None, "frames at the end that are not submitted", "frames", 0)
    compression_level: int = setting(5, "brotli: 1 is fastest, 11 smallest; the limit of an upload was 5 GB", "", 1, 11)
    zip: bool = setting(True, "files of 2023 in the zip archives that the competition took, as well")
    out: str | None = setting(None, "folder of the files (default: `submission` in the folder of the predictions)")
