"""Features: the published activations, hooks that copy, and the published view of a stimulus."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional as F

from pretrain.checkpoint import BackboneSpec
from pretrain.models import create_model, model_info
from transfer.features import extract_features, prepare_stimuli

PUBLISHED = (
    "alexnet_bn_ir_64x64_input_pool_6",
    "alexnet_64x64_input_pool_6",
    "simplified_mousenet_dual_stream_visp_3x3_ir",
    pytest.param("shi_mousenet_ir", marks=pytest.mark.slow),
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_activations_of_every_fit_layer(name, mouse_vision, keyed_fill):
    """Multi-stream networks have one more in the transfer tasks, the pooled one."""
    values = torch.load(mouse_vision / "models" / f"{name}.keyed.pt", weights_only=True)
    model = keyed_fill(create_model(name))
    layers = [*model_info(name).fit_layers, *(["avgpool"] if "avgpool" in values["layers"] else [])]
    image = values["input"][:1]
    found = extract_features(model, image, layers)
    assert sorted(values["layers"]) == sorted(layers) == sorted(found)
    found["output"] = model.eval()(image).detach()
    for layer, both in (values["layers"] | {"output": values["output"]}).items():
        expected = both[:1]
        assert found[layer].shape == expected.shape
        relative = (found[layer] - expected).abs().max() / expected.abs().max()
        assert relative < 1e-5, layer


class Small(nn.Module):
    """A net with an in-place ReLU, and a module that its forward pass skips."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.norm = nn.BatchNorm2d(4)
        self.skipped = nn.Linear(1, 1)
        self.drop = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(self.relu(self.first(images)))).flatten(1)


def test_a_layer_is_read_before_a_relu_that_follows_in_place():
    model, images = Small(), torch.randn(2, 3, 6, 6)
    found = extract_features(model, images, ["norm", "first", "relu"])
    assert list(found) == ["norm", "first", "relu"]
    torch.testing.assert_close(found["first"], model.first(images))
    assert (found["first"] < 0).any()
    torch.testing.assert_close(found["relu"], found["first"].relu())


def test_extraction_is_in_evaluation_mode_and_leaves_the_model_as_it_was():
    model, images = Small().train(), torch.randn(2, 3, 6, 6)
    model.norm.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first, again = (extract_features(model, images, ["drop"])["drop"] for _ in range(2))
    assert torch.equal(first, again)
    assert not first.requires_grad
    assert [model.training, model.norm.training, model.drop.training] == [True, False, True]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("layer", "line"),
    [
        ("frist", "the model has no layer 'frist'; nearest: first"),
        ("", "the model has no layer ''"),
        ("zzz", "the model has no layer 'zzz'; nearest: first, relu"),
        ("skipped", "layer 'skipped' takes no part in the model's forward pass"),
    ],
)
def test_an_unknown_or_skipped_layer_is_one_line_and_leaves_no_hook(layer, line):
    model = Small()
    with pytest.raises(ValueError, match=line):
        extract_features(model, torch.randn(2, 3, 6, 6), ["first", layer])
    assert not any(module._forward_hooks for module in model.modules())


def test_inputs_follow_the_model_to_its_device():
    found = extract_features(Small().to("meta"), torch.randn(2, 3, 6, 6), ["first"])["first"]
    assert (found.device.type, found.shape) == ("meta", (2, 4, 4, 4))
    assert extract_features(nn.Sequential(nn.Flatten()), torch.ones(2, 3, 4), ["0"])["0"].shape == (2, 12)


class Reaches(nn.Module):
    """Says that a forward pass came here."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("the pass went on")


def test_the_pass_ends_with_the_last_layer_that_is_asked_for():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), Reaches())
    images = torch.randn(2, 3, 4, 4)
    found = extract_features(model, images, ["1", "0", "1"])
    assert list(found) == ["1", "0"]
    torch.testing.assert_close(found["1"], found["0"].relu())
    with pytest.raises(RuntimeError, match="the pass went on"):
        extract_features(model, images, ["0", "2"])
    assert not any(module._forward_hooks for module in model.modules())


class Shared(nn.Module):
    """One layer under two names that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(3, 3, bias=False)
        self.again = self.scale
        self.scale.weight.data = 2 * torch.eye(3)
        self.last = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.scale(self.scale(x)))


