"""Networks of streams: published keys, weights and activations; areas as sums that hooks find; any size of image."""

import copy
import hashlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models.multi_stream import (
    AREAS,
    DUAL_FIT_LAYERS,
    SINGLE_FIT_LAYERS,
    SIX_FIT_LAYERS,
    Area,
    MultiStream,
    dual_stream,
    single_stream,
    six_stream,
)

FORMS = {"single_stream": single_stream, "dual_stream": dual_stream, "six_stream": six_stream}
FIT_LAYERS = {"single_stream": SINGLE_FIT_LAYERS, "dual_stream": DUAL_FIT_LAYERS, "six_stream": SIX_FIT_LAYERS}

NO_CLASSES = {"num_classes": 0}
SYNCHRONISED = {"num_classes": 0, "norm": "sync_batch"}
POOLED_SKIP = {"norm": "none", "skip": "pool"}
VISPOR_ONLY = {"outputs": ("VISpor",)}


def constructors() -> dict[str, tuple[str, dict]]:
    """Every constructor of mouse-vision that makes a network of streams, as our form and arguments."""
    found = {"single_stream": ("single_stream", {}), "single_stream_rand": ("single_stream", NO_CLASSES)}
    found["single_stream_ir_224x224"] = ("single_stream", NO_CLASSES)
    for form in ("dual_stream", "six_stream"):
        found |= {
            form: (form, POOLED_SKIP),
            f"{form}_visp_3x3": (form, {"norm": "none"}),
            f"{form}_vispor_only": (form, POOLED_SKIP | VISPOR_ONLY),
            f"{form}_vispor_only_visp_3x3": (form, {"norm": "none"} | VISPOR_ONLY),
            f"{form}_visp_3x3_bn": (form, {}),
            f"{form}_visp_3x3_bn_rand": (form, NO_CLASSES),
            f"{form}_visp_3x3_ir_224x224": (form, NO_CLASSES),
        }
    for form in FORMS:
        name = form if form == "single_stream" else f"{form}_visp_3x3"
        found |= {f"{name}_{objective}": (form, NO_CLASSES) for objective in ("ir", "rotnet", "mocov2")}
        found |= {f"{name}_{objective}": (form, SYNCHRONISED) for objective in ("simclr", "simsiam")}
    sides = (32, 44, 84, 104, 124, 144, 164, 184, 204)
    found |= {f"dual_stream_visp_3x3_ir_{side}x{side}": ("dual_stream", NO_CLASSES) for side in sides}
    return {f"simplified_mousenet_{name}": arguments for name, arguments in found.items()}


CONSTRUCTORS = constructors()
WITH_KEYS = (
    "simplified_mousenet_single_stream",
    "simplified_mousenet_single_stream_ir",
    "simplified_mousenet_dual_stream",
    "simplified_mousenet_dual_stream_visp_3x3",
    "simplified_mousenet_dual_stream_visp_3x3_bn",
    "simplified_mousenet_dual_stream_visp_3x3_ir",
    "simplified_mousenet_dual_stream_vispor_only",
    "simplified_mousenet_six_stream",
    "simplified_mousenet_six_stream_visp_3x3_bn",
    "simplified_mousenet_six_stream_visp_3x3_simclr",
)
WITH_VALUES = (
    "simplified_mousenet_single_stream_ir",
    "simplified_mousenet_dual_stream_visp_3x3_ir",
    "simplified_mousenet_six_stream_visp_3x3_simclr",
)


def build(published: str) -> MultiStream:
    form, arguments = CONSTRUCTORS[published]
    return FORMS[form](**arguments)


def on_meta(published: str) -> MultiStream:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return build(published)


