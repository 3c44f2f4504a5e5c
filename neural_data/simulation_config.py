"""Every key of a simulated recording: type, default, unit, range, meaning.

Comes in: values given for keys. Goes out: `SimulationConfig`, of which `videos` holds the keys of a dynamic simulation;
`check_simulation` tells what does not fit in one line.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

# Size of receptive fields relative to VISp, growing with the order of areas in Siegle et al., Nature 592:86,
# 2021; round numbers for illustration, not measurements.
FIELD_SIZE = {"VISp": 1.0, "VISl": 1.4, "VISrl": 1.5, "VISal": 1.6, "VISpm": 1.8, "VISam": 1.9}

IMAGE_FORMATS = ("arrays", "sensorium_static", "experanto", "nwb", "nwb_two_photon", "packaged")
VIDEO_FORMATS = ("arrays", "sensorium_video", "experanto", "nwb", "nwb_two_photon")
ALLEN_SESSIONS = ("nwb", "nwb_two_photon")
IMAGE_KEYS = ("stimuli", "repeats", "size", "missing_repeats")

MAIN_TIERS = ("oracle", "live_test_main", "final_test_main")
BONUS_TIERS = ("live_test_bonus", "final_test_bonus")
STIMULUS_CLASSES = ("movie", "flashes", "noise", "drifting_gabor")


def setting(
    default: Any,
    meaning: str,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """A dataclass field with its notes, under the names that the command reads; a class makes a group of keys."""
    notes = {"meaning": meaning, "unit": unit, "low": low, "high": high, "choices": choices}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=notes)
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=notes)
    return dataclasses.field(default=default, metadata=notes)


@dataclass
class VideoConfig:
    """What a dynamic simulation shows, what moves with the animal's state, and what is recorded of it."""

    height: int = setting(36, "height of a video", "pixels", 16, 256)
    width: int = setting(64, "width of a video", "pixels", 16, 256)
    frames: int = setting(100, "length of a trial", "frames", 20, 10000)
    frame_rate_hz: float = setting(30.0, "frames per second, of videos and of all that is recorded", "Hz", 5, 240)
    train_clips: int = setting(24, "clips of each animal that are shown once", "clips", 1)
    test_clips: int = setting(2, f"clips that are repeated, in each of {', '.join(MAIN_TIERS)}", "clips", 1)
    bonus_clips: int = setting(0, f"clips that are repeated, in each of {', '.join(BONUS_TIERS)}", "clips", 0)
    classes: list[str] = setting(["movie"], "kinds of clips, in turn, outside of the bonus", choices=STIMULUS_CLASSES)
    bonus_classes: list[str] = setting(
        ["flashes", "noise", "drifting_gabor"], "kinds of clips, in turn, of the bonus", choices=STIMULUS_CLASSES
    )
    repeats: int = setting(10, "presentations of each clip that is repeated", "presentations", 2)
    missing_repeats: int = setting(0, "up to so many presentations of such a clip are lost", "presentations", 0)
    withheld: list[str] = setting([], "tiers whose responses are not published", choices=MAIN_TIERS + BONUS_TIERS)
    unusable_trials: int = setting(0, "trials of tier `none`, shown beside the others", "trials", 0)
    short_clips: float = setting(0.1, "share of clips that end after four fifths of the length", low=0, high=1)
    lost_frames: float = setting(0.1, "share of trials that lack their last frame", low=0, high=1)
    features: int = setting(6, "features of the shared core for each area", "features", 2, 1000)
    features_per_neuron: int = setting(2, "features that a neuron reads", "features", 1)
    response: str = setting(
        "spikes",
        "what is recorded: spike counts, calcium traces, or deconvolved ones, which are never negative",
        choices=("spikes", "calcium", "deconvolved"),
    )
    rise_ms: float = setting(50.0, "time constant with which calcium rises", "ms", 1)
    decay_ms: float = setting(500.0, "time constant with which calcium decays", "ms", 2)
    noise: float = setting(
        0.2, "noise of calcium traces, standard deviation in units of the peak that one spike causes", low=0
    )
    blur_ms: float = setting(30.0, "standard deviation of the blur that deconvolution leaves", "ms", 1)
    behavior_gain: float = setting(
        0.3, "standard deviation over time of the logarithm of the gain; 0: behaviour changes no rate", low=0, high=2
    )
    gaze_shift: float = setting(
        1.5, "standard deviation of the horizontal gaze, twice that of the vertical one", "pixels", 0, 20
    )
    record_behavior: bool = setting(True, "pupil dilation and running speed are part of the recording")
    record_pupil_center: bool = setting(True, "the place of the pupil is part of the recording")


