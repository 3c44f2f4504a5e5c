"""V1T's core: published values, a plain transcription and its gradients, behaviour, attention, and where space goes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.published.v1t import published_v1t
from pretrain.execution import checkpoint_activations
from pretrain.models.v1t import V1T, most_square
from pretrain.published_v1t import core_from_published, published_arguments

CORE_CASES = (
    "behavior_channels", "conv_stride2", "dualpn_color", "lsa_nobias", "mode0", "mode2", "mode3", "mode4", "spt"
)  # fmt: skip
SMALL = {
    "image_size": (9, 14), "patch_size": 4, "emb_dim": 10, "num_blocks": 2, "num_heads": 2, "mlp_dim": 14
}  # fmt: skip
# The same in the words of the plain transcription.
PLAIN_SMALL = {"image_size": (9, 14), "patch": 4, "width": 10, "depth": 2, "heads": 2, "hidden": 14}
ANIMALS = ("A", "B")


@pytest.fixture(scope="module")
def values(shared: Path) -> Path:
    return shared / "reference" / "values" / "static"


def case(values: Path, name: str) -> tuple[dict, dict[str, Tensor]]:
    """Settings and arrays of a reference case; skips where its file is not here."""
    path = values / "v1t" / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not here")
    config = json.loads((values / "manifest.json").read_text())[f"v1t/{name}"]["config"]
    with np.load(path, allow_pickle=False) as arrays:
        return config, {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def reference_core(config: dict, arrays: dict[str, Tensor]) -> V1T:
    """The core of a case with its weights; the images of the cases have been cropped, and have behaviour in them."""
    channels, *image_size = config["core_input_shape"]
    arguments = published_arguments(config) | {
        "in_channels": channels,
        "image_size": tuple(image_size),
        "behavior_mode": 0 if config["behavior_mode"] == 1 else config["behavior_mode"],
        "animals": config["mice"],
    }
    core = V1T(**arguments)
    core.load_state_dict(core_from_published({key[3:]: arrays[key] for key in arrays if key.startswith("sd/")}))
    return core.eval()


def inputs_of(arrays: dict[str, Tensor], animal: str = "B") -> tuple[Tensor, Tensor, Tensor, str]:
    return arrays["in/image"], arrays["in/behavior"], arrays["in/pupil_center"], animal


def made(**arguments) -> V1T:
    """A small core whose every weight is far from zero, so that nothing hides behind another."""
    core = V1T(**{**SMALL, "animals": ANIMALS, **arguments})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in core.parameters():
            weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
    return core.eval()


def batch(channels: int = 1, size: tuple[int, int] = (9, 14), count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((count, channels, *size), (count, 3), (count, 2))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def close(found: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=relative * expected.abs().max().item())


@pytest.mark.parametrize("name", CORE_CASES)
def test_published_outputs(values, name) -> None:
    config, arrays = case(values, f"vit_{name}")
    core = reference_core(config, arrays)
    expected = {key.removeprefix("out/eval_"): arrays[key] for key in arrays if key.startswith("out/eval_")}
    assert expected
    with torch.no_grad():
        close(core.embedded(*inputs_of(arrays)), arrays["out/tokens"])
        for animal, output in expected.items():
            close(core(*inputs_of(arrays, animal)), output)
    torch.testing.assert_close(core.regularizer().detach(), arrays["out/regularizer"], rtol=1e-6, atol=0)
    assert core.output_shape() == tuple(config["output_shape"])


def test_published_attention_and_rollout(values) -> None:
    config, arrays = case(values, "vit_mode3")
    core = reference_core(config, arrays)
    with torch.no_grad():
        close(core.attention_maps(*inputs_of(arrays)), arrays["out/attention"])
    close(core.attention_rollout(*inputs_of(arrays)), arrays["out/rollout"])


@pytest.mark.parametrize(
    ("ours", "plain"),
    [
        ({"behavior_mode": 0}, {"behavior_mode": 0}),
        ({"behavior_mode": 1}, {"behavior_mode": 0, "channels": 4}),
        ({"behavior_mode": 2}, {"behavior_mode": 2}),
        ({"behavior_mode": 3}, {"behavior_mode": 3}),
        ({"behavior_mode": 4}, {"behavior_mode": 4, "animals": ANIMALS}),
        ({"use_lsa": True}, {"lsa": True}),
        ({"use_bias": False}, {"bias": False}),
        ({"patch_mode": 1, "patch_stride": 2}, {"patch_mode": 1, "stride": 2}),
        ({"patch_mode": 2, "patch_stride": 3, "in_channels": 2}, {"patch_mode": 2, "stride": 3, "channels": 2}),
        ({"patch_mode": 3, "patch_stride": 2}, {"patch_mode": 3, "stride": 2}),
    ],
)
def test_output_and_gradients_of_the_plain_transcription(ours, plain) -> None:
    core = made(**ours).double()
    peer = published_v1t(**PLAIN_SMALL, **plain).double().eval()
    names = list(core_from_published(peer.state_dict()))
    weights = dict(core.named_parameters())
    assert sorted(names) == sorted(weights)
    with torch.no_grad():
        for name, theirs in zip(names, peer.parameters(), strict=True):
            theirs.copy_(weights[name])
    images, behavior, pupil_center = (each.double() for each in batch(ours.get("in_channels", 1)))
    shown = images
    if ours.get("behavior_mode") == 1:
        shown = torch.cat((images, behavior[:, :, None, None].expand(-1, -1, 9, 14)), 1)
    output, expected = core(images, behavior, pupil_center, "B"), peer(shown, behavior, pupil_center, "B")
    close(output, expected, 1e-12)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (output * direction).sum().backward()
    (expected * direction).sum().backward()
    for name, theirs in zip(names, peer.parameters(), strict=True):
        if theirs.grad is None or weights[name].grad is None:
            assert theirs.grad is weights[name].grad is None
            assert ".networks.A." in name
        else:
            close(weights[name].grad, theirs.grad, 1e-10)


@pytest.mark.parametrize(("behavior_mode", "parameters"), [(3, 2_465_200), (0, 2_414_992)])
def test_published_size(behavior_mode, parameters) -> None:
    with torch.device("meta"):
        core = V1T(behavior_mode=behavior_mode)
        output = core(torch.empty(1, 1, 144, 256), torch.empty(1, 3), torch.empty(1, 2))
    assert sum(weight.numel() for weight in core.parameters()) == parameters
    assert core.output_shape(144, 256) == tuple(output.shape[1:]) == (155, 29, 57)


def test_weights_are_drawn_as_published() -> None:
    torch.manual_seed(0)
    core = V1T(num_blocks=1)
    block = core.blocks[0]
    for linear in (
        block.attention.to_qkv,
        block.attention.projection,
        block.mlp[1],
        block.behavior.networks["share"][2],
    ):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert linear.bias is None or not linear.bias.any()
    assert core.patch_embedding.positions.std().item() == pytest.approx(1, rel=0.05)
    assert core.patch_embedding.projection.weight.abs().max() <= 1 / 8  # torch's own: uniform within 1 / sqrt(64)
    convolution = V1T(num_blocks=0, patch_mode=1).patch_embedding.projection.weight
    assert convolution.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.05)


def test_behavior_as_channels_is_behavior_appended_to_the_image() -> None:
    images, behavior, _ = batch()
    with_behavior, without = made(behavior_mode=1), made(behavior_mode=0, in_channels=4)
    without.load_state_dict(with_behavior.state_dict())
    planes = behavior[:, :, None, None].expand(-1, -1, 9, 14)
    close(with_behavior(images, behavior), without(torch.cat((images, planes), 1)))


def test_only_the_animals_own_network_matters() -> None:
    core, inputs = made(behavior_mode=4), batch()
    before = {animal: core(*inputs, animal) for animal in ANIMALS}
    assert not torch.allclose(before["A"], before["B"])
    with torch.no_grad():
        core.blocks[0].behavior.networks["A"][0].weight.add_(1)
    assert not torch.allclose(core(*inputs, "A"), before["A"])
    assert torch.equal(core(*inputs, "B"), before["B"])


def test_animals_come_and_go() -> None:
    core, inputs = made(behavior_mode=4, shift_mode=3, center_crop=0.8), batch()
    core.add_animal("C")
    core(*inputs, "C")
    core.remove_animal("A")
    assert {name.split(".")[4] for name in core.state_dict() if ".networks." in name} == {"B", "C"}
    with pytest.raises(ValueError, match="animal='A'; known are B, C"):
        core(*inputs, "A")
    shared_core = made(behavior_mode=3)
    names = list(shared_core.state_dict())
    shared_core.add_animal("C")
    shared_core.remove_animal("A")
    assert list(shared_core.state_dict()) == names


def test_tokens_stay_where_they_came_from() -> None:
    size = {"image_size": (15, 25), "patch_size": 8, "num_blocks": 0}
    images = torch.zeros(1, 1, 15, 25)
    changed = images.clone()
    changed[..., -1, 0] = 1  # only patches of the last row that begin in the first column see it
    moved = {}
    for square in (False, True):
        core = made(**size, square_grid=square)
        difference = (core(changed, *batch()[1:]) - core(images, *batch()[1:])).abs().sum(1)[0]
        assert tuple(difference.shape) == core.output_shape()[1:]
        moved[square] = difference.nonzero().tolist()
    assert moved == {False: [[7, 0]], True: [[10, 6]]}


def test_the_most_square_grid_is_the_true_one_at_the_published_size() -> None:
    assert most_square(29 * 57) == (29, 57)
    assert most_square(8 * 18) == (12, 12)
    assert most_square(7) == (1, 7)
    with torch.device("meta"):
        assert V1T().output_grid == V1T(square_grid=True).output_grid == V1T().grid


@pytest.mark.parametrize("use_lsa", [False, True])
def test_maps_are_the_attention_that_is_used(use_lsa) -> None:
    core, inputs = made(use_lsa=use_lsa), batch()
    tokens = core.embedded(*inputs, "B")
    attention = core.blocks[0].attention
    maps = attention.maps(tokens)
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))
    values = (attention.norm(tokens) @ attention.to_qkv.weight[-20:].T).unflatten(2, (2, 10)).transpose(1, 2)
    close(attention(tokens), attention.projection((maps @ values).transpose(1, 2).flatten(2)))
    assert bool((maps.diagonal(dim1=-2, dim2=-1) == 0).all()) == use_lsa
    each = list(core.attention_by_block(*inputs, "B"))
    assert torch.equal(core.attention_maps(*inputs, "B"), torch.stack(each, 1))


def test_nothing_as_large_as_attention_is_kept() -> None:
    core, inputs = made(), batch(count=1)
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    attention = 2 * (1 + 6 * 11) ** 2
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        core(*inputs)
        assert attention not in kept
        core.attention_maps(*inputs)
        assert attention in kept


def test_recomputed_activations_give_the_same_gradients() -> None:
    core, inputs = made(behavior_mode=4), batch()
    core(*inputs, "B").square().sum().backward()
    gradients = {name: weight.grad for name, weight in core.named_parameters() if weight.grad is not None}
    core.zero_grad()
    checkpoint_activations(core)
    core(*inputs, "B").square().sum().backward()
    for name, weight in core.named_parameters():
        if name in gradients:
            close(weight.grad, gradients[name])


def test_dropout_acts_in_training_only() -> None:
    core, inputs = made(drop_path=0.5), batch()
    assert torch.equal(core(*inputs), core(*inputs))
    core.train()
    assert not torch.equal(core(*inputs), core(*inputs))
    core.blocks.apply(lambda module: setattr(module, "p", 1.0) if hasattr(module, "mode") else None)
    tokens = core.embedded(*inputs, None)
    for block in core.blocks:
        only_behavior = block.with_behavior(tokens, core.behavior_inputs(*inputs[1:]), None)
        assert torch.equal(block(tokens, core.behavior_inputs(*inputs[1:])), only_behavior)


def test_bfloat16_runs() -> None:
    core, inputs = made(use_lsa=True), batch()
    expected = core(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = core(*inputs)
    halved = core.bfloat16()(*(each.bfloat16() for each in inputs))
    assert halved.dtype == torch.bfloat16
    for found in (mixed, halved):
        assert (found.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"behavior_mode": 5}, "behavior_mode must be"),
        ({"shift_mode": -1}, "shift_mode must be"),
        ({"patch_mode": 4}, "patch_mode must be"),
        ({"patch_stride": 5}, "patch_stride must be from 1 to patch_size=4, found 5"),
        ({"image_size": (3, 14)}, "smaller than patch_size=4"),
        ({"center_crop": 0.0}, "center_crop must be"),
        ({"sampling": "cubic"}, "sampling must be one of"),
    ],
)
def test_wrong_arguments(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        V1T(**{**SMALL, **arguments})


def test_missing_inputs() -> None:
    images, behavior, pupil_center = batch()
    with pytest.raises(ValueError, match="behavior_mode=3 needs behavior, found None"):
        made()(images)
    with pytest.raises(ValueError, match="behavior_mode=3 needs pupil_center, found None"):
        made()(images, behavior)
    with pytest.raises(ValueError, match="no network for animal='C'; known are A, B"):
        made(behavior_mode=4)(images, behavior, pupil_center, "C")
    made(behavior_mode=0)(images)
