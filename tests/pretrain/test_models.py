"""Backbones by name: what the registry says of each is true of the network, and errors help."""

import json

import pytest
import torch
from torch import Tensor, nn

from pretrain.models import MODELS, create_model, feature_size, flat_features, list_aliases, list_models, model_info

NAMES = (
    "alexnet", "alexnet_bn", "alexnet_edges", "alexnet_rotnet", "single_stream", "dual_stream", "six_stream",
    "single_stream_autoencoder", "dual_stream_autoencoder", "six_stream_autoencoder", "single_stream_depth",
    "dual_stream_depth", "six_stream_depth", "mousenet", "mousenet_vispor5", "resnet18", "resnet34", "resnet50",
    "resnet101", "resnet152", "vgg16", "vgg16_bn",
)  # fmt: skip


def on_meta(name: str, **arguments: object) -> nn.Module:
    """A backbone without memory for its weights."""
    with torch.device("meta"):
        return create_model(name, **arguments)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def label_free(name: str) -> nn.Module:
    """A backbone as training without labels takes it."""
    return on_meta(name, **({"num_classes": 0} if model_info(name).classifier else {})).eval()


def test_every_family_is_listed():
    assert list_models() == sorted(NAMES)
    assert not set(list_models()) & set(list_aliases())


@pytest.mark.parametrize(
    ("name", "arguments", "parameters"),
    [
        ("alexnet", {}, 61_100_840),
        ("alexnet_bn", {}, 61_119_528),
        ("alexnet_bn", {"num_classes": 0}, 57_022_528),
        ("single_stream", {"num_classes": 0}, 2_029_632),
        ("dual_stream", {"num_classes": 0}, 5_806_848),
        ("six_stream", {"num_classes": 0}, 16_780_800),
        ("single_stream_autoencoder", {}, 6_427_459),
        ("dual_stream_depth", {}, 11_613_123),
        ("mousenet", {}, 8_839_858),
        ("mousenet_vispor5", {"num_classes": 0}, 5_974_858),
        ("resnet18", {"num_classes": 0}, 11_176_512),
        ("resnet152", {"num_classes": 0}, 58_143_808),
        ("vgg16", {}, 138_357_544),
        ("vgg16_bn", {"num_classes": 0}, 134_268_992),
    ],
)
def test_parameter_counts_as_described(name, arguments, parameters):
    assert count(on_meta(name, **arguments)) == parameters


@pytest.mark.parametrize("name", ["alexnet", "alexnet_bn"])
def test_the_names_that_we_share_with_mouse_vision_are_the_same_networks(name, mouse_vision):
    expected = json.loads((mouse_vision / "param_counts.json").read_text())["models"][name]
    model = on_meta(name)
    assert count(model) == expected["total"]
    assert len(model.state_dict()) == expected["n_keys"]
    assert sum(buffer.numel() for buffer in model.buffers()) == expected["buffers"]


@pytest.mark.parametrize("name", list_models())
def test_fit_layers_take_part_and_give_one_tensor_per_image(name):
    model, info = label_free(name), model_info(name)
    modules, found = dict(model.named_modules()), {}

    def keep(layer: str) -> None:
        modules[layer].register_forward_hook(lambda module, inputs, output: found.setdefault(layer, output))

    for layer in info.fit_layers:
        keep(layer)
    model(torch.zeros(2, 3, info.input_size, info.input_size, device="meta"))
    assert set(found) == set(info.fit_layers)
    assert all(isinstance(output, Tensor) and len(output) == 2 for output in found.values())
    assert len(set(info.fit_layers)) == len(info.fit_layers) >= 3
    assert set(info.areas) <= set(info.fit_layers)


@pytest.mark.parametrize("name", list_models())
def test_classifier_says_whether_the_number_of_classes_is_an_argument(name):
    if model_info(name).classifier:
        size = model_info(name).input_size
        assert on_meta(name, num_classes=7).eval()(torch.zeros(2, 3, size, size, device="meta")).shape == (2, 7)
    else:
        with pytest.raises(ValueError, match=rf"'{name}' does not take these arguments \['num_classes'\]"):
            on_meta(name, num_classes=7)


@pytest.mark.parametrize(
    ("name", "layers", "areas"),
    [
        ("single_stream", 3, {"VISp", "VISpor"}),
        ("dual_stream_depth", 5, {"VISp", "VISpor", "VISam"}),
        ("six_stream", 9, {"VISp", "VISal", "VISli", "VISl", "VISrl", "VISpl", "VISpm", "VISpor", "VISam"}),
        ("mousenet", 22, {"VISp", "VISl", "VISrl", "VISli", "VISpl", "VISal", "VISpor"}),
        ("alexnet_bn", 7, set()),
        ("resnet18", 11, set()),
        ("resnet152", 53, set()),
        ("vgg16_bn", 7, set()),
    ],
)
def test_fit_layers_and_their_areas_as_described(name, layers, areas):
    info = model_info(name)
    assert len(info.fit_layers) == layers
    assert set(info.areas.values()) == areas


