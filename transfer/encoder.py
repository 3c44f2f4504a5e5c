"""The encoding model: a core that all animals share, and for each animal a readout, with its gaze and its behaviour.

What comes in: images (batch, channels, height, width) or video (batch, channels, time, height, width), and where the
model uses them behaviour (batch, K[, time]) and pupil centre (batch, 2[, time]). What goes out: responses (batch,
neurons[, frames]), where frames are the last of the video that the core has features of.

    features = core(stimuli, behavior, pupil_center)
    responses = activation(modulator(readout(features, shift = shifter(pupil_center))))

This is the firing-rate model of neuralpredictors (https://github.com/sinzlab/neuralpredictors) and of all Sensorium
entries. A part is trained alone by freezing the others; only the readouts of the animals in a batch are computed, and
the shift only for readouts that have positions. `transfer.encoder_builder` makes one of a spec.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from transfer.activations import ELUPlusOne
from transfer.gaussian_readout import GaussianReadout
from transfer.readout import Readout


class Encoder(nn.Module):
    """Core, readouts by animal, and optional shifters, modulators and output activations.

    Args:
        core: `core(stimuli, behavior=..., pupil_center=..., animal=...)` gives features (batch, channels[, frames],
            height, width).
        activation: of animals that bring none of their own; by default ELU + 1.
    """

    def __init__(self, core: nn.Module, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.core = core
        self.readouts, self.shifters = nn.ModuleDict(), nn.ModuleDict()
        self.modulators, self.activations = nn.ModuleDict(), nn.ModuleDict()
        self.activation = ELUPlusOne() if activation is None else activation
        self.core_frozen = False

    @property
    def animals(self) -> list[str]:
        """The animals in the order in which they were added."""
        return list(self.readouts)

    def add_animal(
        self,
        animal: str,
        readout: Readout,
        shifter: nn.Module | None = None,
        modulator: nn.Module | None = None,
        activation: nn.Module | None = None,
    ) -> None:
        """Give the encoder another animal. ValueError where it has it already, or the name holds a dot."""
        if animal in self.readouts or "." in animal:
            why = "is there already" if animal in self.readouts else "holds a dot, which state dicts cannot"
            raise ValueError(f"animal {animal!r} {why}; there are {', '.join(self.animals) or 'none'}")
        parts = {"readouts": readout, "shifters": shifter, "modulators": modulator, "activations": activation}
        for name, part in parts.items():
            if part is not None:
                getattr(self, name)[animal] = part

    def remove_animal(self, animal: str) -> None:
        """Forget an animal with all of its parts, those in the core too."""
        self.readout_of(animal)
        if hasattr(self.core, "remove_animal"):
            self.core.remove_animal(animal)
        for parts in (self.readouts, self.shifters, self.modulators, self.activations):
            if animal in parts:
                del parts[animal]

    def readout_of(self, animal: str) -> Readout:
        """The readout of an animal. ValueError where there is no such animal."""
        if animal not in self.readouts:
            raise ValueError(f"the encoder has no animal {animal!r}; it has {', '.join(self.animals) or 'none'}")
        return self.readouts[animal]

    def keep_neurons(self, animal: str, chosen: Tensor | np.ndarray) -> None:
        """Drop all neurons of an animal but these, by indices or a boolean mask.

        Raises ValueError where the animal has a modulator or activation with parameters of its own per neuron, which
        would no longer fit.
        """
        readout = self.readout_of(animal)
        for parts in (self.modulators, self.activations):
            if animal in parts and any(readout.neurons in p.shape for p in parts[animal].parameters()):
                raise ValueError(f"the {type(parts[animal]).__name__} of {animal!r} has a parameter per neuron")
        readout.keep_neurons(chosen)

    def forward(
        self,
        stimuli: Tensor,
        animal: str | Sequence[str],
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Responses (batch, neurons[, frames]) of one animal.

        Where `animal` names one for each sample, responses by animal, each of its samples in the order of the batch.
        They go through the core together, unless it has parts of its own for animals.
        """
        one = isinstance(animal, str)
        for name in [animal] if one else dict.fromkeys(animal):
            self.readout_of(name)
        if one:
            features = self.core(stimuli, behavior=behavior, pupil_center=pupil_center, animal=animal)
            return self.respond(features, animal, behavior, pupil_center)
        apart = self.core_has_animals()
        features = None if apart else self.core(stimuli, behavior=behavior, pupil_center=pupil_center)
        found = {}
        for name in dict.fromkeys(animal):
            rows = torch.tensor([row for row, of in enumerate(animal) if of == name], device=stimuli.device)
            signals = [None if signal is None else signal[rows] for signal in (behavior, pupil_center)]
            own = self.core(stimuli[rows], *signals, animal=name) if apart else features[rows]
            found[name] = self.respond(own, name, *signals)
        return found

    def core_has_animals(self) -> bool:
        """Whether a part of the core is one animal's, as V1T's and ViV1T's can be."""
        named = (part for part in self.core.modules() if isinstance(part, nn.ModuleDict))
        return any(animal in part for part in named for animal in self.readouts)

    def respond(
        self, features: Tensor, animal: str, behavior: Tensor | None = None, pupil_center: Tensor | None = None
    ) -> Tensor:
        """Responses (batch, neurons[, frames]) of one animal to features that the core gave before.

        Signals that have more frames than the features count with their last ones.
        """
        frames = features.shape[2] if features.ndim == 5 else None
        behavior, pupil_center = (last_frames(signal, frames) for signal in (behavior, pupil_center))
        shift = None
        if animal in self.shifters and getattr(self.readouts[animal], "has_positions", True):
            if pupil_center is None:
                raise ValueError(f"animal {animal!r} has a shifter, which needs pupil_center")
            shift = self.shifters[animal](pupil_center, behavior)
        responses = self.readouts[animal](features, shift, behavior, pupil_center)
        if animal in self.modulators:
            responses = self.modulators[animal](responses, behavior, pupil_center)
        if animal in self.activations:
            return self.activations[animal](responses)
        return self.activation(responses)

    @torch.no_grad()
    def positions(self, animal: str) -> Tensor | None:
        """Where each neuron looks on the core's maps, (neurons, 2), x and y from -1 to 1; None without points.

        That is the mean of its points, moved as the shifter moves them where gaze and behaviour are 0, their mean once
        they are normalised. Without the shifter the same points can lie anywhere: what all of them share, it may hold.
        """
        readout = self.readout_of(animal)
        if not isinstance(readout, GaussianReadout):
            return None
        points = readout.points(1, sample=False)[0]
        if animal not in self.shifters:
            return points
        behavior = points.new_zeros(1, getattr(self.shifters[animal], "behavior_inputs", 0))
        return points + self.shifters[animal](points.new_zeros(1, 2), behavior)

    def freeze_core(self, frozen: bool = True) -> None:
        """Train readouts alone: no gradient in the core, whose batch norms and dropout stay in evaluation mode."""
        self.core_frozen = frozen
        self.core.requires_grad_(not frozen)
        self.core.train(self.training and not frozen)

    def train(self, mode: bool = True) -> "Encoder":
        """Training or evaluation mode; a frozen core stays in evaluation mode."""
        super().train(mode)
        if self.core_frozen:
            self.core.eval()
        return self

    def regularizer(self, animals: Sequence[str] | None = None) -> Tensor:
        """Penalties of the core and of the parts of some animals (default: all)."""
        parts = [self.core]
        for animal in self.animals if animals is None else animals:
            parts += [group[animal] for group in (self.readouts, self.shifters, self.modulators) if animal in group]
        penalties = [part.regularizer() for part in parts if hasattr(part, "regularizer")]
        return torch.stack([torch.as_tensor(penalty) for penalty in penalties]).sum()

    def parts_of(self, animal: str) -> Mapping[str, nn.Module]:
        """What belongs to one animal, by kind."""
        kinds = {"readout": self.readouts, "shifter": self.shifters, "modulator": self.modulators}
        kinds["activation"] = self.activations
        self.readout_of(animal)
        return {kind: parts[animal] for kind, parts in kinds.items() if animal in parts}


def last_frames(signal: Tensor | None, frames: int | None) -> Tensor | None:
    """The last frames of a signal (batch, K, time), as many as the features have; other signals as they are."""
    if signal is None or frames is None or signal.ndim == 2:
        return signal
    if signal.shape[-1] < frames:
        raise ValueError(f"a signal has {signal.shape[-1]} frames, fewer than the features, which have {frames}")
    return signal[..., signal.shape[-1] - frames :]
