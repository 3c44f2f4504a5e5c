"""A fitted encoder, as a run folder of `murine fit` holds it.

What comes in: a run folder, or one of its checkpoint files, read as data. What goes out: `Fitted`: the encoder in
evaluation mode, and all that predicting with it needs: how its input is normalised for each animal, what it sees at a
time, in which space its responses are, which recordings it was fitted on and how well, measured how.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.checkpoint import checkpoint_file, is_ours, read_checkpoint
from pretrain.durable import is_intact
from pretrain.weights_file import read_weights

if TYPE_CHECKING:
    from transfer.encoder import Encoder
    from transfer.encoder_spec import EncoderSpec
    from transfer.normalisation import Normalisation
    from transfer.windows import WindowPlan

KIND = "encoder"
BEST = "best.pt"


@dataclass(frozen=True, eq=False)
class FittedAnimal:
    """What a checkpoint holds of one animal beside its weights: plain values and tensors.

    `facts`: `AnimalFacts.saved()`. `normalisation`: `Normalisation.state()`. `recording`: path, and `name`: that of the
    recording there. `neuron_ids`: in the order of the responses.
    """

    facts: dict[str, Any]
    normalisation: dict[str, Any]
    recording: str
    name: str
    neuron_ids: list[str]


@dataclass(frozen=True, eq=False)
class FitSpec:
    """How to build a fitted encoder again, and what its predictions depend on; a checkpoint holds it as `model`."""

    encoder: "EncoderSpec"
    animals: dict[str, FittedAnimal]
    plan: "WindowPlan"
    response_space: str
    max_frames: int
    score_options: dict[str, Any]
    kind: str = KIND


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted encoder with everything that its predictions depend on.

    `encoder`: in evaluation mode, on the CPU. `spec`: how it was built. `normalisations`: by animal, with the
    statistics of the training trials. `plan`: the window it was trained on. `recordings`: path of each animal's
    recording, and `names`: that of the recording there. `neuron_ids`: by animal, in the order of the responses.
    `response_space`: "raw", "per_frame_std" or "per_neuron_std". `max_frames`: trials were cut to so many, 0: not.
    `scores`: validation by animal, and `score_options`: what they are of. `averaged`: whether these are the moving
    averages of the weights.
    """

    encoder: "Encoder"
    spec: "EncoderSpec"
    normalisations: Mapping[str, "Normalisation"]
    plan: "WindowPlan"
    recordings: Mapping[str, str]
    names: Mapping[str, str]
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
    from transfer.encoder_builder import build_encoder
    from transfer.encoder_spec import AnimalFacts, EncoderSpec
    from transfer.normalisation import Normalisation
    from transfer.windows import WindowPlan

    file = fitted_file(path)
    state = read_checkpoint(file)
    model = state["model"]
    if model.get("kind") != KIND:
        raise ValueError(f"{file} is a backbone of `murine pretrain`, expected a run of `murine fit`")
    animals = {name: FittedAnimal(**animal) for name, animal in model["animals"].items()}
    spec = EncoderSpec(**model["encoder"])
    encoder = build_encoder(spec, {name: AnimalFacts(**animal.facts) for name, animal in animals.items()})
    if averaged and not state.get("average"):
        raise ValueError(f"{file} holds no average of weights; fit with average.decay, or leave averaged out")
    averaged = bool(state.get("average")) if averaged is None else averaged
    encoder.load_state_dict(state["average" if averaged else "backbone"])
    return Fitted(
        encoder=encoder.eval().requires_grad_(True),
        spec=spec,
        normalisations={name: Normalisation.from_state(animal.normalisation) for name, animal in animals.items()},
        plan=WindowPlan(**model["plan"]),
        recordings={name: animal.recording for name, animal in animals.items()},
        names={name: animal.name for name, animal in animals.items()},
        neuron_ids={name: animal.neuron_ids for name, animal in animals.items()},
        response_space=model["response_space"],
        scores=state["remembered"].get("validation", {}),
        step=state["step"],
        epoch=state["epoch"],
        path=file.resolve(),
        averaged=averaged,
        max_frames=model["max_frames"],
        score_options=model["score_options"],
    )


def fitted_file(path: Path | str) -> Path:
    """The checkpoint that is meant: of a run folder that of the best epoch, where it is intact, else the newest."""
    best = Path(path).expanduser() / "checkpoints" / BEST
    return best if best.is_file() and is_intact(best) else checkpoint_file(path)


def is_fit(path: Path | str) -> bool:
    """Whether a run folder or file is of `murine fit`. Raises FileNotFoundError where there is nothing."""
    state = read_weights(fitted_file(path))
    return is_ours(state) and state["model"].get("kind") == KIND
