"""Hour-glasses: the published layout and activations, a plain forward pass there and back, and gradients."""

import functools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models import feature_size
from pretrain.models.hour_glass import HourGlass, hour_glass
from pretrain.models.multi_stream import SIX_STREAMS, dual_stream
from pretrain.models.sync_norm import SyncBatchNorm
from transfer.features import extract_features

# Constructors of mouse-vision, by our form and length of the code.
PUBLISHED = {
    f"simplified_mousenet_{kind}_{form}": (form, compressed)
    for form in ("single_stream", "dual_stream", "six_stream")
    for kind, compressed in {"ae": 128, "depth_hour_glass": 0}.items()
}
# Those of which state dicts and activations were kept.
DESCRIBED = (
    "simplified_mousenet_ae_single_stream", "simplified_mousenet_ae_dual_stream",
    "simplified_mousenet_depth_hour_glass_dual_stream",
)  # fmt: skip
STREAMS = {"single_stream": ("ventral",), "dual_stream": ("ventral", "dorsal"), "six_stream": SIX_STREAMS}
OUTPUTS = {"single_stream": ("VISpor",), "dual_stream": ("VISpor", "VISam"), "six_stream": ("VISpor", "VISam")}


@pytest.fixture(scope="module")
def described(mouse_vision) -> dict[str, dict]:
    return json.loads((mouse_vision / "models.json").read_text())


@functools.cache
def on_meta(form: str, compressed: int) -> HourGlass:
    """A network without memory for its weights, in evaluation mode."""
    with torch.device("meta"):
        return hour_glass(form, compressed).eval()


def count(tensors) -> int:
    return sum(tensor.numel() for tensor in tensors)


def require_spread(activation: Tensor, mean: float, std: float, name: str) -> None:
    found = [activation.double().mean().item(), activation.double().std().item()]
    assert found == pytest.approx([mean, std], rel=1e-5, abs=1e-5 * std), name


def test_every_published_constructor_is_in_the_table(mouse_vision):
    names = json.loads((mouse_vision / "param_counts.json").read_text())["models"]
    assert set(PUBLISHED) == {name for name in names if "_ae_" in name or "_depth_" in name}


@pytest.mark.parametrize("published", PUBLISHED)
def test_parameters_buffers_keys_and_outputs_are_those_of_the_published_constructors(published, mouse_vision):
    expected = json.loads((mouse_vision / "param_counts.json").read_text())["models"][published]
    model = on_meta(*PUBLISHED[published])
    assert count(model.parameters()) == expected["total"] == expected["trainable"]
    assert count(p for p in model.parameters() if p.requires_grad) == expected["trainable"]
    assert count(model.buffers()) == expected["buffers"]
    assert len(model.state_dict()) == expected["n_keys"]
    found = model(torch.zeros(2, 3, expected["input"], expected["input"], device="meta"))
    assert {name: list(values.shape) for name, values in found.items()} == expected["out"]


@pytest.mark.parametrize("published", DESCRIBED)
def test_state_dict_has_the_published_keys_and_shapes_in_order(published, described):
    expected = described[published]["state_keys"]
    found = {key: list(value.shape) for key, value in on_meta(*PUBLISHED[published]).state_dict().items()}
    assert found == expected
    assert list(found) == list(expected)


@pytest.mark.parametrize("published", DESCRIBED)
def test_means_and_deviations_of_published_activations(published, described, mouse_vision, keyed_fill):
    expected, model = described[published], keyed_fill(hour_glass(*PUBLISHED[published])).eval()
    images = torch.load(mouse_vision / "input_seed1.pt", weights_only=True)
    found = extract_features(model, images, list(expected["layer_shapes"]))
    assert {name: list(values.shape) for name, values in found.items()} == expected["layer_shapes"]
    for name, (mean, std) in expected["keyed_layer_mean_std"].items():
        require_spread(found[name], mean, std, name)
    outputs = {name: values.detach() for name, values in model(images).items()}
    assert set(outputs) == set(expected["keyed_output_mean_std"])
    for name, (mean, std) in expected["keyed_output_mean_std"].items():
        require_spread(outputs[name], mean, std, name)


def test_published_activations_and_images(mouse_vision, keyed_fill):
    values = torch.load(mouse_vision / "models" / "simplified_mousenet_ae_single_stream.keyed.pt", weights_only=True)
    model = keyed_fill(hour_glass("single_stream")).eval()
    found = extract_features(model, values["input"], list(values["layers"]))
    found |= {name: output.detach() for name, output in model(values["input"]).items()}
    for name, expected in (values["layers"] | values["output"]).items():
        assert found[name].shape == expected.shape
        assert (found[name] - expected).abs().max() < 1e-5 * expected.abs().max(), name


