"""MouseNet: the published connections, masks, weights and activations, a plain forward pass, and gradients."""

import functools
import hashlib
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from pretrain.models.mousenet import (
    AREAS,
    CHANNELS,
    CONNECTIONS,
    FIT_LAYERS,
    OUTPUTS,
    MaskedConv2d,
    MouseNet,
    mousenet_vispor5,
    stride_between,
)
from transfer.features import extract_features

NO_HEAD = {"num_classes": 0}
# Constructors of mouse-vision, by our function and arguments.
PUBLISHED = {
    "shi_mousenet": (MouseNet, {}),
    "shi_mousenet_ir": (MouseNet, NO_HEAD),
    "shi_mousenet_vispor5": (mousenet_vispor5, {}),
    "shi_mousenet_vispor5_ir": (mousenet_vispor5, NO_HEAD),
    "shi_mousenet_vispor5_pool_4": (mousenet_vispor5, {"pool_size": 4}),
}
# Those of which weights were kept.
LABEL_FREE = ("shi_mousenet_ir", "shi_mousenet_vispor5_ir")
HIGHER = ("VISal", "VISpl", "VISli", "VISrl", "VISl", "VISpor")


@pytest.fixture(scope="module")
def described(mouse_vision) -> dict[str, dict]:
    return json.loads((mouse_vision / "models.json").read_text())


def made(published: str) -> MouseNet:
    build, arguments = PUBLISHED[published]
    return build(**arguments).eval()


@functools.cache
def on_meta(published: str) -> MouseNet:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return made(published)


@functools.cache
def drawn(mask_seed: int = 0) -> MouseNet:
    """A network whose masks are looked at; its weights are never changed."""
    return MouseNet(mask_seed=mask_seed, **NO_HEAD)


def count(tensors) -> int:
    return sum(tensor.numel() for tensor in tensors)


def require_spread(activation: Tensor, mean: float, std: float, name: str) -> None:
    found = [activation.double().mean().item(), activation.double().std().item()]
    assert found == pytest.approx([mean, std], rel=1e-5, abs=1e-5 * std), name


@pytest.mark.parametrize("published", PUBLISHED)
def test_parameters_buffers_keys_and_outputs_are_those_of_the_published_constructors(published, mouse_vision):
    counts = json.loads((mouse_vision / "param_counts.json").read_text())["models"]
    assert set(PUBLISHED) == {name for name in counts if name.startswith("shi_")}
    expected, model = counts[published], on_meta(published)
    assert count(model.parameters()) == expected["total"]
    assert count(p for p in model.parameters() if p.requires_grad) == expected["trainable"]
    assert count(model.buffers()) == expected["buffers"]
    assert len(model.state_dict()) == expected["n_keys"]
    assert list(model(torch.zeros(2, 3, 64, 64, device="meta")).shape) == expected["out"]


@pytest.mark.parametrize("published", PUBLISHED)
def test_state_dict_has_the_published_keys_and_shapes_in_order(published, described):
    expected = described[published]["state_keys"]
    found = {key: list(value.shape) for key, value in on_meta(published).state_dict().items()}
    assert found == expected
    assert list(found) == list(expected)


@pytest.mark.parametrize("published", [name for name in PUBLISHED if name != "shi_mousenet_ir"])
def test_means_and_deviations_of_published_activations(published, described, mouse_vision, keyed_fill):
    expected, model = described[published], keyed_fill(made(published))
    images = torch.load(mouse_vision / "input_seed1.pt", weights_only=True)
    found = extract_features(model, images, FIT_LAYERS)
    assert {name: list(values.shape) for name, values in found.items()} == expected["layer_shapes"]
    assert list(found) == list(expected["layer_shapes"])
    for name, (mean, std) in expected["keyed_layer_mean_std"].items():
        require_spread(found[name], mean, std, name)
    require_spread(model(images).detach(), *expected["keyed_output_mean_std"], "output")


def test_published_activations_of_every_layer(mouse_vision, keyed_fill):
    values = torch.load(mouse_vision / "models" / "shi_mousenet_ir.keyed.pt", weights_only=True)
    model = keyed_fill(made("shi_mousenet_ir"))
    assert set(values["layers"]) == set(FIT_LAYERS)
    found = extract_features(model, values["input"], FIT_LAYERS)
    found["output"] = model(values["input"]).detach()
    for name, expected in (values["layers"] | {"output": values["output"]}).items():
        assert found[name].shape == expected.shape
        assert (found[name] - expected).abs().max() < 1e-5 * expected.abs().max(), name


