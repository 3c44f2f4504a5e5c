"""What an encoder is fitted to: the responses of many animals, in the loss's scaling, with penalties.

What comes in: a step's batch, by animal: `video` (batch, channels, time, height, width) or `images` (batch, channels,
height, width); `behavior` (batch, K[, time]) and `pupil_center` (batch, 2[, time]) where there are any; `responses`
(batch, neurons[, time]); `valid` (batch, time), False at padding; `index` (batch,); and where samples do not count the
same `weight` (batch,). What goes out: `{"loss", "response_loss", "regularizer"}` of parts of the step, which are added
up before one step of the optimiser.

Predictions count for the last frames of a window, as many as the core has features of. A part is one animal's trials,
or fewer of them (micro-batches). With the scale `samples` (DwiseNeuro) all animals go through the core together, so
that batch norm sees the whole batch. Penalties are added once per animal and step, those of the core too, as in
neuralpredictors' trainer, V1T and all of their descendants; a micro-batch has its share of them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.objectives.objective import full_precision
from transfer.distillation import Distillation
from transfer.encoder import Encoder
from transfer.losses import SAMPLES, ResponseLoss

AnimalBatch = Mapping[str, Tensor]
StepBatch = Mapping[str, AnimalBatch]
# One part of a step: `animals`, their batches; `sizes`, how many trials each has in the whole step; and `weight`, what
# all samples of the step weigh together.
Part = dict[str, Any]
STIMULI = ("video", "images")
INPUTS = (*STIMULI, "behavior", "pupil_center", "valid")


class FitObjective(nn.Module):
    """An encoder, called `backbone` as the training loop's checkpoints have it, and its loss.

    Args:
        encoder: with a readout for each animal in the batches.
        loss: see `transfer.losses.create_loss`.
        distillation: fills the animals without responses to a clip; only with the scale `samples`.

    Raises:
        ValueError: distillation with another scale, or a teacher that lacks an animal.
    """

    def __init__(self, encoder: Encoder, loss: ResponseLoss, distillation: Distillation | None = None) -> None:
        super().__init__()
        self.backbone = encoder
        self.loss = loss
        self.distillation = distillation
        if distillation is None:
            return
        if loss.scale != SAMPLES:
            raise ValueError(f"distillation weighs samples, and the loss's scale is {loss.scale}; take {SAMPLES!r}")
        if missing := [animal for animal in encoder.animals if animal not in distillation.teacher.animals]:
            raise ValueError(f"the teacher has no animal {missing[0]!r}; it has {distillation.teacher.animals}")

    def parts(self, batch: StepBatch, accumulate: int = 1) -> list[Part]:
        """The parts of a step, whose losses are summed.

        Args:
            batch: of the step, by animal.
            accumulate: into how many micro-batches each animal's trials, or those of all together, are cut; fewer
                where there are fewer trials.
        """
        sizes = {animal: len(trials["index"]) for animal, trials in batch.items()}
        whole = {"sizes": sizes, "weight": self.weight_of(batch)}
        groups = [dict(batch)] if self.loss.scale == SAMPLES else [{animal: batch[animal]} for animal in batch]
        return [whole | {"animals": rows} for group in groups for rows in micro_batches(group, accumulate)]

    def weight_of(self, batch: StepBatch) -> Tensor:
        """What all samples that were recorded weigh together."""
        return torch.stack([weights_of(trials).sum() for trials in batch.values()]).sum()

    def forward(self, part: Part) -> dict[str, Tensor]:
        """Losses of one part."""
        animals = part["animals"]
        inputs = joined(animals.values())
        names = [animal for animal, trials in animals.items() for _ in range(len(trials["index"]))]
        features = self.features(inputs, names)
        if self.distillation:
            animals, part = self.filled(inputs, names, part)
            losses = [self.weighted(features, inputs, animal, trials, part) for animal, trials in animals.items()]
        else:
            pieces = features.split([len(trials["index"]) for trials in animals.values()])
            losses = [
                self.weighted(piece, trials, animal, trials, part)
                for piece, (animal, trials) in zip(pieces, animals.items(), strict=True)
            ]
        response_loss = torch.stack(losses).sum()
        regularizer = self.regularizer(part)
        return {
            "loss": response_loss + regularizer,
            "response_loss": response_loss.detach(),
            "regularizer": regularizer.detach(),
        }

    def features(self, inputs: AnimalBatch, names: list[str]) -> Tensor:
        """What the core makes of samples, each of the animal that `names` says."""
        animal = names[0] if len(set(names)) == 1 else names
        return self.backbone.core(
            stimuli_of(inputs), behavior=inputs.get("behavior"), pupil_center=inputs.get("pupil_center"), animal=animal
        )

    def weighted(self, features: Tensor, inputs: AnimalBatch, animal: str, trials: AnimalBatch, part: Part) -> Tensor:
        """The loss of one animal's responses to features, as it counts in the step."""
        predicted = self.backbone.respond(features, animal, inputs.get("behavior"), inputs.get("pupil_center"))
        responses, valid = trials["responses"], None
        if responses.ndim == 3:
            frames = predicted.shape[-1]
            responses, valid = last_frames(responses, frames), last_frames(trials.get("valid"), frames)
        with full_precision(features):
            size = part["sizes"].get(animal, 0)
            share = len(responses) / max(size, 1)
            value = self.loss(predicted, responses, valid, trials.get("weight"), share)
            if self.loss.scale == SAMPLES:
                return value / part["weight"]
            return value * self.loss.factor(animal, size, len(part["sizes"]))

    def filled(self, inputs: AnimalBatch, names: list[str], part: Part) -> tuple[StepBatch, Part]:
        """All animals' responses to all samples of a part, recorded ones and the teacher's, with their weights."""
        animals = self.backbone.animals
        count = sum(part["sizes"].values()) * (len(animals) - 1)
        weight = self.distillation.weight(part["weight"], count)
        signals = inputs.get("behavior"), inputs.get("pupil_center")
        features = self.distillation.features(stimuli_of(inputs), names, *signals)
        everything = {}
        for animal in animals:
            taught = self.distillation.responses(features, animal, *signals)
            everything[animal] = filled_trials(taught, animal, part["animals"], weight)
            if "valid" in inputs:
                everything[animal]["valid"] = inputs["valid"]
        return everything, part | {"weight": part["weight"] + weight * count}

    def regularizer(self, part: Part) -> Tensor:
        """Penalties of the core and of the animals' own parts, as much of them as the part is of each batch."""
        animals, sizes = part["animals"], part["sizes"]
        first = next(iter(animals.values()))["index"]
        if not self.loss.regularized:
            return torch.zeros((), device=first.device)
        with full_precision(first):
            shares = {animal: len(trials["index"]) / sizes[animal] for animal, trials in animals.items()}
            return torch.stack([shares[animal] * self.backbone.regularizer([animal]) for animal in animals]).sum()

    def after_step(self) -> None:
        """Nothing is left to do after a step of the optimiser."""