@pytest.mark.parametrize("published", DESCRIBED)
def test_seed_0_gives_the_published_activations(published, described, mouse_vision):
    torch.manual_seed(0)
    model, expected = hour_glass(*PUBLISHED[published]), described[published]["seed0_layer_mean_std"]
    found = extract_features(model, torch.load(mouse_vision / "input_seed1.pt", weights_only=True), list(expected))
    for name, (mean, std) in expected.items():
        require_spread(found[name], mean, std, name)


@pytest.mark.parametrize(
    ("form", "compressed", "parameters", "keys"),
    [
        ("single_stream", 128, 6_427_459, 74),
        ("dual_stream", 128, 16_350_275, 158),
        ("six_stream", 128, 38_297_923, 382),
        ("single_stream", 0, 4_058_819, 70),
        ("dual_stream", 0, 11_613_123, 154),
        ("six_stream", 0, 33_560_771, 378),
    ],
)
def test_parameter_and_key_counts_as_described(form, compressed, parameters, keys):
    model = on_meta(form, compressed)
    assert count(model.parameters()) == parameters
    assert len(model.state_dict()) == keys


@pytest.mark.parametrize("form", STREAMS)
def test_the_decoder_has_the_edges_in_opposite_order_and_direction(form):
    model = on_meta(form, 128)
    turned = ["_".join(reversed(edge.split("_"))) for edge in reversed(list(model.model_layers))]
    assert list(model.decoder_layers) == turned
    assert turned[-1] == "VISp_input"


@pytest.mark.parametrize(
    ("edge", "convolutions", "norms"),
    [
        ("VISp_input", {3: (64, 3, 11, 11)}, [2]),
        ("dorsal_VISp", {2: (384, 192, 3, 3), 6: (192, 64, 5, 5)}, [1, 5]),
        ("VISam_VISp", {2: (256, 64, 3, 3)}, [1]),
        ("VISam_dorsal", {2: (256, 384, 3, 3)}, [1]),
    ],
)
def test_mirrored_layers_have_the_published_numbers_and_shapes(edge, convolutions, norms):
    block = on_meta("dual_stream", 128).decoder_layers[edge]
    found = {number: layer for number, layer in enumerate(block) if isinstance(layer, nn.ConvTranspose2d)}
    assert {number: tuple(layer.weight.shape) for number, layer in found.items()} == convolutions
    assert [number for number, layer in enumerate(block) if isinstance(layer, nn.BatchNorm2d)] == norms
    assert isinstance(block[-1], nn.ConvTranspose2d)


