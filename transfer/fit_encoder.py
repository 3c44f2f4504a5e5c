"""The encoder that a fit trains: a published one with what the config changes, or that of another fit or pretraining.

What comes in: a `FitConfig` and facts about the animals. What goes out: the spec of the encoder, and the encoder with
fresh weights, with those of a pretrained backbone as its core, or with those of an earlier fit for the core and for the
animals that both have. Cutting a backbone at a layer, and what freezing it leaves to learn, the batch norm behind it,
follow `TransferLearningCore` of neuralpredictors (https://github.com/sinzlab/neuralpredictors).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neural_data.recording import Recording
from pretrain.checkpoint import load_trained_backbone
from pretrain.core_backbone import CoreBackbone
from pretrain.models import model_info
from pretrain.models.backbone_core import BackboneCore
from pretrain.progress import say
from pretrain.published_encoder import OF_ANIMAL
from pretrain.randomness import derived_seed
from transfer.encoder import Encoder
from transfer.encoder_builder import build_encoder
from transfer.encoder_spec import AnimalFacts, EncoderSpec
from transfer.fit_config import FitConfig
from transfer.fit_recordings import Animal
from transfer.fitted import Fitted, is_fit, load_fitted
from transfer.normalisation import Normalisation
from transfer.published_encoders import published_spec

# Trials whose mean responses biases start from; ViV1T takes three batches of six.
MEAN_TRIALS = 18
WITHOUT = "without"


def encoder_spec(config: FitConfig, initial: Fitted | None = None) -> EncoderSpec:
    """What the encoder is made of.

    Raises:
        ValueError: no model, an unknown name or argument, or a core.checkpoint without a core.layer.
    """
    if config.model is None and initial is None:
        raise ValueError("model is not set; name a published encoder (model=viv1t), a recipe, or initial=<run>")
    spec = initial.spec if config.model is None else published_spec(config.model)
    parts = {name: getattr(config, name) for name in ("readout", "shifter", "modulator", "activation")}
    for name, part in parts.items():
        spec = spec.changed(**part_changes(name, part))
    if config.readout.coordinate_axes is not None:
        spec = spec.changed(coordinate_axes=config.readout.coordinate_axes)
    if config.core.checkpoint:
        return spec.changed(**core_of_checkpoint(config))
    return spec.changed(**part_changes("core", config.core))


def part_changes(name: str, part: Any) -> dict[str, Any]:
    """What the keys of a part change in a spec."""
    changes = {f"{name}_arguments": part.args} if part.args else {}
    if part.name == WITHOUT:
        if name not in ("shifter", "modulator") or part.args:
            raise ValueError(f"{name}.name={WITHOUT}: only shifters and modulators without {name}.args can be left out")
        return {name: None}
    return changes | ({} if part.name is None else {name: part.name})


def core_of_checkpoint(config: FitConfig) -> dict[str, Any]:
    """The core that `core.checkpoint` brings: that of a fit, or the backbone of a pretraining or a published file."""
    core = config.core
    if core.name is not None:
        raise ValueError(f"core.name={core.name} and core.checkpoint exclude each other; the checkpoint says its core")
    if is_fit(core.checkpoint):
        spec = load_fitted(core.checkpoint).spec
        return {"core": spec.core, "core_arguments": spec.core_arguments | core.args}
    trained = load_trained_backbone(core.checkpoint)
    if isinstance(trained.backbone, CoreBackbone):
        return {"core": trained.spec.name, "core_arguments": trained.spec.args | core.args}
    if core.layer is None:
        layers = ", ".join(model_info(trained.spec.name).fit_layers)
        raise ValueError(f"core.layer is not set; it says where {trained.spec.name} is cut, for example at {layers}")
    arguments = {"model": trained.spec.name, "model_args": trained.spec.args, "layer": core.layer}
    # A frozen backbone keeps its norms' statistics too; the norm behind it learns.
    return {"core": "backbone", "core_arguments": arguments | {"trained": not core.freeze} | core.args}


def animal_facts(
    animal: Animal, scale: float, normalisation: Normalisation | None = None, rows: np.ndarray | None = None
) -> AnimalFacts:
    """What an animal's parts are built from, where stimuli are scaled; with a normalisation also the mean responses, as
    a model is to give them, of the first of some trials."""
    recording = animal.recording
    colour_axis = 4 if recording.video else 3
    shape = recording.stimuli.shape
    size = shape[2:4] if recording.video else shape[1:3]
    return AnimalFacts(
        neurons=len(recording.neurons),
        size=tuple(max(1, round(side * scale)) for side in size),
        channels=shape[colour_axis] if len(shape) > colour_axis else 1,
        behavior_channels=0 if recording.behavior is None else recording.behavior.shape[1],
        pupil_channels=0 if recording.pupil_center is None else 2,
        coordinates=animal.coordinates,
        mean_responses=mean_responses(recording, normalisation, rows[:MEAN_TRIALS]) if normalisation else None,
    )


def mean_responses(recording: Recording, normalisation: Normalisation, rows: np.ndarray) -> np.ndarray:
    """Mean over trials and frames, float32 (neurons,), in the space of the normalisation."""
    means = []
    for row in rows:
        frames = np.arange(recording.frames[row])
        window = slice(0, len(frames))
        raw = recording.responses[int(row), :, window] if recording.dynamic else recording.responses[int(row)]
        responses = normalisation.apply({"responses": raw}, frames if recording.dynamic else None)["responses"]
        means.append(responses.reshape(len(responses), -1).mean(axis=1, dtype=np.float64))
    return np.mean(means, axis=0).astype(np.float32)


def make_encoder(
    config: FitConfig, spec: EncoderSpec, facts: Mapping[str, AnimalFacts], initial: Fitted | None = None
) -> Encoder:
    """The encoder that training starts from.

    Raises:
        ValueError: parts that do not fit the animals, or weights that do not fit the parts.
    """
    torch.manual_seed(derived_seed(config.seed, "weights"))
    encoder = build_encoder(spec, facts)
    if initial is not None:
        take_over(encoder, initial)
    if config.core.checkpoint:
        load_core(encoder, spec, config.core.checkpoint, next(iter(facts.values())).size)
    if config.core.freeze and spec.core_arguments.get("trained", True):
        encoder.freeze_core()
    # A backbone that does not learn goes into evaluation mode when it is told to train, not when it is made.
    return encoder.train()


def take_over(encoder: Encoder, initial: Fitted) -> None:
    """Load the core of an earlier fit, and the parts of the animals that both have; say whose.

    Raises ValueError for the first weight that the earlier fit does not have, or has in another shape.
    """
    shared = [animal for animal in encoder.animals if animal in initial.animals]
    fresh = [animal for animal in encoder.animals if animal not in shared]
    wanted, found = encoder.state_dict(), initial.encoder.state_dict()
    for name, value in wanted.items():
        of_animal = OF_ANIMAL.fullmatch(name)
        if of_animal and of_animal[2] in fresh:
            found[name] = value
        elif name not in found or found[name].shape != value.shape:
            there = "nothing" if name not in found else str(tuple(found[name].shape))
            raise ValueError(f"initial={initial.path}: found {there} for {name}, expected {tuple(value.shape)}")
    encoder.load_state_dict({name: found[name] for name in wanted})
    named = [", ".join(names) or "none" for names in (shared, fresh)]
    say(f"initial: core of {initial.path}; animals from there: {named[0]}; fresh: {named[1]}")


def load_core(encoder: Encoder, spec: EncoderSpec, path: str, size: tuple[int, int]) -> None:
    """Put the weights of a fit's core, a pretrained one, or a backbone into the core of frames of `size` pixels."""
    if is_fit(path):
        put(encoder.core, load_fitted(path).encoder.core.state_dict(), path)
        return
    trained = load_trained_backbone(path)
    if isinstance(trained.backbone, CoreBackbone):
        put(encoder.core, trained.backbone.core.state_dict(), path)
        say(f"core: {trained.spec.name} of {trained.path} (step {trained.step:,})")
        return
    arguments = {name: value for name, value in spec.core_arguments.items() if name not in ("model", "model_args")}
    cut = BackboneCore(trained.backbone, **({"input_size": size} | arguments))
    put(encoder.core.backbone, cut.backbone.state_dict(), path)
    say(f"core: {trained.spec.name} of {trained.path} (step {trained.step:,}), cut at {spec.core_arguments['layer']}")


def put(module: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load weights. Raises ValueError naming the first that does not fit."""
    wanted = module.state_dict()
    for name in dict.fromkeys([*wanted, *state]):
        found, expected = (tuple(x[name].shape) if name in x else "nothing" for x in (state, wanted))
        if found != expected:
            raise ValueError(f"core.checkpoint={origin}: found {found} for {name}, expected {expected}")
    module.load_state_dict(dict(state))
