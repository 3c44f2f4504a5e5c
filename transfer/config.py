"""Every key of the `predictivity` and `report` stages: type, default, unit, range and meaning.

What comes in: nothing. What goes out: dataclasses in the form that `pretrain/config.py` describes.
"""

from dataclasses import dataclass

from pretrain.config import setting


@dataclass
class PredictivityConfig:
    """How well each layer of a model predicts recorded neurons, corrected for their noise."""

    checkpoint: str | None = setting(None, "run folder of a pretraining, or a checkpoint file")
    recording: str | None = setting(None, "recording: an .npz file or a folder of .npy files")
    layers: list[str] = setting([], "layers to fit (default: the model's own fit layers)")
    stimulus_view: str = setting(
        "evaluation",
        "`evaluation`: the model's published test transform, which crops the centre; `whole`: the whole stimulus",
        choices=("evaluation", "whole"),
    )
    components: int = setting(25, "PLS components, fewer where there are fewer stimuli", low=1)
    splits: int = setting(10, "random halvings of the stimuli into train and test", low=1)
    halvings: int = setting(100, "random halvings of the repeats within each split", low=1)
    train_fraction: float = setting(0.5, "share of the stimuli that the mapping is fitted on", low=0.05, high=0.95)
    min_reliability: float = setting(
        0.5, "neurons with a lower split-half reliability are excluded, counted and listed", low=-1, high=1
    )
    baselines: bool = setting(True, "add pixels and the same network with random weights")
    bootstrap: int = setting(2000, "resamples of the neurons for the 95 % interval", low=10)
    accelerator: str = setting("auto", "kind of device for the activations", choices=("auto", "cpu", "cuda", "mps"))
    seed: int = setting(0, "seed of the random-weight baseline and of the bootstrap", low=0)
    out: str | None = setting(None, "run folder (default: runs/predictivity-<hash of the config>)")


@dataclass
class ReportConfig:
    """Run folders become one self-contained HTML page."""

    runs: list[str] = setting([], "run folders of `pretrain` and `predictivity`, as [a,b,c]")
    out: str | None = setting(None, "page to write (default: report.html in the last run folder)")
    title: str = setting("murine report", "heading of the page")