def written_out(state: dict[str, Tensor], images: Tensor, streams: tuple, outputs: tuple) -> dict[str, Tensor]:
    """The published pass to the code and back, in evaluation mode."""

    def norm(name: str, given: Tensor) -> Tensor:
        mean, variance, weight, bias = (
            state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(given, mean, variance, weight, bias)

    def block(edge: str, number: int, given: Tensor, **placed: int) -> Tensor:
        name = f"model_layers.{edge}.{number}"
        convolved = F.conv2d(given, state[f"{name}.weight"], state[f"{name}.bias"], **placed)
        return F.relu(norm(f"model_layers.{edge}.{number + 1}", convolved))

    def back(edge: str, number: int, given: Tensor, size: tuple, padding: int = 0, stride: int = 1) -> Tensor:
        """ReLU, norm and transposed convolution; `number` is that of the norm."""
        name, kernel = f"decoder_layers.{edge}.{number + 1}", state[f"decoder_layers.{edge}.{number + 1}.weight"]
        normed = norm(f"decoder_layers.{edge}.{number}", F.relu(given))
        smallest = (normed.shape[2] - 1) * stride - 2 * padding + kernel.shape[2]
        missing = size[0] - smallest
        return F.conv_transpose2d(normed, kernel, state[f"{name}.bias"], stride, padding, missing)

    pool = functools.partial(F.max_pool2d, kernel_size=3, stride=2, return_indices=True)
    before_visp = block("input_VISp", 0, images, stride=4, padding=2)
    visp, visp_maxima = pool(before_visp)
    found, middles, maxima = {}, {}, {}
    for stream in streams:
        middles[stream] = block(f"VISp_{stream}", 0, visp, padding=2)
        pooled, maxima[stream] = pool(middles[stream])
        found[stream] = block(f"VISp_{stream}", 4, pooled, padding=1)
    for output in outputs:
        entering = [block(f"{stream}_{output}", 0, found[stream], padding=1) for stream in streams]
        found[output] = sum(entering, block(f"VISp_{output}", 0, visp, stride=2))

    read_out = torch.cat([found[output] for output in outputs], 1)
    code = F.adaptive_avg_pool2d(read_out, 6).flatten(1)
    hidden = F.linear(code, state["compress_fc.weight"], state["compress_fc.bias"])
    grid = F.linear(hidden, state["decompress_fc.weight"], state["decompress_fc.bias"]).unflatten(1, (-1, 6, 6))
    blocks = dict(zip(outputs, F.adaptive_avg_pool2d(grid, read_out.shape[2:]).split(256, 1), strict=True))

    image = 0
    for output in outputs:
        image = image + back(f"{output}_VISp", 1, blocks[output], visp.shape[2:], stride=2)
    for stream in streams:
        returned = sum(
            back(f"{output}_{stream}", 1, blocks[output], found[stream].shape[2:], padding=1) for output in outputs
        )
        pooled = back(f"{stream}_VISp", 1, returned, found[stream].shape[2:], padding=1)
        middle = F.max_unpool2d(pooled, maxima[stream], 3, 2, output_size=middles[stream].shape[2:])
        image = image + back(f"{stream}_VISp", 5, middle, visp.shape[2:], padding=2)
    unpooled = F.max_unpool2d(image, visp_maxima, 3, 2, output_size=before_visp.shape[2:])
    shown = back("VISp_input", 2, unpooled, images.shape[2:], padding=2, stride=4)
    return {"output": shown, "hidden_vec": hidden, "encoder_output": code}


@pytest.mark.parametrize(("form", "size"), [("single_stream", 64), ("dual_stream", 85)])
def test_outputs_and_gradients_are_those_of_the_pass_written_out(form, size, keyed_fill):
    model = keyed_fill(hour_glass(form)).eval().double()
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    found = model(images)
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    expected = written_out(state, images, STREAMS[form], OUTPUTS[form])
    assert set(found) == set(expected)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, msg=name)
    weighting = torch.randn_like(images)
    gradients = [
        torch.autograd.grad((output["output"] * weighting).sum(), list(model.parameters()))
        for output in (found, expected)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_the_encoder_is_the_network_of_streams(keyed_fill):
    model, encoder = keyed_fill(hour_glass("dual_stream")).eval(), keyed_fill(dual_stream(num_classes=0)).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(images)["encoder_output"], encoder(images))


def test_without_a_compressed_code_the_hidden_vector_is_the_features():
    found = hour_glass("single_stream", 0).eval()(torch.randn(1, 3, 64, 64))
    assert torch.equal(found["hidden_vec"], found["encoder_output"])
    assert hour_glass("single_stream", 5).eval()(torch.randn(1, 3, 64, 64))["hidden_vec"].shape == (1, 5)


def test_the_features_that_others_read_are_the_encoders():
    assert feature_size(hour_glass("dual_stream"), 64) == 18_432


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(list(STREAMS)), st.sampled_from([0, 128]), st.integers(32, 224), st.integers(32, 224)
)  # fmt: skip
def test_any_image_from_32_to_224_pixels_comes_back_in_its_size(form, compressed, height, width):
    found = on_meta(form, compressed)(torch.zeros(2, 3, height, width, device="meta"))
    assert found["output"].shape == (2, 3, height, width)
    assert found["encoder_output"].shape == (2, 256 * 36 * len(OUTPUTS[form]))


@pytest.mark.parametrize("size", [32, 101])
@pytest.mark.parametrize(("form", "compressed"), [("single_stream", 128), ("dual_stream", 0)])
def test_a_backward_pass_reaches_every_parameter(form, compressed, size):
    model = hour_glass(form, compressed).train()
    found = model(torch.randn(4, 3, size, size))
    assert found["output"].min() < 0 < found["output"].max()
    found["output"].square().mean().backward()
    assert model.unused_parameters == ()
    assert all(p.grad is not None and (p.ndim == 1 or p.grad.any()) for p in model.parameters())


def test_the_mirror_has_its_own_norms():
    model = hour_glass("single_stream")
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == len({module.weight.data_ptr() for module in norms}) == 10
    together = hour_glass("single_stream", norm="sync_batch")
    assert sum(isinstance(module, SyncBatchNorm) for module in together.modules()) == 10


def test_an_unknown_form_is_one_line():
    with pytest.raises(
        ValueError, match="form must be one of single_stream, dual_stream, six_stream, found 'two_stream'"
    ):
        hour_glass("two_stream")


def test_a_negative_length_of_the_code_is_one_line():
    with pytest.raises(ValueError, match=r"compressed must be 0 \(no linear layers\) or above, found -1$"):
        hour_glass("single_stream", compressed=-1)
