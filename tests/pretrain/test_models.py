"""Backbones by name: layout, state-dict keys and parameter counts of the published code, and helpful errors."""

import json

import pytest
import torch
from torch import nn

from pretrain.models import create_model, feature_size, list_models, model_info
from pretrain.models.alexnet import AlexNet

# Constructors of mouse-vision, by our name and arguments.
PUBLISHED = {
    "alexnet_bn_ir_64x64_input_pool_6": ("alexnet_bn", {"num_classes": 0}),
    "alexnet_bn_64x64_input_pool_6_with_ir_transforms": ("alexnet_bn", {}),
    "alexnet_64x64_input_pool_6": ("alexnet", {}),
    "alexnet_ir_64x64_input_pool_6": ("alexnet", {"num_classes": 0}),
    "alexnet_64x64_input_pool_1": ("alexnet", {"pool_size": 1}),
}


def on_meta(name: str, **arguments: object) -> nn.Module:
    """A backbone without memory for its weights."""
    with torch.device("meta"):
        return create_model(name, **arguments)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameter_counts_of_the_two_published_nets():
    assert count(on_meta("alexnet_bn", num_classes=0)) == 57_022_528
    assert count(on_meta("alexnet")) == 61_100_840


@pytest.mark.parametrize("published", PUBLISHED)
def test_parameters_buffers_and_keys_are_those_of_the_published_constructors(published, mouse_vision):
    counts = json.loads((mouse_vision / "param_counts.json").read_text())["models"][published]
    name, arguments = PUBLISHED[published]
    model = on_meta(name, **arguments)
    assert count(model) == counts["total"]
    assert sum(buffer.numel() for buffer in model.buffers()) == counts["buffers"]
    assert len(model.state_dict()) == counts["n_keys"]


@pytest.mark.parametrize(
    "published",
    [name for name in PUBLISHED if name not in ("alexnet_ir_64x64_input_pool_6", "alexnet_64x64_input_pool_1")],
)
def test_state_dict_has_the_published_keys_and_shapes_in_order(published, mouse_vision):
    expected = json.loads((mouse_vision / "models.json").read_text())[published]["state_keys"]
    name, arguments = PUBLISHED[published]
    found = {key: list(value.shape) for key, value in on_meta(name, **arguments).state_dict().items()}
    assert found == expected
    assert list(found) == list(expected)


def test_state_dict_keys_as_described():
    keys = set(on_meta("alexnet_bn", num_classes=0).state_dict())
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    convolutions = {f"features.{i}.{part}" for i in (0, 4, 8, 11, 14) for part in ("weight", "bias")}
    norms = {f"features.{i}.{part}" for i in (1, 5, 9, 12, 15) for part in norm}
    linear = {f"classifier.{i}.{part}" for i in (1, 5) for part in ("weight", "bias")}
    linear_norms = {f"classifier.{i}.{part}" for i in (2, 6) for part in norm}
    assert keys == convolutions | norms | linear | linear_norms
    assert set(on_meta("alexnet_bn").state_dict()) - keys == {"classifier.8.weight", "classifier.8.bias"}


def test_shapes_at_64_pixels_are_the_published_ones():
    features = on_meta("alexnet_bn").features
    activations, sides = torch.zeros(1, 3, 64, 64, device="meta"), {}
    for number, layer in enumerate(features):
        activations = layer(activations)
        sides[number] = tuple(activations.shape[1:])
    assert {n: sides[n] for n in (0, 3, 7, 10, 13, 17)} == {
        0: (64, 15, 15), 3: (64, 7, 7), 7: (192, 3, 3), 10: (384, 3, 3), 13: (256, 3, 3), 17: (256, 1, 1),
    }  # fmt: skip


@pytest.mark.parametrize("name", list_models())
def test_fit_layers_are_modules_that_end_a_stage(name):
    modules = dict(on_meta(name).named_modules())
    for layer in model_info(name).fit_layers:
        assert isinstance(modules[layer], nn.MaxPool2d | nn.ReLU), layer


def test_model_info_is_the_published_evaluation_transform():
    info = model_info("alexnet_bn")
    assert (info.resize, info.crop, info.input_size) == (256, 224, 64)
    assert info.mean == (0.485, 0.456, 0.406)
    assert info.std == (0.229, 0.224, 0.225)
    assert info.name == "alexnet_bn"


def test_timm_models_are_built_and_described():
    import timm

    model = create_model("timm/test_resnet", num_classes=0)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, model.num_features)
    info, config = model_info("timm/test_resnet"), timm.get_pretrained_cfg("test_resnet")
    assert (info.mean, info.std, info.crop) == (config.mean, config.std, config.input_size[-1])
    assert set(info.fit_layers) <= set(dict(model.named_modules()))
    assert len(info.fit_layers) >= 4


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("alexnetbn", "alexnet_bn"), ("alex_net", "alexnet"), ("timm/resnet5O", "timm/resnet50"), ("zzzz", "alexnet")],
)
def test_an_unknown_name_lists_the_nearest(name, nearest):
    for ask in (create_model, model_info):
        with pytest.raises(ValueError, match="unknown model") as error:
            ask(name)
        assert nearest in str(error.value)
        assert "\n" not in str(error.value)


def test_an_unknown_argument_is_one_line():
    with pytest.raises(ValueError, match=r"'alexnet_bn' does not take these arguments \['poolsize'\]"):
        create_model("alexnet_bn", poolsize=1)


def test_feature_size_leaves_the_mode_as_it_was():
    model = create_model("timm/test_resnet", num_classes=0).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert feature_size(model, 32) == model.num_features
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_feature_size_refuses_maps():
    with pytest.raises(ValueError, match=r"\(1, 8, 5, 5\), not \(batch, features\)"):
        feature_size(nn.Conv2d(3, 8, 1), 5)


def test_dropout_is_an_argument():
    model = AlexNet(batch_norm=True, pool_size=1, num_classes=5, dropout=0.25).eval()
    assert [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)] == [0.25, 0.25]
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