def stimuli_of(inputs: AnimalBatch) -> Tensor:
    """The video or the images of a batch."""
    return next(inputs[name] for name in STIMULI if name in inputs)


def weights_of(trials: AnimalBatch) -> Tensor:
    """What each sample weighs (batch,)."""
    return trials["weight"] if "weight" in trials else torch.ones_like(trials["index"], dtype=torch.float32)


def last_frames(values: Tensor | None, frames: int) -> Tensor | None:
    """The last frames of responses or of a mask (batch, ..., time)."""
    return None if values is None else values[..., values.shape[-1] - frames :]


def joined(batches: Iterable[AnimalBatch]) -> AnimalBatch:
    """What the samples of all animals were shown and did, one animal after the other."""
    batches = list(batches)
    shared = [name for name in INPUTS if all(name in batch for batch in batches)]
    return {name: batches[0][name] if len(batches) == 1 else torch.cat([b[name] for b in batches]) for name in shared}


def micro_batches(group: StepBatch, count: int) -> list[StepBatch]:
    """The samples of a group of animals, dealt out in turn to parts of nearly equal size."""
    sizes = [len(trials["index"]) for trials in group.values()]
    count = min(count, sum(sizes))
    parts: list[StepBatch] = [{} for _ in range(count)]
    first = 0
    for size, (animal, trials) in zip(sizes, group.items(), strict=True):
        for number, part in enumerate(parts):
            start = (number - first) % count
            if start < size:
                part[animal] = {name: value[start::count] for name, value in trials.items()}
        first += size
    return parts


def filled_trials(taught: Tensor, animal: str, batch: StepBatch, weight: Tensor) -> dict[str, Tensor]:
    """An animal's responses to all samples of a batch: the teacher's, and where it was shown the clip its own."""
    weights = torch.ones(len(taught), device=taught.device) * weight
    if animal not in batch:
        return {"responses": taught, "weight": weights}
    before = 0
    for name, trials in batch.items():
        if name == animal:
            break
        before += len(trials["index"])
    after = before + len(batch[animal]["index"])
    own = last_frames(batch[animal]["responses"], taught.shape[-1]) if taught.ndim == 3 else batch[animal]["responses"]
    return {
        "responses": torch.cat((taught[:before], own.to(taught.dtype), taught[after:])),
        "weight": torch.cat((weights[:before], weights_of(batch[animal]), weights[after:])),
    }
