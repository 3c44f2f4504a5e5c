"""When a simulated session of the Allen Brain Observatory shows what.

Comes in: a `Recording` of one animal. Goes out: a `Schedule`: one row per presentation, of an image or of one frame of
a movie, as the tables of the released sessions have them, and the stimuli by the names that they have there.

Images are shown as there: 0.25 s each, without gaps, in rounds of all images and one grey screen in a random order, in
three blocks. Of videos each one is a movie of its own, shown when its trials say.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from neural_data.presentations import GREY
from neural_data.recording import Recording
from neural_data.stimulus_templates import movie_name

PRESENTED_S, SPONTANEOUS_S = 0.25, 30.0  # an image; grey before, between and after the blocks
BLOCKS = 3
GAP_S = 0.5  # between movies whose times are unknown
SCENES = "natural_scenes"


@dataclass(frozen=True)
class Schedule:
    """`shown`: one row per presentation in the order of time, with `stimulus_name`, `frame` (float: the image, -1 for
    grey, or the frame of the movie), `start_time`, `stop_time` (s), `stimulus_block`, `trial` (row of the recording's
    trials, -1 for grey) and `sample` (of the trial's time axis; 0 for images). `spontaneous`: start and end in s of
    grey stretches. `templates`: images or frames uint8 (n, height, width) by name. `stop_s`: when the session ends.
    """

    shown: pd.DataFrame
    spontaneous: list[tuple[float, float]]
    templates: dict[str, np.ndarray]
    stop_s: float


def schedule_of(recording: Recording, rng: np.random.Generator) -> Schedule:
    """The schedule of a recording of images, in an order that `rng` draws, or of videos, in that of its trials.

    Raises ValueError where a session cannot hold the recording.
    """
    name = recording.name
    if len(recording.animals) != 1:
        raise ValueError(f"{name}: has {len(recording.animals)} animals, a session has one")
    if (recording.neurons["area"] == "").any():
        raise ValueError(f"{name}: a neuron has no area, which a session keeps")
    if len(recording.stimuli.shape) != (4 if recording.video else 3) or recording.dynamic != recording.video:
        raise ValueError(
            f"{name}: a session is written of grey images and responses without a time axis, or of grey videos and "
            "responses in time"
        )
    if recording.withheld.any():
        raise ValueError(f"{name}: responses to {recording.withheld.sum()} trials are withheld; a session has them all")
    return _movies(recording) if recording.video else _images(recording, rng)


def movie_lengths(trials: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Which row of the stimuli each movie is, and how many frames of it all of its showings have, by its name.

    Those that are repeated come first, so that animals that saw the same ones have them under the same names.
    """
    shown = trials.groupby("stimulus").agg(repeat=("repeat", "max"), frames=("frames", "min"))
    ordered = pd.concat([shown[shown["repeat"] > 0], shown[shown["repeat"] == 0]])
    rows = zip(ordered.index, ordered["frames"], strict=True)
    return {movie_name(number): (int(row), int(frames)) for number, (row, frames) in enumerate(rows, start=1)}


def _movies(recording: Recording) -> Schedule:
    trials, rate_hz = recording.trials.assign(frames=recording.frames), recording.sampling_rate_hz
    movies = movie_lengths(trials)
    facts = pd.DataFrame([(row, name, n) for name, (row, n) in movies.items()], columns=["stimulus", "name", "frames"])
    of_trial = facts.set_index("stimulus").loc[trials["stimulus"]].reset_index()
    # A monitor shows a new frame at its own ticks.
    onset_s = np.floor((SPONTANEOUS_S + _onsets_s(trials, rate_hz)) * rate_hz + 0.5) / rate_hz
    in_time = np.argsort(onset_s, kind="stable")
    frames = of_trial["frames"].to_numpy()[in_time]
    trial = np.repeat(in_time, frames)
    sample = np.arange(len(trial)) - np.repeat(np.cumsum(frames) - frames, frames)
    name = of_trial["name"].to_numpy()[trial]
    shown = pd.DataFrame(
        {
            "stimulus_name": name,
            "frame": sample.astype(float),
            "start_time": onset_s[trial] + sample / rate_hz,
            "stop_time": onset_s[trial] + (sample + 1) / rate_hz,
            "stimulus_block": np.cumsum(name != np.append("", name[:-1])) - 1.0,
            "trial": trial,
            "sample": sample,
        }
    )
    end_s = float(shown["stop_time"].iloc[-1])
    spontaneous = [(0.0, SPONTANEOUS_S), (end_s, end_s + SPONTANEOUS_S)]
    templates = {name: np.asarray(recording.stimuli[row, :n]) for name, (row, n) in movies.items()}
    return Schedule(shown, spontaneous, templates, end_s + SPONTANEOUS_S)


def _onsets_s(trials: pd.DataFrame, rate_hz: float) -> np.ndarray:
    """When each trial begins: when its table says, or one after the other."""
    if "start_s" in trials:
        return trials["start_s"].to_numpy(float)
    duration_s = trials["frames"].to_numpy() / rate_hz + GAP_S
    return np.cumsum(duration_s) - duration_s


def _images(recording: Recording, rng: np.random.Generator) -> Schedule:
    trials = recording.trials
    seen = ~np.isnan(np.asarray(recording.responses[:])).all(axis=1)
    rounds = [np.flatnonzero((trials["repeat"] == repeat).to_numpy() & seen) for repeat in np.unique(trials["repeat"])]
    now_s, rows, spontaneous = 0.0, [], []
    for block, chosen in enumerate(np.array_split(np.arange(len(rounds)), min(BLOCKS, len(rounds)))):
        spontaneous.append((now_s, now_s + SPONTANEOUS_S))
        now_s += SPONTANEOUS_S
        for number in chosen:
            order = rng.permutation(np.append(rounds[number], -1))
            rows += [(trial, now_s + place * PRESENTED_S, float(block)) for place, trial in enumerate(order)]
            now_s += len(order) * PRESENTED_S
    spontaneous.append((now_s, now_s + SPONTANEOUS_S))
    shown = pd.DataFrame(rows, columns=["trial", "start_time", "stimulus_block"])
    frame = np.append(trials["stimulus"].to_numpy(float), GREY)  # the last one stands for grey
    shown = shown.assign(
        stimulus_name=SCENES,
        frame=frame[shown["trial"]],
        stop_time=shown["start_time"] + PRESENTED_S,
        sample=0,
    )
    return Schedule(shown, spontaneous, {SCENES: np.asarray(recording.stimuli[:])}, now_s + SPONTANEOUS_S)
