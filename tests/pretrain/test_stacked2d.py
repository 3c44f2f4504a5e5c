"""The stacked 2-D core: published values of every type of layer, counts, biases of the two neuralpredictors, errors."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pretrain.models.stacked2d import AttentionConv, Stacked2d
from pretrain.published_neuralpredictors import from_published

CASES = (
    "stacked2d_attention", "stacked2d_linear", "stacked2d_lists_nobn", "stacked2d_sensorium_bias0",
    "stacked2d_sensorium_bias1", "se2d_no_blocks",
)  # fmt: skip
# Defaults of the published classes, which are not ours.
STACKED = {"laplace_padding": 0, "input_regularizer": "LaplaceL2", "use_avg_reg": True, "bias": True}
SQUEEZED = {"laplace_padding": None, "input_regularizer": "LaplaceL2norm", "use_avg_reg": False, "bias": False}


def arguments(config: dict) -> dict:
    """A published configuration by our names."""
    given = {**(SQUEEZED if "n_se_blocks" in config else STACKED), **config}
    separable, attention = given.get("depth_separable", False), given.get("attention_conv", False)
    return {
        "image_channels": given["input_channels"],
        "channels": given["hidden_channels"],
        "input_kernel": given["input_kern"],
        "hidden_kernel": given["hidden_kern"],
        "layers": given["layers"],
        "hidden_conv": "separable" if separable else "attention" if attention else "plain",
        "pad_input": given.get("pad_input", True),
        "stack": given.get("stack"),
        "batch_norm": given.get("batch_norm", True),
        "momentum": given.get("momentum", 0.1),
        "bias": given["bias"],
        "input_bias": False,
        "hidden_bias": True,
        "linear": given.get("linear", False),
        "gamma_input": given.get("gamma_input", 0.0),
        "gamma_hidden": given.get("gamma_hidden", 0.0),
        "input_regularizer": given["input_regularizer"],
        "laplace_padding": given["laplace_padding"],
        "average_regularizer": given["use_avg_reg"],
    }


@pytest.mark.parametrize("case", CASES)
def test_published_values(shared, case):
    folder = shared / "reference" / "values" / "static"
    manifest = json.loads((folder / "manifest.json").read_text())
    config = manifest.get("cases", manifest)[f"core/{case}"]["config"]
    with np.load(folder / "core" / f"{case}.npz") as file:
        values = {name: torch.from_numpy(file[name]) for name in file.files}
    core = Stacked2d(**arguments(config))
    state = {f"core.{name.removeprefix('sd/')}": value for name, value in values.items() if name.startswith("sd/")}
    core.load_state_dict({name.removeprefix("core."): value for name, value in from_published(state).items()})
    for mode, name in ((False, "out/eval"), (True, "out/train")):
        found = core.train(mode)(values["in/x"])
        torch.testing.assert_close(found, values[name], rtol=1e-5, atol=1e-5 * float(values[name].abs().max()))
        assert tuple(found.shape[1:]) == core.output_shape(*values["in/x"].shape[2:])
    torch.testing.assert_close(core.regularizer(), values["out/regularizer"], rtol=1e-5, atol=0)


def test_size_of_the_released_core():
    """36 x 64 pixels give 28 x 56; three separable layers of 2 x 64 x 64 + 64 x 49 weights and no bias."""
    with torch.device("meta"):
        core = Stacked2d()
    assert sum(parameter.numel() for parameter in core.parameters()) == 64 * 81 + 3 * (2 * 64**2 + 64 * 49) + 4 * 128
    assert core.output_shape(36, 64) == (64, 28, 56)


def test_convolutions_have_a_bias_where_nothing_follows_that_has_one():
    def biased(**options) -> list[str]:
        return [
            name for name, _ in Stacked2d(channels=4, **options).named_parameters() if "conv" in name and "bias" in name
        ]

    assert biased() == []
    assert biased(hidden_conv="plain", hidden_bias=True) == [f"features.{layer}.conv.bias" for layer in (1, 2, 3)]
    assert biased(hidden_conv="plain", batch_norm=False) == [f"features.{layer}.conv.bias" for layer in range(4)]
    assert biased(hidden_conv="plain", batch_norm=False, bias=False) == []


def test_without_biases_is_with_biases_of_zero():
    """Which is how the released files fit models that always have them."""
    torch.manual_seed(0)
    free, biased = Stacked2d(channels=6), Stacked2d(channels=6, hidden_bias=True)
    missing = biased.load_state_dict(free.state_dict(), strict=False).missing_keys
    assert len(missing) == 9
    images = torch.randn(2, 1, 18, 26)
    torch.testing.assert_close(free(images), biased(images))


@pytest.mark.parametrize(("bias", "scale", "learned"), [(True, False, "bias"), (False, True, "scale")])
def test_norms_learn_what_is_asked_for(bias, scale, learned):
    core = Stacked2d(channels=4, bias=bias, scale=scale)
    names = [name for name, _ in core.named_parameters() if "conv" not in name]
    assert names == [f"features.{layer}.{learned}.{learned}" for layer in range(4)]
    core(torch.randn(2, 1, 18, 26)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in core.parameters())


def test_skips_read_the_layers_before():
    """A layer of 1 x 1 kernels of ones without norms adds up what it reads."""
    options = {"channels": 2, "input_kernel": 1, "hidden_kernel": 1, "hidden_conv": "plain", "batch_norm": False}
    core = Stacked2d(skip=2, stack=None, linear=True, bias=False, **options)
    for layer in core.features:
        nn.init.ones_(layer.conv.weight)
    image = torch.ones(1, 1, 3, 3)
    # 1; 2 x 1; 2 x 1 + 2 x 2; 2 x 2 + 2 x 6.
    assert core(image)[0, ::2, 0, 0].tolist() == [1, 2, 6, 16]
    assert core.out_channels == 8


def test_attention_is_a_softmax_over_neighbours():
    torch.manual_seed(0)
    attention = AttentionConv(3, 4, 3, padding=1)
    maps = torch.randn(1, 3, 4, 5)
    found = attention(maps)
    padded = F.pad(maps, [1] * 4)
    query, key, value = attention.query_conv(maps), attention.key_conv(padded), attention.value_conv(padded)
    for channel, row, column in ((0, 0, 0), (1, 2, 3), (2, 3, 4), (3, 1, 1)):
        offset = attention.rel_h[channel, 0, 0] if channel < 2 else attention.rel_w[channel - 2, 0, 0]
        window = (0, channel, slice(row, row + 3), slice(column, column + 3))
        weights = (query[0, channel, row, column] * (key[window] + offset)).flatten().softmax(0)
        torch.testing.assert_close(found[0, channel, row, column], (weights * value[window].flatten()).sum())


def test_behaviour_as_channels():
    torch.manual_seed(0)
    core, plain = Stacked2d(behavior_channels=3, channels=4), Stacked2d(image_channels=4, channels=4)
    plain.load_state_dict(core.state_dict())
    images, behavior = torch.randn(2, 1, 18, 26), torch.randn(2, 3)
    planes = torch.cat([images, behavior[..., None, None].expand(-1, -1, 18, 26)], 1)
    torch.testing.assert_close(core(images, behavior), plain(planes), rtol=1e-5, atol=1e-5)


def test_group_sparsity_leaves_out_layers_that_are_not_plain():
    assert float(Stacked2d(gamma_input=0.0, gamma_hidden=1.0, hidden_conv="plain").regularizer().detach()) > 0
    assert float(Stacked2d(gamma_input=0.0, gamma_hidden=1.0).regularizer().detach()) == 0


def test_bfloat16():
    core = Stacked2d(channels=8)
    with torch.autocast("cpu", torch.bfloat16):
        found = core(torch.randn(2, 1, 18, 26))
    found.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in core.parameters())


def test_mistakes_are_one_line():
    with pytest.raises(ValueError, match="plain, separable, attention, found 'dense'"):
        Stacked2d(hidden_conv="dense")
    with pytest.raises(ValueError, match="hidden_kernel must be one number or 3, one for each layer, found 2"):
        Stacked2d(hidden_kernel=[3, 5])
    with pytest.raises(ValueError, match="even number of channels, found 5"):
        Stacked2d(channels=5, hidden_conv="attention")
