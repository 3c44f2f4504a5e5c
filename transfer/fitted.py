"""A fitted encoder, as a run folder of `murine fit` holds it.

What comes in: a run folder, or one of its checkpoint files, read as data. What goes out: `Fitted`: the encoder in
evaluation mode, and all that predicting with it needs: how its input is normalised for each animal, what it sees at a
time, in which space its responses are, which recordings it was fitted on and how well, measured how.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transfer.encoder import Encoder
    from transfer.normalisation import Normalisation
    from transfer.published_encoders import EncoderSpec
    from transfer.windows import WindowPlan


@dataclass(frozen=True)
class Fitted:
    """A fitted encoder with everything that its predictions depend on.

    `encoder`: in evaluation mode, on the CPU. `spec`: how it was built. `normalisations`: by animal, with the
    statistics of the training trials. `plan`: the window it was trained on. `recordings`: path of each animal's
    recording. `neuron_ids`: by animal, in the order of the responses. `response_space`: "raw", "per_frame_std" or
    "per_neuron_std". `scores`: validation by name, and `score_options`: what they are of. `averaged`: whether these
    are the moving averages of the weights.
    """

    encoder: "Encoder"
    spec: "EncoderSpec"
    normalisations: Mapping[str, "Normalisation"]
    plan: "WindowPlan"
    recordings: Mapping[str, str]
    neuron_ids: Mapping[str, list[str]]
    response_space: str
    scores: Mapping[str, float]
    step: int
    epoch: int
    path: Path
    averaged: bool = False
    max_frames: int = 0
    score_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def animals(self) -> list[str]:
        """The animals that it has readouts of."""
        return self.encoder.animals


def load_fitted(path: Path | str, averaged: bool | None = None) -> Fitted:
    """The best encoder of a run folder of `murine fit`, or that of one checkpoint file.

    Args:
        path: run folder or file; of a folder the checkpoint of the best epoch (`best.pt`), else the newest.
        averaged: take the moving average of the weights; None: where there is one.

    Raises:
        FileNotFoundError: nothing there, or a run folder without an intact checkpoint.
        ValueError: the file is damaged, is no fit, or has no average that was asked for.
    """
    raise NotImplementedError