@dataclass
class SimulationConfig:
    """A recording of simulated neurons that look at natural images, or one for each animal of videos."""

    out: str | None = setting(None, "folder that receives the recording and its truth")
    animals: int = setting(3, "animals, which see the same stimuli", "animals", 1)
    areas: list[str] = setting(["VISp", "VISl"], "areas recorded in each animal", choices=tuple(FIELD_SIZE))
    neurons_per_area: int = setting(40, "neurons in each area of each animal", "neurons", 1)
    stimuli: int = setting(118, "natural images, grey", "images", 10)
    repeats: int = setting(20, "presentations of each stimulus", "presentations", 2)
    size: int = setting(64, "side of a stimulus", "pixels", 24, 256)
    reliability: float = setting(
        0.8, "median split-half reliability, Spearman-Brown, of the neurons that fire", low=0.01, high=0.99
    )
    dead_neurons: float = setting(0.05, "share of the neurons that never fire", low=0, high=1)
    complex_cells: float = setting(0.5, "share of complex cells among the neurons that fire", low=0, high=1)
    exponent: float = setting(1.0, "power of the amplitude: 1 rectified, 2 squared", choices=(1.0, 2.0))
    missing_repeats: int = setting(
        0, "fewer repeats of a random half of the stimuli, for each animal but the first", "presentations", 0
    )
    seed: int = setting(0, "seed of stimuli, neurons and spikes", low=0)
    format: str = setting("arrays", "layout of the files", choices=tuple(dict.fromkeys(IMAGE_FORMATS + VIDEO_FORMATS)))
    dynamic: bool = setting(False, "videos and responses in time, one recording for each animal, instead of images")
    videos: VideoConfig = setting(VideoConfig, "what `dynamic=true` adds")


def check_simulation(config: SimulationConfig) -> None:
    """Raises ValueError, one line, for a value out of its range or for keys that contradict each other."""
    _check_ranges(config)
    _check_unused(config)
    if not config.areas or len(set(config.areas)) < len(config.areas):
        raise ValueError(f"areas: found {config.areas}, expected at least one area and none twice")
    if config.dynamic:
        _check_repeats("videos.", config.videos)
        _check_videos(config.videos)
        if config.format in ALLEN_SESSIONS:
            _check_session(config)
    else:
        _check_repeats("", config)


def _check_ranges(config: Any, group: str = "") -> None:
    for field in dataclasses.fields(config):
        notes, given, name = field.metadata, getattr(config, field.name), group + field.name
        if dataclasses.is_dataclass(given):
            _check_ranges(given, f"{name}.")
            continue
        for value in given if isinstance(given, list) else [given]:
            low, high, choices = notes["low"], notes["high"], notes["choices"]
            if choices is not None and value not in choices:
                raise ValueError(f"{name}: found {value!r}, expected one of {', '.join(map(str, choices))}")
            if (low is not None and value < low) or (high is not None and value > high):
                limits = f"at least {low}" if high is None else f"{low} to {high}"
                raise ValueError(f"{name}: found {value}, expected {limits}")


def _check_unused(config: SimulationConfig) -> None:
    """A key that would change nothing is a mistake of the one who set it."""
    default = SimulationConfig()
    if not config.dynamic and config.videos != default.videos:
        raise ValueError("videos: set, but dynamic is false; expected dynamic=true")
    changed = [name for name in IMAGE_KEYS if config.dynamic and getattr(config, name) != getattr(default, name)]
    if changed:
        raise ValueError(f"{changed[0]}: is a key of images, found with dynamic=true; expected keys of videos")
    formats = VIDEO_FORMATS if config.dynamic else IMAGE_FORMATS
    if config.format not in formats:
        kind = "videos" if config.dynamic else "images (dynamic=true makes videos)"
        raise ValueError(f"format: found {config.format!r}, expected one of {', '.join(formats)} for {kind}")


def _check_repeats(group: str, config: SimulationConfig | VideoConfig) -> None:
    if config.missing_repeats > config.repeats - 2:
        raise ValueError(
            f"{group}missing_repeats: found {config.missing_repeats} of {config.repeats} repeats, expected 2 to be left"
        )


def _check_videos(videos: VideoConfig) -> None:
    for name in ("classes", "bonus_classes"):
        if not getattr(videos, name):
            raise ValueError(f"videos.{name}: found no kind of clips, expected at least one")
    if videos.rise_ms >= videos.decay_ms:
        raise ValueError(f"videos.rise_ms: found {videos.rise_ms}, expected less than decay_ms, {videos.decay_ms}")


def _check_session(config: SimulationConfig) -> None:
    """What files of sessions hold: spikes, from which those of two-photon make calcium, and all of them."""
    if config.videos.response != "spikes":
        raise ValueError(
            f"videos.response: found {config.videos.response!r}, expected 'spikes' for format={config.format}, whose "
            "dF/F, if any, is made of them"
        )
    if config.videos.withheld:
        raise ValueError(
            f"videos.withheld: found {', '.join(config.videos.withheld)}, but format={config.format} withholds nothing"
        )