@pytest.mark.parametrize("layers", [["scale"], ["again"], ["last", "scale", "again"]])
def test_of_a_layer_that_runs_twice_the_first_run_counts(layers):
    inputs = torch.randn(2, 3)
    found = extract_features(Shared(), inputs, layers)
    assert list(found) == layers
    for layer in layers:
        torch.testing.assert_close(found[layer], (4 if layer == "last" else 2) * inputs)


class Gives(nn.Module):
    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, images: torch.Tensor) -> object:
        return self.output


def test_of_several_tensors_the_first_is_taken_and_what_is_none_is_one_line():
    images = torch.randn(1, 4, 4)
    pooled, where = nn.MaxPool2d(2, return_indices=True)(images)
    model = nn.Sequential(nn.MaxPool2d(2, return_indices=True))
    assert torch.equal(extract_features(model, images, ["0"])["0"], pooled)
    assert not torch.equal(pooled, where)
    for output, line in (
        ({"output": pooled, "code": where}, "layer '0' gives no tensor but a dictionary of output, code; name a layer"),
        ((), "layer '0' gives no tensor but tuple"),
        (None, "layer '0' gives no tensor but NoneType"),
    ):
        model = nn.Sequential(Gives(output))
        with pytest.raises(ValueError, match=line):
            extract_features(model, images, ["0"])
        assert not model[0]._forward_hooks


def test_wrappers_do_not_change_the_names_of_layers():
    model, images = Small(), torch.randn(2, 3, 6, 6)
    expected = extract_features(model, images, ["norm"])["norm"]
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        assert wrapped is not model
        assert torch.equal(extract_features(wrapped, images, ["norm"])["norm"], expected)


def test_timm_fit_layers_are_extracted_in_one_pass():
    model, info = create_model("timm/test_resnet", num_classes=0), model_info("timm/test_resnet")
    images = torch.randn(3, 3, 32, 32)
    found = extract_features(model, images, info.fit_layers)
    assert list(found) == list(info.fit_layers)
    pooled = model.eval()(images)
    torch.testing.assert_close(model.forward_head(found["layer4"]), pooled)


def spec(name: str = "alexnet_bn", size: int = 64) -> BackboneSpec:
    info = model_info(name)
    return BackboneSpec(name, {}, size, list(info.mean), list(info.std))


def test_the_published_view_of_a_grey_stimulus(mouse_vision):
    values = np.load(mouse_vision / "training" / "eval_transform.npz")
    found = prepare_stimuli(values["stimulus"][None], spec())[0]
    assert found.shape == (3, 64, 64)
    difference = np.abs(found.numpy() - values["output"]) * np.array(spec().std)[:, None, None]
    # Pillow rounds some pixels to the next of 255 grey levels.
    assert difference.max() < 1.01 / 255
    assert difference.mean() < 1e-4


def test_grey_and_colour_floats_and_bytes_are_the_same_stimuli():
    grey = np.random.default_rng(0).integers(0, 256, (4, 50, 70), np.uint8)
    colour = np.repeat(grey[..., None], 3, 3)
    expected = prepare_stimuli(grey, spec())
    for same in (colour, grey.astype(np.float64), colour.astype(np.float32)):
        assert torch.equal(prepare_stimuli(same, spec()), expected)


def test_the_evaluation_view_crops_and_the_whole_view_does_not():
    stimuli = np.zeros((1, 100, 160), np.uint8)
    stimuli[:, :, 140:] = 255
    assert prepare_stimuli(stimuli, spec()).unique().numel() == 3
    whole = prepare_stimuli(stimuli, spec(), "whole")
    assert whole.shape == (1, 3, 64, 64)
    plain = F.resize(torch.from_numpy(stimuli)[:, None], [64, 64], antialias=True).expand(-1, 3, -1, -1) / 255
    torch.testing.assert_close(whole, F.normalize(plain, spec().mean, spec().std))
    assert whole[0, 0, :, -5:].min() > whole[0, 0, :, :40].max()


def test_ultraviolet_and_green_become_grey():
    stimuli = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 2), np.uint8)
    grey = stimuli.mean(3)
    torch.testing.assert_close(
        prepare_stimuli(stimuli, spec(), "whole"), prepare_stimuli(grey, spec(), "whole"), rtol=0, atol=1e-6
    )
