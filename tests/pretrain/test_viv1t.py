"""ViV1T: published sizes, keys, features and gradients; causality; a plain transcription; what training drops."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.published.viv1t import published_viv1t, published_viv1t_closed_loop
from pretrain.models.viv1t import BEHAVIORS, POSITIONS, RECOMPUTED, ViV1T, viv1t, viv1t_closed_loop
from pretrain.published_viv1t import core_weights, from_published, published_arguments

VERSIONS = ("viv1t_competition", "viv1t_closed_loop")
COMPETITION = (
    "parallel_beh2_exp",
    "parallel_qknorm_swiglu_softplus_shift2_sinus",
    "sequential_bmlp5_elu1_peg",
    "parallel_noflash_posenc4_grid0_noshift",
)
CLOSED_LOOP = (
    "default_causal_rope_reg",
    "causal_rope_noreg",
    "posenc2_rmsnorm_swiglu_qknorm_softplus",
    "posenc7_noflash_causal_sigmoid_grid2",
    "posenc4_nopad_beh1_noshift_act",
    "patchmode2",
)
VARIANTS = [("viv1t_competition", name) for name in COMPETITION] + [("viv1t_closed_loop", name) for name in CLOSED_LOOP]
SMALL = {
    "input_size": (11, 13), "patch": 4, "patch_stride": 3, "frames": 5, "max_frames": 20, "spatial_depth": 2,
    "temporal_depth": 2, "heads": 2, "head_dim": 6, "width": 12, "ff_dim": 10,
}  # fmt: skip
# The published activations of responses, by version and `output_mode`.
ACTIVATIONS = {
    "viv1t_competition": (lambda y: F.elu(y) + 1, torch.exp, F.softplus),
    "viv1t_closed_loop": (lambda y: y, lambda y: F.elu(y) + 1, torch.exp, F.softplus, torch.sigmoid),
}


@pytest.fixture(scope="module")
def values(shared: Path) -> Path:
    return shared / "reference" / "values" / "video"


def described(values: Path, version: str, name: str) -> dict[str, Any]:
    return json.loads((values / version / "reference.json").read_text())["variants"][name]


def arrays(path: Path) -> dict[str, Tensor]:
    with np.load(path) as archive:
        return {name: torch.tensor(archive[name]) for name in archive}


def published_state(values: Path, version: str, name: str) -> dict[str, Tensor]:
    return load_file(values / version / f"state_{name}_perturbed.safetensors")


def inputs(time: int = 14, batch: int = 2, size: tuple[int, int] = SMALL["input_size"], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, 1, time, *size), (batch, 2, time), (batch, 2, time))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def small(**arguments) -> ViV1T:
    torch.manual_seed(0)
    core = ViV1T(**{**SMALL, **arguments}).eval()
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return core


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("version", "name"), VARIANTS)
def test_features_are_the_published_ones(version, name, values):
    arguments = published_arguments(described(values, version, name)["args"])
    core = ViV1T(**arguments).eval()
    core.load_state_dict(core_weights(published_state(values, version, name), core))
    given, expected = (arrays(values / version / file) for file in ("inputs.npz", f"outputs_{name}_perturbed.npz"))
    signals = given["behavior"], given["pupil"]
    with torch.no_grad():
        for animal in "AF":
            features = core(given["x"], *signals, animal=animal)
            assert relative_error(features, expected[f"core_{animal}"]) < 1e-6
            assert tuple(features.shape[1:]) == core.output_shape(*given["x"].shape[2:])
        if "tokens" in expected:
            tokens = core.tokenizer(given["x"], core.chosen_signals(given["x"], *signals)).flatten(2, 3)
            assert relative_error(core.positions(tokens), expected["tokens"]) < 1e-6


class WholeModel(nn.Module):
    """A published model for animal A: our core, with the shifter and the Gaussian readout written out."""

    def __init__(self, version: str, args: dict[str, Any], state: dict[str, Tensor]) -> None:
        super().__init__()
        self.core = ViV1T(**published_arguments(args))
        self.version, self.mode, self.output_mode = version, args["shifter_mode"], args["output_mode"]
        self.weights = nn.ParameterDict()
        for name, value in from_published(state).items():
            kind, _, rest = name.partition(".A.")
            if rest and not kind.startswith("core."):
                self.weights[f"{kind}/{rest.replace('.', '/')}"] = nn.Parameter(value.clone())
        self.core.load_state_dict(core_weights(state, self.core))

    def layer(self, values: Tensor, name: str) -> Tensor:
        return F.linear(values, self.weights[f"{name}/weight"], self.weights[f"{name}/bias"])

    def forward(self, video: Tensor, behavior: Tensor, pupil: Tensor) -> Tensor:
        """Responses (batch, neurons, time') before the activation."""
        features = self.core(video, behavior, pupil, animal="A")
        batch, width, frames, *_ = features.shape
        behavior, pupil = (signal[:, :, -frames:].transpose(1, 2) for signal in (behavior, pupil))
        if "readouts/_mu" in self.weights:
            points = self.weights["readouts/_mu"][0, :, 0]
        else:
            hidden = F.elu(self.layer(self.weights["readouts/source_grid"], "readouts/mu_transform/0"))
            points = torch.tanh(self.layer(hidden, "readouts/mu_transform/2"))
        points = points.clamp(-1, 1).expand(batch, frames, -1, -1)
        if self.mode:
            shift = pupil if self.mode == 1 else torch.cat((behavior, pupil), 2)
            for number in (0, 2, 4):
                shift = torch.tanh(self.layer(shift, f"shifters/mlp/{number}"))
            points = points + shift[:, :, None]
        maps = features.transpose(1, 2).flatten(0, 1)
        sampled = F.grid_sample(maps, points.flatten(0, 1)[:, :, None], align_corners=True)[..., 0]
        sampled = sampled.unflatten(0, (batch, frames))
        if "readouts/state_encoder/0/weight" in self.weights:
            state = self.layer(torch.cat((behavior, pupil), 2), "readouts/state_encoder/0")
            norm = [self.weights[f"readouts/state_encoder/1/{part}"] for part in ("weight", "bias")]
            state = F.gelu(F.layer_norm(state, (width,), *norm))
            sampled = sampled + torch.tanh(self.layer(state, "readouts/state_encoder/4"))[..., None]
        responses = (sampled * self.weights["readouts/_features"][:, :, 0][:, None]).sum(2)
        return (responses + self.weights["readouts/bias"]).transpose(1, 2)

    def activated(self, responses: Tensor) -> Tensor:
        if "activations/log_beta" in self.weights:
            beta = self.weights["activations/log_beta"].exp()
            return F.softplus(beta * responses) / beta
        return ACTIVATIONS[self.version][self.output_mode](responses)


@pytest.mark.parametrize(("version", "name"), VARIANTS)
def test_responses_loss_and_gradients_of_whole_models_are_the_published_ones(version, name, values):
    facts = described(values, version, name)
    model = WholeModel(version, facts["args"], published_state(values, version, name)).eval()
    given, expected = (arrays(values / version / file) for file in ("inputs.npz", f"outputs_{name}_perturbed.npz"))
    responses = model(given["x"], given["behavior"], given["pupil"])
    found = model.activated(responses)
    assert relative_error(found, expected["y_A"]) < 1e-5
    if "y_A_noact" in expected:
        assert relative_error(responses, expected["y_A_noact"]) < 1e-5
    loss = F.mse_loss(found, given["target_A"][:, :, -found.shape[2] :])
    assert loss.item() == pytest.approx(facts["mse_A_perturbed"], rel=1e-5)
    loss.backward()
    norms = {f"core.{key}": weight.grad for key, weight in model.core.named_parameters()}
    published = {key: norm for key, norm in facts["grad_norms_A_perturbed"].items() if key.startswith("core.")}
    ours = from_published({key: torch.tensor(norm or 0.0) for key, norm in published.items()})
    assert set(ours) == set(norms)
    largest = max(norm.item() for norm in ours.values())
    for key, norm in ours.items():
        gradient = 0.0 if norms[key] is None else norms[key].norm().item()
        assert gradient == pytest.approx(norm.item(), rel=1e-4, abs=1e-6 * largest), key


@pytest.mark.parametrize("version", VERSIONS)
def test_every_described_variant_has_our_parameters_and_keys(version, values):
    variants = json.loads((values / version / "reference.json").read_text())["variants"]
    for facts in variants.values():
        with torch.device("meta"):
            core = ViV1T(**published_arguments(facts["args"]))
            state = {key: torch.empty(shape) for key, (shape, _) in facts["state_dict"].items()}
        assert sum(parameter.numel() for parameter in core.parameters()) == facts["n_core"]
        assert set(core_weights(state, core)) == set(core.state_dict())


@pytest.mark.parametrize(
    ("build", "parameters", "block", "tokens", "shape"),
    [
        (viv1t, 2_916_074, 267_232, 778_218 - (435 + 276) * 112, (112, 276, 15, 29)),
        (viv1t_closed_loop, 3_787_042, 122_080, 363_426, (112, 300, 18, 32)),
    ],
)
def test_published_sizes(build, parameters, block, tokens, shape):
    with torch.device("meta"):
        core = build()
        assert count(core) == parameters
        assert count(core.temporal.blocks[0]) == count(core.spatial.blocks[0]) == block
        assert count(core.tokenizer) == tokens
        assert core.output_shape(300, 36, 64) == shape
        features = core(*inputs_on_meta(60))
        assert tuple(features.shape[1:]) == core.output_shape(60, 36, 64)


def test_other_published_sizes(values):
    counts = json.loads((values / "viv1t_competition" / "param_counts.json").read_text())
    with torch.device("meta"):
        assert count(viv1t(parallel=False)) == counts["non_parallel"]["core"]
        core = viv1t(behavior="animal_mlp", animals=tuple("ABCDEFGHIJ"))
    assert count(core) == counts["behavior5_bmlp"]["core"]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def inputs_on_meta(time: int) -> list[Tensor]:
    return [torch.empty(1, 1, time, 36, 64), torch.empty(1, 2, time), torch.empty(1, 2, time)]


PLAIN = {
    "spatial_depth": 2, "temporal_depth": 2, "heads": 2, "head_dim": 6, "width": 12, "ff_dim": 10, "frames": 5,
    "patch": 4, "stride": 3, "max_frames": 20,
}  # fmt: skip


@pytest.mark.parametrize(
    ("plain", "build", "sizes", "registers"),
    [
        (published_viv1t, viv1t, {"grid": (3, 4)}, 0),
        (published_viv1t_closed_loop, viv1t_closed_loop, {"padding": (1, 2, 1, 1, 4, 0), "grid": (4, 5)}, 3),
    ],
)
@pytest.mark.parametrize("recompute", RECOMPUTED)
def test_features_and_gradients_are_those_of_a_plain_transcription(plain, build, sizes, registers, recompute):
    torch.manual_seed(0)
    reference = plain(**PLAIN, **sizes, registers=registers).eval()
    core = build(**SMALL, registers=registers, recompute=recompute).eval()
    core.load_state_dict(reference.state_dict())
    found, expected = ([module, *inputs()] for module in (core, reference))
    for arguments in (found, expected):
        for tensor in arguments[1:]:
            tensor.requires_grad_()
    outputs = [module(*given) for module, *given in (found, expected)]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    weighting = torch.randn_like(outputs[0])
    for output in outputs:
        (output * weighting).sum().backward()
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    unused = set(core.unused_parameters)
    gradients = dict(reference.named_parameters())
    for name, parameter in core.named_parameters():
        if name in unused:
            assert parameter.grad is None
            assert not gradients[name].grad.any()
        else:
            torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("recompute", [name for name in RECOMPUTED if name != "none"])
def test_what_is_computed_again_in_training_draws_the_same_dropout(recompute):
    gradients = []
    for kept in ("none", recompute):
        core = small(recompute=kept).train()
        torch.manual_seed(3)
        core(*inputs()).square().sum().backward()
        gradients.append([parameter.grad for parameter in core.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


CAUSAL = {"pad": True, "causal": True, "registers": 2}


@pytest.mark.parametrize("registers_first", [False, True])
@pytest.mark.parametrize("positions", [name for name in POSITIONS if name != "convolved"])
def test_a_causal_core_does_not_see_the_future(positions, registers_first):
    core = small(**CAUSAL, positions=positions, registers_first=registers_first)
    video, behavior, pupil = inputs()
    changed = [tensor.clone() for tensor in (video, behavior, pupil)]
    for tensor in changed:
        tensor[:, :, 9:] += 1
    with torch.no_grad():
        before, after, short = (
            core(*given) for given in ((video, behavior, pupil), changed, [t[:, :, :9] for t in changed])
        )
    torch.testing.assert_close(before[:, :, :9], after[:, :, :9], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(before[:, :, :9], short, rtol=1e-5, atol=1e-6)
    assert (before[:, :, 9:] - after[:, :, 9:]).abs().amax((0, 1, 3, 4)).min() > 1e-3


def test_a_core_that_is_not_causal_sees_the_future():
    core, given = small(), inputs()
    changed = [tensor.clone() for tensor in given]
    changed[0][:, :, -1] += 1
    with torch.no_grad():
        assert (core(*given)[:, :, 0] - core(*changed)[:, :, 0]).abs().max() > 1e-4


def test_registers_in_time_matter_to_a_causal_core_only_when_they_come_first():
    for first in (False, True):
        core = small(**CAUSAL, positions="rotary", registers_first=first)
        before = core(*inputs())
        before.sum().backward()
        assert core.unused_parameters == (() if first else ("temporal.registers",))
        assert (core.temporal.registers.grad is not None) == first
        with torch.no_grad():
            core.temporal.registers += 1
            assert torch.equal(core(*inputs()), before) != first


def test_a_longer_clip_changes_later_features_only_where_the_rotation_is_recentred():
    for recentre in (False, True):
        core = small(positions="rotary", pad=True, recentre_rotation=recentre)
        with torch.no_grad():
            before = core(*inputs(10))
            core(*inputs(200))
            after = core(*inputs(10))
        assert torch.equal(before, after) != recentre
    assert (before - after).abs().max() > 1e-4


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_behaviour_reaches_features_as_it_is_asked_to(behavior, parallel):
    animals = ("A", "F") if behavior == "animal_mlp" else ()
    core = small(behavior=behavior, animals=animals, parallel=parallel)
    video, *signals = inputs()
    with torch.no_grad():
        before = core(video, *signals, animal="A")
        changes = [
            not torch.equal(core(video, *given, animal=animal), before)
            for *given, animal in (
                (signals[0] + 1, signals[1], "A"),
                (signals[0], signals[1] + 1, "A"),
                (*signals, "F"),
            )
        ]
    seen = behavior != "none"
    assert changes == [seen, seen and not behavior.startswith("behavior_"), behavior == "animal_mlp"]
    assert behavior != "none" or core(video).shape == before.shape


def test_in_training_the_mean_of_features_over_draws_is_near_those_of_a_linear_core():
    # Without nonlinear parts behind them, dropout and drop path keep the expectation.
    arguments = {"spatial_depth": 1, "temporal_depth": 0, "ff_activation": "none", "token_dropout": 0.0}
    core = small(**arguments, drop_path=0.4, attention_dropout=0.3, ff_dropout=0.2)
    given = inputs(8, 1)
    with torch.no_grad():
        expected = core(*given)
        core.train()
        torch.manual_seed(0)
        draws = torch.stack([core(*given) for _ in range(400)])
    error = (draws.mean(0) - expected) / (draws.std(0) / 20 + 1e-6)
    assert error.abs().max() < 6
    assert 0.8 < error.std() < 1.2


@pytest.mark.parametrize("build", [viv1t, viv1t_closed_loop])
def test_bfloat16_runs_and_is_near(build):
    torch.manual_seed(0)
    core, given = build(**SMALL).eval(), inputs()
    with torch.no_grad():
        expected = core(*given)
        with torch.autocast("cpu", torch.bfloat16):
            automatic = core(*given)
        half = core.bfloat16()(*[tensor.bfloat16() for tensor in given])
    assert automatic.dtype == torch.float32
    assert half.dtype == torch.bfloat16
    for found in (automatic, half.float()):
        assert relative_error(found, expected) < 0.05
    core.float().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = core(*given).square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for n, p in core.named_parameters() if n not in core.unused_parameters)


def test_twenty_steps_lower_the_loss():
    torch.manual_seed(0)
    core, given = ViV1T(**SMALL).train(), inputs()
    target = torch.randn(2, 1, 10, 3, 4)
    optimizer, losses = torch.optim.AdamW(core.parameters(), 1e-2), []
    for _ in range(20):
        loss = F.mse_loss(core(*given).mean(1, keepdim=True), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"behavior": "channels"}, "behavior must be one of none, behavior_channels, .*, found 'channels'"),
        ({"positions": "rope"}, "positions must be one of none, joint, .*, found 'rope'"),
        ({"norm": "batch"}, "norm must be one of layernorm, rmsnorm, dyt, found 'batch'"),
        ({"ff_activation": "glu"}, "ff_activation must be one of none, .*, found 'glu'"),
        ({"recompute": "all"}, "recompute must be one of none, queries, projections, blocks, found 'all'"),
        ({"drop_path": 1.0}, "drop_path must be at least 0 and below 1, found 1.0"),
        ({"behavior": "animal_mlp"}, r"animals are named for behavior='animal_mlp', and only then; found \(\)"),
        ({"positions": "convolved"}, "give parallel=False"),
        ({"behavior": "all_mlp", "registers": 2}, "has no states for register tokens; give registers=0"),
        ({"positions": "rotary", "head_dim": 5}, "rotary positions need an even head_dim, found 5"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, line):
    with pytest.raises(ValueError, match=line):
        ViV1T(**{**SMALL, **arguments})


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"video": torch.zeros(2, 1, 14, 11, 12)},
            r"takes a video \(batch, 1, time, 11, 13\), found \(2, 1, 14, 11, 12\)",
        ),
        ({"video": torch.zeros(2, 1, 4, 11, 13)}, "needs clips of at least 5 frames, found 4"),
        ({"behavior": None}, "with behavior='all_channels' needs behavior .*, got None"),
        ({"pupil_center": torch.zeros(2, 2, 13)}, r"pupil_center must be .* 14 frames, found \(2, 2, 13\)"),
        ({"behavior": torch.zeros(2, 3, 14)}, "takes 4 channels of behaviour and pupil, found 5"),
    ],
)
def test_wrong_inputs_are_one_line(change, line):
    given = dict(zip(("video", "behavior", "pupil_center"), inputs(), strict=True)) | change
    with pytest.raises(ValueError, match=line):
        small()(**given)


def test_a_clip_that_is_longer_than_its_learned_positions_is_one_line():
    line = "learned positions for 16 frames of tokens, the clip gives 17; cut the clip, or build .* larger max_frames"
    with pytest.raises(ValueError, match=line):
        small()(*inputs(21))


def test_an_animal_without_a_state_encoder_is_one_line():
    core = small(behavior="animal_mlp", animals=("A", "F"))
    with pytest.raises(ValueError, match="the core has state encoders of A, F, none of animal 'B'"):
        core(*inputs(), animal="B")