def hooked(model: nn.Module, images: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
    """What forward hooks on these layers see, and the output."""
    found: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    handles = [
        modules[layer].register_forward_hook(lambda _, __, output, layer=layer: found.update({layer: output}))
        for layer in layers
    ]
    output = model(images)
    for handle in handles:
        handle.remove()
    return found | {"output": output}


def reference(mouse_vision, published: str) -> dict:
    return json.loads((mouse_vision / "models.json").read_text())[published]


def test_every_published_constructor_of_streams_is_known(mouse_vision):
    names = json.loads((mouse_vision / "param_counts.json").read_text())["models"]
    expected = {name for name in names if name.startswith("simplified_mousenet_")}
    assert set(CONSTRUCTORS) == {name for name in expected if "_ae_" not in name and "_depth_" not in name}


@pytest.mark.parametrize("published", CONSTRUCTORS)
def test_parameters_buffers_keys_and_output_are_those_of_the_published_constructor(published, mouse_vision):
    counts = json.loads((mouse_vision / "param_counts.json").read_text())["models"][published]
    model = on_meta(published)
    assert sum(parameter.numel() for parameter in model.parameters()) == counts["total"]
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == counts["trainable"]
    assert sum(buffer.numel() for buffer in model.buffers()) == counts["buffers"]
    assert len(model.state_dict()) == counts["n_keys"]
    side = counts["input"]
    assert list(model.eval()(torch.zeros(2, 3, side, side, device="meta")).shape) == counts["out"]


@pytest.mark.parametrize("published", WITH_KEYS)
def test_state_dict_has_the_published_keys_and_shapes_in_order(published, mouse_vision):
    expected = reference(mouse_vision, published)["state_keys"]
    found = {key: list(value.shape) for key, value in on_meta(published).state_dict().items()}
    assert found == expected
    assert list(found) == list(expected)


@pytest.mark.parametrize("published", WITH_VALUES)
def test_seed_0_gives_the_published_weights(published, mouse_vision):
    expected = reference(mouse_vision, published)["seed0_sha256_16"]
    torch.manual_seed(0)
    state = build(published).state_dict()
    assert {key: hashlib.sha256(value.numpy().tobytes()).hexdigest()[:16] for key, value in state.items()} == expected


@pytest.mark.parametrize("published", WITH_VALUES)
def test_published_activations_of_every_area(published, mouse_vision, keyed_fill):
    values = torch.load(mouse_vision / "models" / f"{published}.keyed.pt", weights_only=True)
    form, _ = CONSTRUCTORS[published]
    assert list(values["layers"]) == [*FIT_LAYERS[form], "avgpool"]
    with torch.no_grad():
        found = hooked(keyed_fill(build(published)).eval(), values["input"], tuple(values["layers"]))
    for layer, expected in (values["layers"] | {"output": values["output"]}).items():
        assert found[layer].shape == expected.shape
        assert (found[layer] - expected).abs().max() < 1e-5 * expected.abs().max(), layer


@pytest.mark.parametrize("published", sorted(set(WITH_KEYS) - set(WITH_VALUES)))
def test_published_means_and_deviations_of_every_area(published, mouse_vision, keyed_fill):
    expected = reference(mouse_vision, published)
    images = torch.load(mouse_vision / "input_seed1.pt", weights_only=True)
    with torch.no_grad():
        found = hooked(keyed_fill(build(published)).eval(), images, tuple(expected["layer_shapes"]))
    wanted = expected["keyed_layer_mean_std"] | {"output": expected["keyed_output_mean_std"]}
    for layer, (mean, deviation) in wanted.items():
        # A mean near 0 is known to the precision of what it averages.
        assert found[layer].mean().item() == pytest.approx(mean, rel=1e-5, abs=1e-5 * deviation), layer
        assert found[layer].std().item() == pytest.approx(deviation, rel=1e-5), layer
        assert list(found[layer].shape) == expected["layer_shapes"].get(layer, expected["final_shape"])


@pytest.mark.parametrize(
    ("form", "arguments", "parameters", "keys"),
    [
        ("single_stream", NO_CLASSES, 2_029_632, 35),
        ("dual_stream", NO_CLASSES, 5_806_848, 77),
        ("six_stream", NO_CLASSES, 16_780_800, 189),
        ("single_stream", {}, 11_246_632, 37),
        ("dual_stream", {}, 24_239_848, 79),
        ("six_stream", {}, 35_213_800, 191),
        ("dual_stream", POOLED_SKIP, 23_972_200, 24),
        ("dual_stream", {"norm": "none"}, 24_234_344, 24),
        ("six_stream", POOLED_SKIP, 34_937_448, 56),
        ("six_stream", {"norm": "none"}, 35_199_592, 56),
        ("dual_stream", POOLED_SKIP | VISPOR_ONLY, 14_756_200, 24),
        ("dual_stream", {"norm": "none"} | VISPOR_ONLY, 15_018_344, 24),
        ("six_stream", POOLED_SKIP | VISPOR_ONLY, 25_721_448, 56),
        ("six_stream", {"norm": "none"} | VISPOR_ONLY, 25_983_592, 56),
    ],
)
def test_parameter_and_key_counts_as_described(form, arguments, parameters, keys):
    with torch.device("meta"):
        model = FORMS[form](**arguments)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(model.state_dict()) == keys


def test_edges_are_made_in_the_published_order():
    assert list(on_meta("simplified_mousenet_single_stream").model_layers) == [
        "input_VISp", "VISp_ventral", "VISp_VISpor", "ventral_VISpor",
    ]  # fmt: skip
    assert list(on_meta("simplified_mousenet_dual_stream").model_layers) == [
        "input_VISp", "VISp_ventral", "VISp_dorsal", "VISp_VISpor", "VISp_VISam",
        "ventral_VISam", "ventral_VISpor", "dorsal_VISam", "dorsal_VISpor",
    ]  # fmt: skip
    streams = ("VISl", "VISrl", "VISal", "VISli", "VISpm", "VISpl")
    assert list(on_meta("simplified_mousenet_six_stream").model_layers) == [
        "input_VISp", *(f"VISp_{stream}" for stream in streams), "VISp_VISpor", "VISp_VISam",
        *(f"{stream}_{output}" for stream in streams for output in ("VISam", "VISpor")),
    ]  # fmt: skip


def test_layers_of_each_edge_have_the_published_numbers():
    with torch.device("meta"):
        plain, pooled = dual_stream(), dual_stream(**POOLED_SKIP)
    keys = {key.rsplit(".", 1)[0] for key in plain.state_dict()}
    assert {key for key in keys if "VISp_ventral" in key} == {f"model_layers.VISp_ventral.{i}" for i in (0, 1, 4, 5)}
    assert {key for key in keys if "dorsal_VISam" in key} == {f"model_layers.dorsal_VISam.{i}" for i in (0, 1)}
    assert keys - {key for key in keys if key.startswith("model_layers.")} == {"classifier.2"}
    assert plain.model_layers["VISp_VISam"][0].weight.shape == (256, 64, 3, 3)
    assert pooled.model_layers["VISp_VISam"][0].weight.shape == (256, 64, 1, 1)
    assert {key.split(".")[2] for key in pooled.state_dict() if "VISp_ventral" in key} == {"0", "3"}


@pytest.mark.parametrize("form", FORMS)
def test_fit_layers_are_areas_that_hooks_find(form):
    with torch.device("meta"):
        model = FORMS[form]()
    modules = dict(model.named_modules())
    assert set(FIT_LAYERS[form]) == set(model.areas())
    assert all(isinstance(modules[area], Area) for area in FIT_LAYERS[form])
    assert not list(modules["VISpor"].parameters())
    assert isinstance(modules["avgpool"], nn.AdaptiveAvgPool2d)


def test_a_fit_layer_models_the_area_of_its_name_and_a_stream_models_none():
    layers = {*SINGLE_FIT_LAYERS, *DUAL_FIT_LAYERS, *SIX_FIT_LAYERS}
    assert set(AREAS) == layers - {"ventral", "dorsal"}
    assert all(AREAS[layer] == layer for layer in AREAS)


@pytest.mark.parametrize("arguments", [{}, POOLED_SKIP])
def test_an_area_is_the_sum_of_its_edges_and_the_output_is_vispor_then_visam(arguments):
    torch.manual_seed(0)
    model, images = dual_stream(num_classes=5, **arguments).eval(), torch.randn(2, 3, 64, 64)
    found, edges = hooked(model, images, (*DUAL_FIT_LAYERS, "avgpool")), model.model_layers
    visp = edges["input_VISp"](images)
    ventral, dorsal = edges["VISp_ventral"](visp), edges["VISp_dorsal"](visp)
    vispor = edges["VISp_VISpor"](visp) + edges["ventral_VISpor"](ventral) + edges["dorsal_VISpor"](dorsal)
    visam = edges["VISp_VISam"](visp) + edges["ventral_VISam"](ventral) + edges["dorsal_VISam"](dorsal)
    expected = {"VISp": visp, "ventral": ventral, "dorsal": dorsal, "VISpor": vispor, "VISam": visam}
    # 3 x 3 places become 6 x 6 by repeating each.
    expected["avgpool"] = torch.cat([vispor, visam], 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected["output"] = model.classifier[2](expected["avgpool"].flatten(1))
    assert found.keys() == expected.keys()
    for layer in expected:
        torch.testing.assert_close(found[layer], expected[layer])


def written_out(state: dict[str, Tensor], images: Tensor, streams: tuple, outputs: tuple) -> dict[str, Tensor]:
    """The published forward pass with batch norm and 3 x 3 skips, in evaluation mode."""

    def block(edge: str, number: int, given: Tensor, **placed: int) -> Tensor:
        """Convolution number `number` of an edge, the norm after it and a ReLU."""
        one, two = (f"model_layers.{edge}.{place}" for place in (number, number + 1))
        convolved = F.conv2d(given, state[f"{one}.weight"], state[f"{one}.bias"], **placed)
        mean, variance = state[f"{two}.running_mean"], state[f"{two}.running_var"]
        return F.relu(F.batch_norm(convolved, mean, variance, state[f"{two}.weight"], state[f"{two}.bias"]))

    found = {"VISp": F.max_pool2d(block("input_VISp", 0, images, stride=4, padding=2), 3, 2)}
    for stream in streams:
        middle = F.max_pool2d(block(f"VISp_{stream}", 0, found["VISp"], padding=2), 3, 2)
        found[stream] = block(f"VISp_{stream}", 4, middle, padding=1)
    for output in outputs:
        found[output] = block(f"VISp_{output}", 0, found["VISp"], stride=2)
        for stream in streams:
            found[output] = found[output] + block(f"{stream}_{output}", 0, found[stream], padding=1)
    read_out = torch.cat([found[output] for output in outputs], 1)
    return found | {"output": F.adaptive_avg_pool2d(read_out, 6).flatten(1)}


@pytest.mark.parametrize(
    ("form", "streams", "outputs"),
    [
        ("single_stream", ("ventral",), ("VISpor",)),
        ("dual_stream", ("ventral", "dorsal"), ("VISpor", "VISam")),
        ("six_stream", ("VISl", "VISrl", "VISal", "VISli", "VISpm", "VISpl"), ("VISpor", "VISam")),
    ],
)
def test_activations_and_gradients_are_those_of_the_pass_written_out(form, streams, outputs, keyed_fill):
    model = keyed_fill(FORMS[form](num_classes=0)).eval().double()
    images = torch.randn(2, 3, 44, 44, dtype=torch.float64)
    found = hooked(model, images, FIT_LAYERS[form])
    expected = written_out(dict(model.named_parameters()) | dict(model.named_buffers()), images, streams, outputs)
    assert set(found) == set(expected)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, msg=name)
    weighting = torch.randn_like(expected["output"])
    gradients = [
        torch.autograd.grad((values["output"] * weighting).sum(), list(model.parameters()))
        for values in (found, expected)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_sum_leaves_its_summands_as_they_were():
    summands = [torch.ones(3), torch.full((3,), 2.0), torch.full((3,), 4.0)]
    assert torch.equal(Area()(*summands), torch.full((3,), 7.0))
    assert [summand[0].item() for summand in summands] == [1, 2, 4]


@pytest.mark.parametrize("form", FORMS)
def test_shapes_of_areas_at_64_pixels_are_the_published_ones(form):
    with torch.device("meta"):
        model = FORMS[form](**NO_CLASSES).eval()
        found = hooked(model, torch.zeros(1, 3, 64, 64), FIT_LAYERS[form])
    expected = {"VISp": (1, 64, 7, 7)}
    expected |= {
        layer: (1, 256, 3, 3) if layer in ("VISpor", "VISam") else (1, 384, 3, 3) for layer in FIT_LAYERS[form][1:]
    }
    assert {layer: tuple(found[layer].shape) for layer in FIT_LAYERS[form]} == expected


@settings(deadline=None, max_examples=30)
@given(st.integers(31, 224), st.integers(31, 224), st.sampled_from(["conv", "pool"]))
def test_images_of_any_height_and_width_from_31_pixels_are_taken(height, width, skip):
    with torch.device("meta"):
        model = single_stream(skip=skip, num_classes=0)
        assert model(torch.zeros(2, 3, height, width)).shape == (2, 9216)


@pytest.mark.parametrize(("height", "width"), [(30, 64), (64, 30), (11, 11)])
def test_smaller_images_are_one_line(height, width):
    with pytest.raises(ValueError, match=f"images from 31 pixels a side, found {height} x {width}$"):
        single_stream(num_classes=0)(torch.zeros(1, 3, height, width))


@pytest.mark.parametrize(
    ("form", "arguments", "side"),
    [
        ("single_stream", {}, 32),
        ("single_stream", {}, 44),
        ("single_stream", {"num_classes": 0}, 224),
        ("dual_stream", {}, 64),
        ("dual_stream", POOLED_SKIP, 32),
        ("dual_stream", {"norm": "none", "num_classes": 0}, 44),
        ("dual_stream", {"outputs": ["VISpor"], "num_classes": 0}, 64),
        ("dual_stream", POOLED_SKIP | {"outputs": ["VISpor"]}, 32),
        ("six_stream", SYNCHRONISED, 32),
    ],
)
def test_training_reaches_every_parameter_but_the_unused(form, arguments, side):
    torch.manual_seed(0)
    model = FORMS[form](**arguments).train()
    output = model(torch.randn(4, 3, side, side))
    (output * torch.randn_like(output)).sum().backward()
    without = tuple(name for name, parameter in model.named_parameters() if parameter.grad is None)
    assert without == model.unused_parameters
    assert all(name.split(".")[1].endswith("_VISam") for name in without)
    assert len(without) == (0 if "outputs" not in arguments else 6 if "norm" in arguments else 12)
    reached = [parameter for parameter in model.parameters() if parameter.grad is not None]
    assert all(parameter.grad.isfinite().all() for parameter in reached)


def test_a_few_steps_lower_the_loss():
    torch.manual_seed(0)
    model, images, labels = single_stream(num_classes=4), torch.randn(8, 3, 32, 32), torch.arange(8) % 4
    optimizer, losses = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9), []
    for _ in range(8):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_no_activation_stays_on_the_module():
    model = single_stream(num_classes=0)
    output = model(torch.randn(2, 3, 32, 32))
    assert output.requires_grad
    # A copy fails on a tensor with a history.
    copied = copy.deepcopy(model)
    assert copied.state_dict().keys() == model.state_dict().keys()
    assert not any(isinstance(value, Tensor) for module in model.modules() for value in vars(module).values())


def test_batch_and_sync_batch_norm_have_the_same_weights_and_in_one_process_the_same_output():
    torch.manual_seed(0)
    plain = single_stream(num_classes=0)
    synchronised = single_stream(**SYNCHRONISED)
    synchronised.load_state_dict(plain.state_dict())
    images = torch.randn(3, 3, 48, 48)
    for training in (True, False):
        assert torch.equal(plain.train(training)(images), synchronised.train(training)(images))
    found = synchronised.state_dict()
    assert all(torch.equal(value, found[key]) for key, value in plain.state_dict().items())


def test_dropout_is_an_argument():
    with torch.device("meta"):
        model = single_stream(dropout=0.25)
    assert [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)] == [0.25]


@pytest.mark.parametrize(
    ("form", "arguments", "line"),
    [
        ("dual_stream", {"skip": "1x1"}, "skip must be 'conv' or 'pool', found '1x1'"),
        ("dual_stream", {"norm": "layer"}, "norm must be 'batch' or 'sync_batch' or 'none', found 'layer'"),
        ("dual_stream", {"outputs": ["VISl"]}, "outputs must be 'VISpor' or 'VISam', found 'VISl'"),
        ("dual_stream", {"outputs": []}, "outputs must name at least one of VISpor, VISam, found none"),
        ("dual_stream", {"built": ["VISl"]}, "built must be 'VISpor' or 'VISam', found 'VISl'"),
        ("single_stream", {"outputs": ["VISam"]}, "outputs must be 'VISpor', found 'VISam'"),
    ],
)
def test_a_wrong_argument_is_one_line(form, arguments, line):
    with pytest.raises(ValueError, match=f"^{line}$"):
        FORMS[form](**arguments)
