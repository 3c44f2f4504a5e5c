"""What a score is of: the options in which the public programs differ, each with one name.

What comes in: a team's name, and options that are to differ from it. Goes out: a `ScoreProtocol`, which no score
travels without: `options()` are the columns beside it in tables, and what a checkpoint keeps of it.

Two scores can be compared where these are equal, and not otherwise: multiplying predictions of 2023 by the per-frame
precision alone changed the winner's score on the server from 0.249 to 0.272. Frames count from 0. Sources: ecker-lab/
sensorium_2023, lRomul/sensorium, zhuyu-cs/Dynamic-VFM, bryanlimy/ViV1T, bryanlimy/ViV1T-closed-loop, sinzlab/sensorium,
bryanlimy/V1T; of 300 frames

    organisers              50 to 299, per-frame standardised, all neurons of all animals alike
    dwiseneuro              50 to 298, raw, animals alike (lRomul's folds); `dwiseneuro_submission`: standardised
    viv1t                   50 to 299, per-frame standardised, animals alike; `viv1t_submission`: 51 to 299
    dynamic_vfm             51 to 299, of 299 frames 50 to 298: the last 249 at most (its submission)
    viv1t_closed_loop       50 to 299, per-neuron standardised, animals alike
    sensorium2022, v1t      images: per-neuron standardised; neurons alike, animals alike

Nobody published the program of the competition's server.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from neural_data.trial_length import RULES
from transfer.metrics import TO_AVERAGE
from transfer.response_space import RESPONSE_SPACES

AVERAGES = ("neurons", "animals")
UNDEFINED = ("zero", "omit", "keep")


@dataclass(frozen=True)
class ScoreProtocol:
    """The options of a score.

    Args:
        name: of the team whose options these are, with `+` where any of them was changed.
        trial_length: rule of `neural_data/trial_length.py` that says where a trial ends.
        max_frames: frames of a trial that are looked at, from its first; 0 for all.
        response_space: unit of responses and predictions.
        first_frame: the first frame that counts.
        drop_last: frames at the end that do not count.
        most_frames: of what is left, only so many of the last; 0 for all.
        average: "neurons": one mean over the neurons of all animals; "animals": the mean of the animals' means.
        undefined: what a neuron counts for whose score is NaN: "zero" (ecker-lab), "omit": nothing, "keep": NaN.
        to_average: definition of the correlation to average.
        least_explainable: FEVE counts neurons of which this share of the variance is explainable, or more.
    """

    name: str
    trial_length: str = "all"
    max_frames: int = 0
    response_space: str = "per_frame_std"
    first_frame: int = 50
    drop_last: int = 0
    most_frames: int = 0
    average: str = "animals"
    undefined: str = "keep"
    to_average: str = "per_clip"
    least_explainable: float = 0.15

    def __post_init__(self) -> None:
        allowed = {
            "trial_length": RULES,
            "response_space": RESPONSE_SPACES,
            "average": AVERAGES,
            "undefined": UNDEFINED,
            "to_average": TO_AVERAGE,
        }
        for option, choices in allowed.items():
            if getattr(self, option) not in choices:
                raise ValueError(f"{option}: found {getattr(self, option)!r}, expected one of {', '.join(choices)}")
        for option in ("max_frames", "first_frame", "drop_last", "most_frames"):
            if getattr(self, option) < 0:
                raise ValueError(f"{option}: found {getattr(self, option)} frames, expected 0 or more")

    def counted(self, frames: int) -> slice:
        """The frames that count of a trial with that many. Raises ValueError where none do."""
        stop = (min(frames, self.max_frames) if self.max_frames else frames) - self.drop_last
        start = max(self.first_frame, stop - self.most_frames if self.most_frames else 0)
        if start >= stop:
            raise ValueError(
                f"protocol {self.name}: no frame counts of a trial of {frames} frames "
                f"(first_frame={self.first_frame}, drop_last={self.drop_last})"
            )
        return slice(start, stop)

    def options(self) -> dict[str, Any]:
        """The protocol as plain data, to be kept beside a score."""
        return {f"protocol_{name}" if name == "name" else name: value for name, value in asdict(self).items()}

    def one_number(self, scores: Mapping[str, np.ndarray]) -> float:
        """The mean of scores (neurons,) by animal, over neurons or animals, NaN where `undefined` leaves any.

        Raises ValueError where there is no animal.
        """
        if not scores:
            raise ValueError("no animal has a score to average")
        if self.average == "neurons":
            return self.mean(np.concatenate(list(scores.values())))
        return self.mean(np.array([self.mean(values) for values in scores.values()]))

    def mean(self, values: np.ndarray) -> float:
        """Mean of values, some of which may be NaN; NaN of nothing."""
        values = np.asarray(values, np.float64)
        if self.undefined == "zero":
            values = np.nan_to_num(values, posinf=np.inf, neginf=-np.inf)
        elif self.undefined == "omit":
            values = values[~np.isnan(values)]
        return float(values.mean()) if len(values) else float("nan")


IMAGES = {"response_space": "per_neuron_std", "first_frame": 0, "to_average": "concatenated"}
PRESETS = {
    protocol.name: protocol
    for protocol in (
        ScoreProtocol("organisers", "statistics", average="neurons", undefined="zero", to_average="concatenated"),
        ScoreProtocol("dwiseneuro", "responses", max_frames=300, response_space="raw", drop_last=1),
        ScoreProtocol("dwiseneuro_submission", "responses", max_frames=300, drop_last=1),
        ScoreProtocol("viv1t", "video", max_frames=300),
        ScoreProtocol("viv1t_submission", "video", max_frames=300, first_frame=51),
        ScoreProtocol("dynamic_vfm", "statistics", most_frames=249, average="neurons", undefined="zero"),
        ScoreProtocol("viv1t_closed_loop", "video", response_space="per_neuron_std", undefined="omit"),
        ScoreProtocol("sensorium2022", average="neurons", undefined="zero", **IMAGES),
        ScoreProtocol("v1t", **IMAGES),
    )
}


def score_protocol(preset: str, **changed: Any) -> ScoreProtocol:
    """A team's protocol, with the options that are not None changed; the name then ends in `+`.

    Raises ValueError for an unknown team, or an option that is out of its range.
    """
    if preset not in PRESETS:
        raise ValueError(f"protocol: found {preset!r}, expected one of {', '.join(PRESETS)}")
    protocol = PRESETS[preset]
    known = {field.name for field in fields(ScoreProtocol)} - {"name"}
    if unknown := set(changed) - known:
        raise ValueError(f"protocol: no option {sorted(unknown)[0]!r}; there are {', '.join(sorted(known))}")
    different = {
        name: value for name, value in changed.items() if value is not None and value != getattr(protocol, name)
    }
    return replace(protocol, name=f"{preset}+", **different) if different else protocol
