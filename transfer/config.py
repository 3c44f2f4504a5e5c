"""Every key of the `predictivity`, `tasks` and `report` stages: type, default, unit, range and meaning.

What comes in: nothing. What goes out: dataclasses in the form that `pretrain/config.py` describes.
"""

from dataclasses import dataclass

from pretrain.config import setting


@dataclass
class PredictivityConfig:
    """How well each layer of one or several models predicts recorded neurons, corrected for their noise."""

    checkpoint: str | None = setting(
        None, "run folder of a pretraining, a checkpoint file, a published file, or untrained_<model>"
    )
    recording: str | None = setting(
        None, "recording of any format that `murine data info` knows, or a folder of several recordings"
    )
    checkpoints: list[str] = setting([], "several checkpoints, to be compared in one table")
    model: str | None = setting(None, "network of a published file (default: the file's name says it)")
    layers: list[str] = setting([], "layers to fit (default: each model's own fit layers)")
    stimulus_view: str = setting(
        "evaluation",
        "`evaluation`: the model's published test transform, which crops the centre; `whole`: the whole stimulus",
        choices=("evaluation", "whole"),
    )
    mapping: str = setting(
        "pls",
        "`pls`, `ridge` (penalty by leave-one-out for each neuron), `one_to_one` (the best single feature); of whole "
        "populations `rsa`, `cka`",
        choices=("pls", "ridge", "one_to_one", "rsa", "cka"),
    )
    components: int = setting(25, "PLS components, fewer where there are fewer stimuli", low=1)
    component_choices: list[int] = setting(
        [], "numbers of PLS components to choose from by 5-fold cross-validation on train stimuli", low=1
    )
    correction: str = setting(
        "spearman_brown_split_half_denominator",
        "`spearman_brown_split_half_denominator`: divided by the corrected reliabilities of prediction and neuron, as "
        "in the published results; `spearman_brown_split_half`: by the uncorrected ones, and the ratio is corrected",
        choices=("spearman_brown_split_half_denominator", "spearman_brown_split_half"),
    )
    splits: int = setting(10, "random halvings of the stimuli (of videos, the clips) into train and test", low=1)
    halvings: int = setting(100, "random halvings of the repeats within each split", low=1)
    choice_halvings: int = setting(
        10, "of these, the halvings that the layer of the one number is chosen by, on train stimuli", low=1
    )
    train_fraction: float = setting(
        0.5, "share of the stimuli that the mapping is fitted on; 0 for rsa and cka of all stimuli", low=0, high=0.95
    )
    interanimal: str = setting(
        "holdout",
        "how well other animals predict each animal: `holdout`: all others' neurons of the area together; `pairwise`: "
        "each other animal alone, averaged; `none`",
        choices=("holdout", "pairwise", "none"),
    )
    num_source_units: int = setting(
        0,
        "neurons drawn at random from what each animal is predicted by, all of a source that has fewer; 0: all",
        low=0,
    )
    source_draws: int = setting(
        20, "draws of these neurons for each halving, each with halves of its own; for num_source_units", low=1
    )
    report_train: bool = setting(
        False, "score the stimuli that the mapping was fitted to as well, as `fitted`; takes twice as long"
    )
    tier: str | None = setting(None, "tier of the trials that are scored, such as `test` (default: all)")
    window_ms: list[float] = setting(
        [], "start and end after onset of the time that responses are averaged over (default: all of it)", "ms"
    )
    selection: str = setting(
        "none",
        "mouse-vision's choice of units, animals and time window from reliabilities and running: `neuropixels`, "
        "`two_photon`",
        choices=("none", "neuropixels", "two_photon"),
    )
    bin_ms: float = setting(
        100.0,
        "videos: length of a stimulus, whose response is the mean over it; at least one frame",
        "ms",
        1,
    )
    latency_ms: float = setting(
        0.0, "videos: how much later than the frames of a bin its responses are taken, rounded to frames", "ms", 0
    )
    skip_ms: float = setting(0.0, "videos: the beginning of each clip that is not scored", "ms", 0)
    block_ms: float = setting(
        3000.0, "videos: fewer than 4 clips are split into train and test by blocks of about this length", "ms", 1
    )
    gap_ms: float = setting(
        500.0, "videos: train bins this near to a test bin of the same clip are left out; at least one bin", "ms", 0
    )
    min_reliability: float = setting(
        0.5, "neurons with a lower split-half reliability are excluded, counted and listed", low=-1, high=1
    )
    random_projection: int = setting(0, "dimensions that features are randomly projected to first; 0: none", low=0)
    baselines: bool = setting(True, "add the same networks with random weights, Gabor energies and pixels")
    bootstrap: int = setting(2000, "resamples of the neurons for the 95 % interval", low=10)
    accelerator: str = setting("auto", "kind of device for all but the splits", choices=("auto", "cpu", "cuda", "mps"))
    memory_gb: float = setting(4.0, "features of a model that exceed this lie on disk while they are scored", "GB", 0)
    seed: int = setting(0, "seed of random weights, random projections and the bootstrap", low=0)
    out: str | None = setting(None, "run folder (default: runs/predictivity-<hash of the config>)")


