"""What a fit is of: animals with their trials, how a model sees them, and what a checkpoint keeps of that.

What comes in: a `FitConfig`. What goes out: `FitData`, normalisations by animal, and the `FitSpec` of checkpoints. All
animals of a fit saw videos, or all saw images.
"""

from dataclasses import dataclass
from pathlib import Path

from neural_data.recording import Recording
from pretrain.checkpoint import newest_checkpoint, read_checkpoint
from pretrain.run_folder import RunFolder
from transfer.encoder_spec import AnimalFacts, EncoderSpec
from transfer.fit_config import FitConfig, WindowConfig
from transfer.fit_recordings import Animal, open_animals
from transfer.fit_trials import ChosenTrials, choose_trials
from transfer.fitted import FitSpec, Fitted, FittedAnimal
from transfer.normalisation import Normalisation, fit_normalisation
from transfer.validation import MEASURE
from transfer.windows import WindowPlan

# Of images, and of videos.
DEFAULT_NORMALISATIONS = ("sensorium2022", "sensorium2023")


@dataclass(frozen=True, eq=False)
class FitData:
    """The animals, which of their trials train and measure, what a model sees of one at a time, and how."""

    animals: dict[str, Animal]
    trials: ChosenTrials
    plan: WindowPlan
    normalisation: str
    stimulus_scale: float

    @property
    def recordings(self) -> dict[str, Recording]:
        """By animal."""
        return {name: animal.recording for name, animal in self.animals.items()}

    @property
    def video(self) -> bool:
        """Whether the animals saw videos; otherwise images."""
        return next(iter(self.animals.values())).recording.video


def open_data(config: FitConfig, initial: Fitted | None = None) -> FitData:
    """The animals, their trials and windows; what the config leaves open is as in an earlier fit.

    Raises:
        ValueError: animals that were shown different things, or a trial or tier that is not there.
    """
    paths = [*([config.recording] if config.recording else []), *config.recordings]
    animals = open_animals(paths, config.animals, config.trials.max_frames)
    recordings = {name: animal.recording for name, animal in animals.items()}
    kinds = {name: (recording.video, recording.dynamic) for name, recording in recordings.items()}
    first = next(iter(kinds))
    for name, kind in kinds.items():
        if kind != kinds[first]:
            raise ValueError(f"animals share a core, but one of {first!r} and {name!r} saw images, the other videos")
        if kind[0] != kind[1]:
            raise ValueError(f"{animals[name].path}: videos need responses in time, and images one response per trial")
    video = kinds[first][0]
    plan = WindowPlan(config.window.frames, config.window.stride, config.window.sampling)
    name, scale = config.normalisation or DEFAULT_NORMALISATIONS[video], config.stimulus_scale or 1.0
    if initial:
        plan = initial.plan if config.window == WindowConfig() else plan
        before = next(iter(initial.normalisations.values()))
        name, scale = config.normalisation or before.name, config.stimulus_scale or before.scale
    plan = plan if video else WindowPlan()
    chosen = choose_trials(recordings, config.trials, config.seed, shortest=max(plan.span, 1))
    return FitData(animals, chosen, plan, name, scale)


def require_same_neurons(animals: dict[str, Animal], initial: Fitted | None) -> None:
    """Fail where an animal of the earlier fit has other neurons now, whose readouts would be mixed up."""
    for name, animal in animals.items() if initial else ():
        if name in initial.animals and animal.neuron_ids != initial.neuron_ids[name]:
            raise ValueError(f"initial={initial.path}: animal {name!r} has other neurons there; rename the animal")


def normalised(data: FitData, run: RunFolder) -> dict[str, Normalisation]:
    """The normalisation of each animal, from the run's own checkpoint or, before there is one, of training trials."""
    if path := newest_checkpoint(run.path / "checkpoints"):
        animals = read_checkpoint(path)["model"]["animals"]
        return {name: Normalisation.from_state(animals[name]["normalisation"]) for name in data.animals}
    return {
        animal: fit_normalisation(data.normalisation, recording, data.trials.train[animal], data.stimulus_scale)
        for animal, recording in data.recordings.items()
    }


def fit_spec(
    config: FitConfig,
    data: FitData,
    spec: EncoderSpec,
    facts: dict[str, AnimalFacts],
    normalisations: dict[str, Normalisation],
) -> FitSpec:
    """What checkpoints hold beside the weights."""
    spaces = {normalisation.response_space for normalisation in normalisations.values()}
    (space,) = spaces
    animals = {
        name: FittedAnimal(
            facts=facts[name].saved(),
            normalisation=normalisations[name].state(),
            recording=str(Path(animal.path).resolve()),
            name=animal.recording.name,
            neuron_ids=animal.neuron_ids,
        )
        for name, animal in data.animals.items()
    }
    options = {
        "measure": MEASURE,
        "tiers": f"fold {config.trials.fold} of {config.trials.folds}" if config.trials.folds else "validation",
        "response_space": space,
        "first_frame": config.validation.first_frame if data.video else 0,
        "mean": "over neurons, then animals",
    }
    return FitSpec(spec, animals, data.plan, space, config.trials.max_frames, options)
