"""What a simulated animal is shown: its clips, and the trials of its session in their order.

Comes in: a `SimulationConfig` and the number of an animal. Goes out: a table of clips and the table of trials, in the
tiers of the Sensorium 2023 competition (Turishcheva et al., 2023, https://arxiv.org/abs/2305.19654): training clips are
shown once and belong to one animal, all others are repeated and shown to all animals.

Every random draw of a dynamic simulation has a generator of its own, `stream`, so that any trial can be made alone.
"""

from functools import lru_cache

import numpy as np
import pandas as pd

from neural_data.natural_videos import make_clip
from neural_data.simulation_config import BONUS_TIERS, MAIN_TIERS, SimulationConfig
from neural_data.tables import trial_table

PURPOSES = ("features", "clip", "neurons", "session", "behavior", "reliability", "spikes")
SHORT = 0.8  # of the length: 240 of 300 frames
GAP_S = 0.5  # grey between trials
CLIPS_KEPT = 32  # 22 MB of 300 frames of 36 x 64 pixels
EVERYONE = 0  # in place of an animal's number


def stream(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """The generator of one purpose (see PURPOSES), such as the spikes of one animal in one trial."""
    return np.random.default_rng([seed, PURPOSES.index(purpose), *numbers])


def clip_table(config: SimulationConfig, animal: int) -> pd.DataFrame:
    """The stimuli of an animal, numbered from 1: `tier`, `stimulus_class`, `frames`, and the `owner` and `number` of
    which a clip is made."""
    videos = config.videos
    counts = {"train": videos.train_clips} | dict.fromkeys(MAIN_TIERS, videos.test_clips)
    counts |= dict.fromkeys(BONUS_TIERS, videos.bonus_clips) | {"none": videos.unusable_trials}
    tier = np.repeat(list(counts), list(counts.values()))
    owner = np.where(np.isin(tier, ["train", "none"]), animal, EVERYONE)
    within = pd.Series(owner).groupby(owner).cumcount().to_numpy()
    of_tier = pd.Series(tier).groupby(tier).cumcount().to_numpy()
    kinds = [
        (videos.bonus_classes if name in BONUS_TIERS else videos.classes, place)
        for name, place in zip(tier, of_tier, strict=True)
    ]
    short = [
        stream(config.seed, "session", *key).random() < videos.short_clips for key in zip(owner, within, strict=True)
    ]
    return pd.DataFrame(
        {
            "tier": tier,
            "stimulus_class": [classes[place % len(classes)] for classes, place in kinds],
            "frames": np.where(short, round(SHORT * videos.frames), videos.frames),
            "owner": owner,
            "number": within,
        }
    )


def render_clip(config: SimulationConfig, clip: pd.Series) -> np.ndarray:
    """The frames of one row of the table of clips, uint8 (frames, height, width), read-only."""
    videos = config.videos
    size = (int(clip["frames"]), videos.height, videos.width, videos.frame_rate_hz)
    return _rendered(clip["stimulus_class"], *size, config.seed, int(clip["owner"]), int(clip["number"]))


def session_table(config: SimulationConfig, clips: pd.DataFrame, animal: int) -> pd.DataFrame:
    """The trials of an animal in the order in which they are shown, which is random.

    Columns as `tables.py` lists them: `frames` that were recorded, `withheld`, `stimulus_class`, `trial_id` and
    `start_s` as well.
    """
    videos, rng = config.videos, stream(config.seed, "session", animal)
    repeated = clips["tier"].isin(MAIN_TIERS + BONUS_TIERS)
    lost = rng.integers(0, videos.missing_repeats + 1, len(clips))
    shown = rng.permutation(np.repeat(np.arange(len(clips)), np.where(repeated, videos.repeats - lost, 1)))
    of_clip = clips.iloc[shown].reset_index(drop=True)
    repeat = pd.Series(shown).groupby(shown).cumcount().to_numpy()
    duration_s = of_clip["frames"] / videos.frame_rate_hz + GAP_S
    return trial_table(shown, repeat, of_clip["tier"].to_numpy()).assign(
        frames=of_clip["frames"] - (rng.random(len(shown)) < videos.lost_frames),
        withheld=of_clip["tier"].isin(videos.withheld),
        stimulus_class=of_clip["stimulus_class"].astype("str"),
        trial_id=[str(number) for number in range(len(shown))],
        start_s=duration_s.cumsum() - duration_s,
    )


@lru_cache(maxsize=CLIPS_KEPT)
def _rendered(
    kind: str, frames: int, height: int, width: int, frame_rate_hz: float, seed: int, owner: int, number: int
) -> np.ndarray:
    """Kept for a while: a clip is shown ten times, and looked at beside the responses to it."""
    clip = make_clip(kind, frames, height, width, frame_rate_hz, stream(seed, "clip", owner, number))
    clip.flags.writeable = False
    return clip