def test_layers_of_mousenet_have_the_area_of_their_name():
    areas = model_info("mousenet").areas
    assert (areas["VISp2/3"], areas["VISpor4"], areas["VISpl5"]) == ("VISp", "VISpor", "VISpl")
    assert "LGNv" not in areas


@pytest.mark.parametrize(
    ("plain", "with_norm"),
    [("alexnet", "alexnet_bn"), ("vgg16", "vgg16_bn")],
)
def test_fit_layers_with_and_without_batch_norm_are_the_same_steps(plain, with_norm):
    shapes = []
    for name in (plain, with_norm):
        model, info, found = label_free(name), model_info(name), []
        for layer in info.fit_layers:
            model.get_submodule(layer).register_forward_hook(
                lambda module, inputs, output, found=found: found.append((module.__class__.__name__, output.shape))
            )
        model(torch.zeros(2, 3, 64, 64, device="meta"))
        shapes.append(found)
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", list_models())
def test_evaluation_transform_as_published(name):
    info = model_info(name)
    assert (info.resize, info.crop, info.input_size) == (256, 224, 224 if name == "alexnet_rotnet" else 64)
    assert info.mean == (0.485, 0.456, 0.406)
    assert info.std == (0.229, 0.224, 0.225)
    assert info.name == name
    assert "https://" in info.paper


def test_timm_models_are_built_and_described():
    import timm

    model = create_model("timm/test_resnet", num_classes=0)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, model.num_features)
    info, config = model_info("timm/test_resnet"), timm.get_pretrained_cfg("test_resnet")
    assert (info.mean, info.std, info.crop) == (config.mean, config.std, config.input_size[-1])
    assert set(info.fit_layers) <= set(dict(model.named_modules()))
    assert len(info.fit_layers) >= 4


def test_a_timm_model_of_fixed_input_is_made_for_another_size_with_the_same_patches():
    published, small = (
        on_meta("timm/vit_tiny_patch16_224", num_classes=0, **size) for size in ({}, {"input_size": 64})
    )
    assert small.patch_embed.patch_size == published.patch_embed.patch_size == (16, 16)
    assert (published.pos_embed.shape[1], small.pos_embed.shape[1]) == (14**2 + 1, 4**2 + 1)
    assert small(torch.zeros(2, 3, 64, 64, device="meta")).shape == (2, 192)


def test_a_timm_model_of_any_input_is_the_same_for_every_size():
    plain, small = (on_meta("timm/test_resnet", **size) for size in ({}, {"input_size": 64}))
    assert [(key, value.shape) for key, value in plain.state_dict().items()] == [
        (key, value.shape) for key, value in small.state_dict().items()
    ]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("alexnetbn", "alexnet_bn"),
        ("alex_net", "alexnet"),
        ("mouse_net", "mousenet"),
        ("timm/resnet5O", "timm/resnet50"),
        ("zzzz", "alexnet"),
    ],
)
def test_an_unknown_name_lists_the_nearest(name, nearest):
    for ask in (create_model, model_info):
        with pytest.raises(ValueError, match="unknown model") as error:
            ask(name)
        assert nearest in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["alexnet_bn", "mousenet", "dual_stream", "resnet18", "timm/test_resnet"])
def test_an_unknown_argument_is_one_line(name):
    with pytest.raises(ValueError, match=rf"'{name}' does not take these arguments \['poolsize'\]") as error:
        on_meta(name, poolsize=1)
    assert "\n" not in str(error.value)


def test_a_resnet_without_average_pool_gives_its_map_flattened():
    assert on_meta("resnet18", num_classes=0, avgpool=False)(torch.zeros(2, 3, 64, 64, device="meta")).shape == (
        2,
        2048,
    )
    assert feature_size(create_model("resnet18", num_classes=0), 64) == 512
    with pytest.raises(ValueError, match="a ResNet with classes needs its average pool"):
        on_meta("resnet18", avgpool=False)


def test_feature_size_leaves_the_mode_as_it_was():
    model = create_model("timm/test_resnet", num_classes=0).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert feature_size(model, 32) == model.num_features
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_features_of_maps_are_their_values_and_of_hour_glasses_their_code():
    maps = torch.arange(24.0).view(2, 3, 2, 2)
    assert torch.equal(flat_features(maps), torch.arange(24.0).view(2, 12))
    assert torch.equal(flat_features({"output": maps, "encoder_output": maps[:, :1]}), maps[:, 0].flatten(1))
    assert feature_size(nn.Conv2d(3, 8, 1), 5) == 8 * 5 * 5
    assert feature_size(create_model("single_stream_depth"), 64) == 256 * 36


def test_models_and_their_facts_are_one_table():
    assert all(MODELS[name][1].name == name for name in MODELS)
