"""Encoders from specs: every published one in small, animals added later, what is shared, and what does not fit."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn

from pretrain.models.cores import CORES
from transfer.encoder_builder import add_animal_from, build_encoder
from transfer.encoder_spec import AnimalFacts, EncoderSpec
from transfer.published_encoders import PUBLISHED_ENCODERS, create_encoder, published_spec

VIV1T = {
    "frames": 5, "patch": 5, "patch_stride": 3, "spatial_depth": 1, "temporal_depth": 1, "heads": 2, "head_dim": 6,
    "width": 12, "ff_dim": 10, "max_frames": 20,
}  # fmt: skip
DWISENEURO = {
    "features": [8, 8], "strides": [2, 2], "cortex_features": [16, 20], "expansion": 2, "squeeze": 4,
    "canvas": [22, 26],
}  # fmt: skip
STACKED = {"channels": 4, "input_kernel": 5, "hidden_kernel": 3}
SMALL = {
    "dwiseneuro": DWISENEURO,
    "dwiseneuro_distillation": DWISENEURO,
    "viv1t": VIV1T,
    "viv1t_closed_loop": VIV1T | {"registers": 2},
    "dynamic_vfm": {"channels": 12, "blocks": 1, "heads": 2, "hidden": 10, "window": [4, 3, 5]},
    "factorized3d": {"channels": [4, 4, 5], "spatial_kernels": [5, 3, 3], "temporal_kernels": [3, 3, 3]},
    "full3d": {"channels": [4, 5], "spatial_kernels": [5, 3], "temporal_kernels": [3, 3]},
    "gru_rotation_equivariant": {
        "state_channels": 3, "input_kernel": 3, "state_kernel": 3, "features": 2, "layers": 2, "rotations": 4,
    },
    "gru_stacked2d": STACKED | {"state_channels": 3, "state_kernel": 3},
    "v1t": {"image_size": [12, 16], "patch_size": 4, "emb_dim": 8, "num_blocks": 1, "num_heads": 2, "mlp_dim": 10},
    "stacked2d": STACKED,
}  # fmt: skip
SIZE, FRAMES, NEURONS = (20, 24), 12, {"a": 20, "b": 17}
V1T = SMALL["v1t"]


def facts(spec: EncoderSpec, neurons: int, **changes) -> AnimalFacts:
    rng = np.random.default_rng(neurons)
    video = CORES[spec.core].video
    arrays = {"coordinates": rng.random((neurons, 3)), "mean_responses": rng.random(neurons)}
    counts = {"channels": spec.core_arguments.get("in_channels", 1), "behavior_channels": 2 if video else 3}
    return AnimalFacts(**{"neurons": neurons, "size": SIZE, "pupil_channels": 2} | counts | arrays | changes)


def animals(spec: EncoderSpec, **changes) -> dict[str, AnimalFacts]:
    return {name: facts(spec, count, **changes) for name, count in NEURONS.items()}


def batch(spec: EncoderSpec, of: AnimalFacts, samples: int = 3) -> dict[str, torch.Tensor]:
    time = (FRAMES,) if CORES[spec.core].video else ()
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "stimuli": (of.channels, *time, *of.size),
        "behavior": (of.behavior_channels, *time),
        "pupil_center": (of.pupil_channels, *time),
    }
    return {name: torch.randn(samples, *shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", PUBLISHED_ENCODERS)
def test_every_published_encoder(name):
    """Rates of each animal, gradients in all of its parts, and the same encoder from what a checkpoint would hold."""
    torch.manual_seed(0)
    spec = published_spec(name, core_arguments=SMALL[PUBLISHED_ENCODERS[name].core])
    known = animals(spec)
    encoder = build_encoder(spec, known)
    given = batch(spec, known["a"])
    for animal, count in NEURONS.items():
        rates = encoder(**given, animal=animal)
        assert rates.shape[:2] == (3, count)
        assert rates.ndim == (3 if CORES[spec.core].video else 2)
        with torch.autocast("cpu", torch.bfloat16):
            assert encoder(**given, animal=animal).isfinite().all()
        rates.square().sum().backward()
        for kind, part in encoder.parts_of(animal).items():
            assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters()), kind
    wanted = set() if spec.shifter is None else {"a", "b"}
    assert set(encoder.shifters) == wanted
    again = build_encoder(EncoderSpec(**asdict(spec)), {k: AnimalFacts(**v.saved()) for k, v in known.items()})
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(again.eval()(**given, animal="b"), encoder.eval()(**given, animal="b"))


def test_an_animal_is_added_to_a_fitted_encoder():
    spec = published_spec("sensorium2022_cnn", core_arguments=STACKED)
    known = animals(spec)
    encoder = build_encoder(spec, {"a": known["a"]}).eval()
    given = batch(spec, known["a"])
    before = encoder(**given, animal="a")
    add_animal_from(spec, encoder, "b", known["b"])
    assert set(encoder.parts_of("b")) == {"readout", "shifter"}
    torch.testing.assert_close(encoder(**given, animal="a"), before)
    torch.testing.assert_close(encoder.readouts["b"].bias, torch.tensor(known["b"].mean_responses).float())
    with pytest.raises(ValueError, match="animal 'b' is there already; there are a, b"):
        add_animal_from(spec, encoder, "b", known["b"])


def test_parts_of_an_animal_in_the_core_come_and_go_with_it():
    spec = published_spec("v1t", core_arguments=V1T | {"behavior_mode": 4, "shift_mode": 4, "center_crop": 0.8})
    known = animals(spec)
    encoder = build_encoder(spec, known)
    assert list(encoder.core.blocks[0].behavior.networks) == ["a", "b"] == list(encoder.core.image_cropper.shifters)
    given = batch(spec, known["a"], 4)
    encoder.eval()
    mixed = encoder(**given, animal=["b", "a", "b", "a"])
    torch.testing.assert_close(mixed["b"], encoder(**given, animal="b")[[0, 2]])
    assert not torch.allclose(encoder.core(*given.values(), "a"), encoder.core(*given.values(), "b"))
    encoder.remove_animal("a")
    assert not any(".a." in key for key in encoder.state_dict())
    add_animal_from(spec, encoder, "c", known["a"])
    encoder(**given, animal="c").sum().backward()
    assert encoder.core.blocks[0].behavior.networks["c"][0].weight.grad.abs().sum() > 0


def test_state_encoders_of_viv1t_come_and_go_with_their_animals():
    spec = published_spec("viv1t", core_arguments=SMALL["viv1t"] | {"behavior": "animal_mlp"})
    known = animals(spec)
    encoder = build_encoder(spec, known)
    given = batch(spec, known["a"])
    encoder.remove_animal("a")
    assert not any(".a." in key for key in encoder.state_dict())
    add_animal_from(spec, encoder, "c", known["a"])
    encoder(**given, animal="c").sum().backward()
    states = [*encoder.core.spatial.states, *encoder.core.temporal.states]
    assert all(set(each.models) == {"b", "c"} for each in states)
    assert all(each.models["c"][0].weight.grad.abs().sum() > 0 for each in states)


def test_the_core_says_whether_readouts_are_shifted():
    spec = published_spec("v1t", core_arguments=V1T | {"shift_mode": 0})
    assert not build_encoder(spec, animals(spec)).shifters


def test_readouts_without_positions_get_no_shifter():
    spec = published_spec("sensorium2023_factorized", core_arguments=SMALL["factorized3d"], readout="factorized")
    encoder = build_encoder(spec, animals(spec))
    assert not encoder.shifters
    given = batch(spec, facts(spec, 20))
    assert encoder(given["stimuli"], "a", given["behavior"]).shape[:2] == (3, 20)


def test_free_positions_without_coordinates_or_where_they_are_not_asked_for():
    spec = published_spec("sensorium2022_cnn", core_arguments=STACKED)
    for changed, of in ((spec, {"coordinates": None}), (spec.changed(coordinate_axes=0), {})):
        readout = build_encoder(changed, animals(changed, **of)).readouts["a"]
        assert readout._mu.shape == (1, 20, 1, 2)
    three = build_encoder(spec.changed(coordinate_axes=3), animals(spec)).readouts["a"]
    assert three.source_grid.shape == (20, 3)


def test_a_learned_activation_is_each_animals_own_and_attention_is_shared():
    spec = published_spec("viv1t_closed_loop", core_arguments=SMALL["viv1t_closed_loop"])
    learned = build_encoder(spec.changed(activation="learned_softplus"), animals(spec))
    assert set(learned.activations) == {"a", "b"}
    attention = build_encoder(spec.changed(readout="query_attention"), animals(spec))
    assert attention.readouts["a"].keys_values is attention.readouts["b"].keys_values


def test_modulators_and_a_backbone():
    spec = EncoderSpec(
        "backbone",
        "gaussian",
        modulator="gain",
        core_arguments={"model": "resnet18", "layer": "layer1", "model_args": {"num_classes": 0}},
    )
    known = animals(spec, channels=3)
    encoder = build_encoder(spec, known)
    given = batch(spec, known["a"])
    encoder(**given, animal="a").sum().backward()
    assert isinstance(encoder.modulators["a"].modulator_networks[0][0], nn.Linear)
    assert encoder.readouts["a"].in_shape[0] == encoder.core.out_channels


@pytest.mark.parametrize(
    ("changes", "of", "line"),
    [
        ({"core": "stacked"}, {}, "there is no core 'stacked'; nearest: stacked2d"),
        ({"readout": "gausian"}, {}, "there is no readout 'gausian'; nearest: gaussian"),
        ({"shifter": "mpl"}, {}, "there is no shifter 'mpl'; nearest: mlp"),
        ({"modulator": "gains"}, {}, "there is no modulator 'gains'; nearest: gain"),
        ({"activation": "elu"}, {}, "there is no activation 'elu'; nearest: elu1"),
        ({"core_arguments": {"widht": 3}}, {}, r"core 'stacked2d' does not take these arguments \(.*widht\)"),
        ({"readout_arguments": {"sigma": 3}}, {}, r"readout 'gaussian' does not take these arguments \(.*sigma\)"),
        ({"shifter_arguments": {"width": 3}}, {}, r"shifter 'mlp' does not take these arguments \(width\)"),
        ({"coordinate_axes": 4}, {}, "coordinates of animal 'a' have 3 columns, coordinate_axes asks for 4"),
        ({}, {"pupil_channels": 0}, "animal 'a' has no pupil centre, from which a shifter .* set shifter=null"),
        ({"core": "dynamic_vfm"}, {}, "core 'dynamic_vfm' takes 4 values of behaviour and pupil, the animals have 5"),
        ({}, {"size": (4, 30)}, "core 'stacked2d' makes 0 x 26 maps of frames of 4 x 30 pixels; give larger ones"),
    ],
)
def test_what_does_not_fit_is_one_line(changes, of, line):
    spec = published_spec("sensorium2022_cnn", core_arguments=STACKED)
    with pytest.raises(ValueError, match=line) as caught:
        build_encoder(spec.changed(**changes), animals(spec, **of))
    assert "\n" not in str(caught.value)


def test_animals_that_share_a_core_are_alike():
    spec = published_spec("sensorium2022_cnn", core_arguments=STACKED)
    known = {"a": facts(spec, 5), "b": facts(spec, 5, behavior_channels=2)}
    with pytest.raises(ValueError, match="behavior_channels is 3 of 'a' and 2 of 'b'"):
        build_encoder(spec, known)
    with pytest.raises(ValueError, match="at least one animal"):
        create_encoder("v1t", {})
