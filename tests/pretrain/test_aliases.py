"""Every name that mouse-vision's users know is exactly that network."""

import json

import pytest
import torch

from pretrain.models import MODELS, create_model, list_aliases, model_info
from pretrain.models.aliases import ALIASES

# The published checkpoint files, and networks that a reader of the paper would ask for, with their parameters.
KNOWN = {
    "alexnet_bn": 61_119_528,
    "alexnet_bn_ir": 57_022_528,
    "dual_stream_ir": 5_806_848,
    "six_stream_simclr": 16_780_800,
    "shi_mousenet_ir": 5_974_858,
    "shi_mousenet_vispor5_ir": 5_974_858,
    "simplified_mousenet_dual_stream_visp_3x3_bn": 24_239_848,
    "simplified_mousenet_six_stream_vispor_only": 25_721_448,
    "simplified_mousenet_ae_single_stream": 6_427_459,
    "alexnet_64x64_input_pool_1": 24_400_680,
    "alexnet_six_64x64": 44_319_528,
    "alexnet_rotnet": 57_014_336,
    "resnet50_ir_preavgpool_64x64": 23_508_032,
    "vgg16_ir_64x64": 134_268_992,
}


def on_meta(name: str) -> torch.nn.Module:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return create_model(name)


@pytest.mark.parametrize("name", KNOWN)
def test_known_networks_have_the_published_number_of_parameters(name):
    assert sum(parameter.numel() for parameter in on_meta(name).parameters()) == KNOWN[name]


def test_every_published_constructor_is_exactly_that_network(mouse_vision):
    published = json.loads((mouse_vision / "param_counts.json").read_text())["models"]
    assert len(published) == 96
    for name, counts in published.items():
        model = on_meta(name).eval()
        output = model(torch.zeros(2, 3, counts["input"], counts["input"], device="meta"))
        shapes = {k: list(v.shape) for k, v in output.items()} if isinstance(output, dict) else list(output.shape)
        found = {
            "total": sum(p.numel() for p in model.parameters()),
            "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "buffers": sum(b.numel() for b in model.buffers()),
            "n_keys": len(model.state_dict()),
            "out": shapes,
        }
        assert found == {key: counts[key] for key in found}, name


def test_state_dict_keys_shapes_and_order_are_the_published_ones(mouse_vision):
    published = json.loads((mouse_vision / "models.json").read_text())
    for name, facts in published.items():
        state = {key: list(value.shape) for key, value in on_meta(name).state_dict().items()}
        assert list(state.items()) == list(facts["state_keys"].items()), name


@pytest.mark.parametrize("name", list_aliases())
def test_an_alias_has_its_own_facts(name):
    info = model_info(name)
    assert info.name == name
    assert ALIASES[name].model in MODELS
    modules = dict(on_meta(name).named_modules())
    assert info.fit_layers
    assert all(layer in modules for layer in info.fit_layers)
    assert set(info.areas) <= set(info.fit_layers)


def test_input_sizes_follow_the_name():
    assert model_info("simplified_mousenet_dual_stream_visp_3x3_ir_32x32").input_size == 32
    assert model_info("alexnet_ir_224x224").input_size == 224
    assert model_info("dual_stream_ir").input_size == 64


def test_input_sizes_are_those_of_the_published_constructors(mouse_vision):
    published = json.loads((mouse_vision / "param_counts.json").read_text())["models"]
    for name in set(published) & set(ALIASES):
        assert model_info(name).input_size == published[name]["input"], name


def test_only_relative_location_has_an_evaluation_transform_of_its_own():
    others = {name: (info.resize, info.crop) for name in list_aliases() if (info := model_info(name))}
    assert others.pop("alexnet_relative_location") == (292, 255)
    assert set(others.values()) == {(256, 224)}


def test_there_is_no_name_beyond_the_published_constructors_and_files(mouse_vision):
    published = json.loads((mouse_vision / "param_counts.json").read_text())["models"]
    files = {"alexnet_bn_ir", "dual_stream_ir", "six_stream_simclr", "shi_mousenet_ir", "shi_mousenet_vispor5_ir"}
    assert set(ALIASES) | {"alexnet", "alexnet_bn", "alexnet_rotnet"} == set(published) | files


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("alexnet_two_64x64", "2 5"),
        ("alexnet_three_64x64", "2 5 7"),
        ("alexnet_four_64x64", "2 5 7 9"),
        ("alexnet_five_64x64", "2 5 7 9 12"),
        ("alexnet_64x64_rl_scratch_truncated", "2 5 7 9"),
    ],
)
def test_fit_layers_of_shortened_networks_as_described(name, layers):
    assert model_info(name).fit_layers == tuple(f"features.{number}" for number in layers.split())
    six = model_info("alexnet_six_64x64").fit_layers
    assert six == (*model_info("alexnet_five_64x64").fit_layers, "classifier.2")


def test_arguments_go_over_those_of_the_alias():
    images = torch.zeros(2, 3, 64, 64, device="meta")
    with torch.device("meta"):
        with_classes = create_model("alexnet_bn_ir", num_classes=5)
        without = create_model("alexnet_64x64_input_pool_1", num_classes=0)
    assert with_classes(images).shape == (2, 5)
    assert without(images).shape == (2, 4096)
    assert without.avgpool.output_size == (1, 1)


def test_a_name_that_never_was_lists_the_nearest():
    with pytest.raises(ValueError, match="unknown model 'shi_mousenet_vispor5_irr'; nearest: shi_mousenet_vispor5_ir"):
        create_model("shi_mousenet_vispor5_irr")