# 1 and 5 times each power of ten from 1e-8 to 5e8 are 34 values. Of the published ones only the number, 33, and both
# ends are known; 5 is left out here, as it easily is where 1e-1, 5e-1, 1, 1e1 are written down one by one.
C_VALUES = [float(f"{digit}e{power}") for power in range(-8, 9) for digit in (1, 5) if (digit, power) != (5, 0)]


@dataclass
class TasksConfig:
    """What else a model's layers tell: textures, and objects with their position, pose and size."""

    checkpoint: str | None = setting(None, "run folder of a pretraining, a checkpoint file, or a published file")
    model: str | None = setting(None, "network of a published file (default: the file's name says it)")
    task: str = setting(
        "dtd",
        "`dtd`: classes of the Describable Textures; `hvm`: objects on natural backgrounds, what and where they are",
        choices=("dtd", "hvm"),
    )
    data: str | None = setting(None, "dtd: the folder `dtd` with `images` and `labels` below it; hvm: the HDF5 file")
    layers: list[str] = setting([], "layers to read (default: the model's fit layers, and a multi-stream's `avgpool`)")
    targets: list[str] = setting([], "hvm: category, instance, identity, pose, position, size (default: all)")
    splits: list[int] = setting([], "numbers of the splits into train and test images (default: all that there are)")
    split_file: str | None = setting(None, "hvm: splits as an .npz with train_0, test_0, ... (default: own ones)")
    own_splits: int = setting(10, "hvm without a split_file: random splits, stratified by instance", low=1)
    train_fraction: float = setting(0.8, "hvm without a split_file: share of train images", low=0.05, high=0.95)
    components: int = setting(1000, "principal components that a layer with more features is reduced to", low=1)
    c_values: list[float] = setting(
        C_VALUES, "values tried for C of the linear classifier, and for 1 / alpha of the ridge regression", low=1e-12
    )
    folds: int = setting(5, "parts of the train images, each left out once to choose C", low=2)
    baselines: bool = setting(False, "add the same network with random weights")
    jobs: int = setting(0, "cores that fit readouts and read images; 0: all", "cores", 0)
    accelerator: str = setting("auto", "kind of device for the activations", choices=("auto", "cpu", "cuda", "mps"))
    seed: int = setting(0, "seed of own splits and of the random weights", low=0)
    out: str | None = setting(None, "run folder (default: runs/tasks-<task>-<hash of the config>)")


@dataclass
class ReportConfig:
    """Run folders become one self-contained HTML page."""

    runs: list[str] = setting([], "run folders of `pretrain`, `fit`, `predictivity` and `score`, as [a,b,c]")
    out: str | None = setting(None, "page to write (default: report.html in the last run folder)")
    title: str = setting("murine report", "heading of the page")