@pytest.mark.parametrize("published", LABEL_FREE)
def test_seed_0_gives_the_published_weights_and_masks(published, described):
    torch.manual_seed(0)
    state = made(published).state_dict()
    found = {key: hashlib.sha256(value.numpy().tobytes()).hexdigest()[:16] for key, value in state.items()}
    assert found == described[published]["seed0_sha256_16"]


def test_connections_are_the_published_ones(mouse_vision):
    expected = json.loads((mouse_vision / "shi_connections.json").read_text())
    found = []
    for source, target, peak, sigma in CONNECTIONS:
        layer = on_meta("shi_mousenet").Convs[f"{source}_{target}"]
        assert layer.padding == (0, 0)
        found.append(
            {
                "source": source, "target": target, "c_in": layer.in_channels, "c_out": layer.out_channels,
                "kernel": layer.kernel_size[0], "stride": layer.stride[0], "pad_lrtb": list(layer.border),
                "peak": peak, "sigma": sigma,
            }
        )  # fmt: skip
    assert found == expected


def test_layers_channels_and_connections_as_described():
    assert len(FIT_LAYERS) == 22
    assert len(CONNECTIONS) == len({pair[:2] for pair in CONNECTIONS}) == 49
    by_area = {
        "VISp": (22, 45, 40), "VISl": (9, 22, 18), "VISrl": (7, 17, 14), "VISli": (4, 10, 8), "VISpl": (8, 18, 18),
        "VISal": (22, 52, 53), "VISpor": (14, 34, 28),
    }  # fmt: skip
    expected = {
        f"{area}{layer}": channels
        for area, three in by_area.items()
        for layer, channels in zip(("4", "2/3", "5"), three, strict=True)
    }
    assert {"input": 3, "LGNv": 5, **expected} == CHANNELS
    assert {layer: area for area in by_area for layer in expected if layer.rstrip("2/345") == area} == AREAS
    assert OUTPUTS == ("VISp5", "VISl5", "VISrl5", "VISli5", "VISpl5", "VISal5", "VISpor5")
    # Every layer is reached from the image, and every source is evaluated before its target.
    order = ("input", *FIT_LAYERS)
    assert {target for _, target, _, _ in CONNECTIONS} == set(FIT_LAYERS)
    assert all(order.index(source) < order.index(target) for source, target, _, _ in CONNECTIONS)


@pytest.mark.parametrize(
    ("connection", "kernel", "stride", "border"),
    [
        ("input_LGNv", 9, 1, (4, 4, 4, 4)),
        ("LGNv_VISp4", 3, 1, (1, 1, 1, 1)),
        ("VISp4_VISl4", 19, 2, (8, 9, 8, 9)),
        ("VISp2/3_VISrl4", 21, 2, (9, 10, 9, 10)),
        ("VISp5_VISpor4", 19, 2, (8, 9, 8, 9)),
        ("VISal2/3_VISpor4", 1, 1, (0, 0, 0, 0)),
        ("VISli4_VISpor4", 19, 1, (9, 9, 9, 9)),
    ],
)
def test_kernels_strides_and_paddings_as_described(connection, kernel, stride, border):
    layer = on_meta("shi_mousenet").Convs[connection]
    assert (layer.kernel_size, layer.stride, layer.border) == ((kernel, kernel), (stride, stride), border)


@pytest.mark.parametrize(
    ("published", "total", "trainable", "keys", "features"),
    [
        ("shi_mousenet", 8_839_858, 5_853_300, 259, 2_864),
        ("shi_mousenet_ir", 5_974_858, 2_988_300, 257, 2_864),
        ("shi_mousenet_vispor5", 34_647_858, 31_661_300, 259, 28_672),
        ("shi_mousenet_vispor5_pool_4", 6_423_858, 3_437_300, 259, 448),
        ("shi_mousenet_vispor5_ir", 5_974_858, 2_988_300, 257, 28_672),
    ],
)
def test_parameter_and_key_counts_as_described(published, total, trainable, keys, features):
    model = on_meta(published)
    assert count(model.parameters()) == total
    assert count(p for p in model.parameters() if p.requires_grad) == trainable
    names = list(model.state_dict())
    assert len(names) == keys
    assert sum(name.startswith("Convs.") for name in names) == 147
    assert sum(name.startswith("BNs.") for name in names) == 110
    output = model(torch.zeros(1, 3, 64, 64, device="meta"))
    head = {name: tuple(model.state_dict()[name].shape) for name in names if name.startswith("classifier")}
    if published in LABEL_FREE:
        assert (output.shape, head) == ((1, features), {})
    else:
        assert head == {"classifier.0.weight": (1000, features), "classifier.0.bias": (1000,)}


def test_few_weights_exist():
    state = drawn().state_dict()
    weights = {name for name in state if name.startswith("Convs.") and name.endswith(".weight")}
    assert sum(state[name].numel() for name in weights) == 2_986_558
    assert sum(value.sum().item() for name, value in state.items() if name.endswith(".mask")) == 132_388
    others = [p for name, p in drawn().named_parameters() if p.requires_grad and name not in weights]
    assert count(others) == 1_742


def test_layers_are_found_by_name_with_the_published_sizes():
    found = extract_features(drawn(), torch.randn(1, 3, 64, 64), FIT_LAYERS)
    sides = {name: (CHANNELS[name], 64, 64) for name in ("LGNv", "VISp4", "VISp2/3", "VISp5")}
    sides |= {name: (CHANNELS[name], 32, 32) for name in FIT_LAYERS if name not in sides}
    assert {name: tuple(values.shape[1:]) for name, values in found.items()} == sides


def written_out(state: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    """The published forward pass in evaluation mode: every layer's activation."""
    order = ["LGNv", "VISp4", "VISp2/3", "VISp5"]
    order += [f"{area}{layer}" for area in HIGHER for layer in ("4", "2/3", "5")]
    found = {"input": images}
    for target in order:
        total = 0
        for source in (source for source, other, _, _ in CONNECTIONS if other == target):
            weight, bias, mask = (state[f"Convs.{source}_{target}.{part}"] for part in ("weight", "bias", "mask"))
            after = weight.shape[2] // 2
            # "VISpl" and "VISpor" start like "VISp", whose layers are 4, 2/3 and 5.
            halved = source[:5] in ("VISp4", "VISp2", "VISp5") and target[:5] not in ("VISp4", "VISp2", "VISp5")
            before, stride = (after - 1, 2) if halved else (after, 1)
            padded = F.pad(found[source], (before, after, before, after))
            total = total + F.conv2d(padded, weight * mask, bias, stride)
        if target == "LGNv":
            found[target] = total
            continue
        mean, variance, weight, bias = (
            state[f"BNs.{target}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        found[target] = F.relu(F.batch_norm(total, mean, variance, weight, bias))
    return found


def test_activations_and_gradients_are_those_of_the_pass_written_out(keyed_fill):
    model = keyed_fill(made("shi_mousenet_ir")).double()
    images = torch.randn(1, 3, 20, 20, dtype=torch.float64)
    found = model.activations(images)
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    expected = written_out(state, images)
    assert list(found) == list(expected)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, msg=name)
    weighting = torch.randn_like(expected["VISpor5"])
    learnt = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("BNs.LGNv.")]
    gradients = [
        torch.autograd.grad((values["VISpor5"] * weighting).sum(), learnt, materialize_grads=True)
        for values in (found, expected)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_the_first_output_comes_last():
    model = MouseNet(outputs=("VISp5", "VISl5", "VISpor2/3"), pool_size=2, **NO_HEAD).eval()
    images = torch.randn(2, 3, 32, 32)
    found = model.activations(images)
    pooled = [F.adaptive_avg_pool2d(found[name], 2).flatten(1) for name in ("VISpor2/3", "VISl5", "VISp5")]
    torch.testing.assert_close(model(images), torch.cat(pooled, 1))


def test_lgnv_is_the_convolution_alone():
    model, images = made("shi_mousenet_ir"), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = model(images)
        assert model.activations(images)["LGNv"].min() < 0
        for value in model.BNs["LGNv"].state_dict().values():
            value.fill_(7)
        assert torch.equal(model(images), before)


@pytest.mark.parametrize("name", ["input_LGNv", "VISp4_VISp2/3", "VISli4_VISpor4", "VISal4_VISpor4"])
def test_masks_are_drawn_with_the_gaussians_probability(name):
    peak, sigma = next(row[2:] for row in CONNECTIONS if f"{row[0]}_{row[1]}" == name)
    random, reach = np.random.RandomState(5), int(sigma)
    mask = MaskedConv2d(64, 64, peak, sigma, 1, random).mask
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            probability = min(1, peak * math.exp(-(down**2 + right**2) / (2 * sigma**2)))
            share = mask[:, :, reach + down, reach + right].mean().item()
            assert abs(share - probability) <= 5 * math.sqrt(probability * (1 - probability) / 64**2)


@pytest.mark.parametrize("name", ["input_LGNv", "VISal2/3_VISpor4", "VISal5_VISpor4"])
def test_a_peak_of_1_or_more_always_keeps_the_centre(name):
    mask = drawn().Convs[name].mask
    middle = mask.shape[2] // 2
    assert mask[:, :, middle, middle].all()


def test_masks_follow_their_own_seed_and_not_the_global_ones():
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    again, other = MouseNet(**NO_HEAD), drawn(1)
    for name, convolution in drawn().Convs.items():
        assert torch.equal(again.Convs[name].mask, convolution.mask)
        if convolution.mask.numel() > 1000:
            assert not torch.equal(other.Convs[name].mask, convolution.mask), name


def test_masks_come_with_the_weights():
    torch.manual_seed(0)
    first, second = MouseNet(**NO_HEAD).eval(), MouseNet(mask_seed=1, **NO_HEAD).eval()
    images = torch.randn(1, 3, 32, 32)
    weights = {key: value for key, value in first.state_dict().items() if not key.endswith(".mask")}
    second.load_state_dict(weights, strict=False)
    assert not torch.allclose(first(images), second(images))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(images), second(images))


def test_training_leaves_masks_alone_and_gives_masked_weights_no_gradient():
    model = MouseNet(**NO_HEAD).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    for name, layer in model.Convs.items():
        assert layer.mask.grad is None
        assert not layer.mask.requires_grad
        assert torch.equal(layer.mask, before[f"Convs.{name}.mask"])
        assert not layer.weight.grad[layer.mask == 0].any()
        assert layer.weight.grad[layer.mask == 1].any(), name
        torch.testing.assert_close(
            layer.weight[layer.mask == 0], 0.999 * before[f"Convs.{name}.weight"][layer.mask == 0]
        )


def test_masked_weights_do_not_matter():
    torch.manual_seed(0)
    model, images = MouseNet(**NO_HEAD).eval(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = model(images)
        for layer in model.Convs.values():
            layer.weight[layer.mask == 0] = 100.0
        assert torch.equal(model(images), before)


@pytest.mark.parametrize(
    ("outputs", "unused_layers"),
    [
        (OUTPUTS, ()),
        (("VISpor5",), ()),
        (("VISp5",), tuple(f"{area}{layer}" for area in HIGHER for layer in ("4", "2/3", "5"))),
        (("LGNv",), tuple(layer for layer in FIT_LAYERS if layer != "LGNv")),
        (("VISl2/3", "VISp4"), ("VISl5", *(f"{a}{n}" for a in HIGHER if a != "VISl" for n in ("4", "2/3", "5")))),
    ],
)
def test_a_backward_pass_reaches_all_but_the_unused_parameters(outputs, unused_layers):
    model = MouseNet(outputs=outputs, **NO_HEAD).train()
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    learnt = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    without = [name for name, parameter in learnt.items() if parameter.grad is None]
    assert without == [name for name in model.unused_parameters if name in learnt]
    ends = {"LGNv", *unused_layers}
    assert {name.split(".")[1] for name in without if name.startswith("BNs.")} == ends
    unused = {name.split(".")[1].split("_")[1] for name in model.unused_parameters if name.startswith("Convs.")}
    assert unused == set(unused_layers)


@settings(deadline=None, max_examples=12)
@given(st.sampled_from(["shi_mousenet", "shi_mousenet_ir"]), st.integers(32, 224), st.integers(32, 224))
def test_any_image_from_32_to_224_pixels_gives_the_same_number_of_features(published, height, width):
    images = torch.zeros(2, 3, height, width, device="meta")
    assert on_meta(published)(images).shape == (2, 1000 if published == "shi_mousenet" else 2_864)


def test_without_pooling_images_of_another_size_are_refused_in_one_line():
    line = (
        r"MouseNet without pooling \(pool_size=0\) takes 64 x 64 images, found 32 x 65; give pool_size=4 for other "
        "sizes"
    )
    for build in (mousenet_vispor5, functools.partial(MouseNet, pool_size=0)):
        with pytest.raises(ValueError, match=line) as error:
            build(**NO_HEAD)(torch.zeros(1, 3, 32, 65))
        assert "\n" not in str(error.value)
    assert mousenet_vispor5(pool_size=4, **NO_HEAD).eval()(torch.zeros(1, 3, 32, 65)).shape == (1, 448)


def test_without_pooling_the_head_fits_layers_of_both_sizes():
    with torch.device("meta"):
        model = MouseNet(outputs=("LGNv", "VISp5", "VISl5"), pool_size=0, num_classes=3).eval()
    assert model.classifier[0].in_features == (5 + 40) * 64**2 + 18 * 32**2
    assert model(torch.zeros(2, 3, 64, 64, device="meta")).shape == (2, 3)


def test_only_what_leaves_visp_is_halved():
    assert {(s, t) for s, t, _, _ in CONNECTIONS if stride_between(s, t) == 2} == {
        (f"VISp{layer}", f"{area}4") for layer in ("4", "2/3", "5") for area in HIGHER
    }


def test_an_unknown_output_is_one_line():
    with pytest.raises(ValueError, match=r"outputs must be layers of MouseNet \(LGNv, VISp4, .*\), found 'VISp6'"):
        MouseNet(outputs=("VISp5", "VISp6"))
