"""The Gaussian readout: neuralpredictors' and ViV1T's numbers and gradients, sharing, video, dropped neurons."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from transfer.activations import create_activation, published_activation
from transfer.gaussian_readout import GaussianReadout, Shared
from transfer.published_parts import from_published
from transfer.shifters import MLPShifter
from transfer.state_gaussian_readout import StateGaussianReadout

IN_SHAPE, NEURONS = (6, 9, 13), 7
OPTIONS = {"init_mu_range": 0.3, "init_sigma": 0.1, "feature_reg_weight": 0.0076}
CASES = {
    "full": {},
    "uncorrelated": {"gauss_type": "uncorrelated"},
    "isotropic": {"gauss_type": "isotropic"},
    "nobias_noalign": {"bias": False, "align_corners": False, "batch_sample": False},
    "cortex": {},
    "cortex_linear3d": {"gauss_type": "uncorrelated", "predictor_layers": 0, "predictor_tanh": False},
}


def read(file):
    """Arrays of a reference case as tensors."""
    if not file.exists():
        pytest.skip(f"{file.name} is not among the reference values here")
    with np.load(file, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def state(values, prefix="sd/"):
    """Entries below a prefix."""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def agree(found, expected, tolerance=1e-5):
    """Equal up to a share of the largest value."""
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * max(1, float(expected.abs().max())))


@pytest.fixture(params=CASES)
def case(request, shared):
    """A readout with the reference's weights, and the values."""
    values = read(shared / f"reference/values/static/readout/full_gaussian2d_{request.param}.npz")
    coordinates = values.get("in/source_grid_raw")
    readout = GaussianReadout(IN_SHAPE, NEURONS, coordinates, **OPTIONS, **CASES[request.param])
    if coordinates is not None:
        torch.testing.assert_close(readout.source_grid, values["sd/source_grid"], rtol=0, atol=1e-7)
    assert {name: value.shape for name, value in readout.state_dict().items()} == {
        name: value.shape for name, value in state(values).items()
    }
    readout.load_state_dict(state(values))
    return readout, values


def test_evaluation(case):
    readout, values = case
    readout.eval()
    agree(readout(values["in/x"]), values["out/eval"])
    agree(readout(values["in/x"], values["in/shift"]), values["out/eval_shift"])
    agree(readout.mu, values["out/eval_mu"])
    agree(readout.points(1)[:, :, None], values["out/eval_grid"])
    agree(readout.regularizer(), values["out/regularizer_sum"])
    agree(readout.regularizer("mean"), values["out/regularizer_mean"])
    if "sd/_mu" in values:
        torch.testing.assert_close(readout._mu.detach(), values["out/sd_after_forward_mu"], rtol=0, atol=0)
    if "in/out_idx" in values:
        agree(readout(values["in/x"], neurons=values["in/out_idx"]), values["out/eval_out_idx"])
        mask = np.isin(np.arange(NEURONS), values["in/out_idx"])
        agree(readout(values["in/x"], neurons=mask), values["out/eval_out_mask"])


def test_training_with_the_published_noise(case):
    readout, values = case
    noise = values["in/train_noise"][:, :, 0]
    readout.train()
    agree(
        readout.points(4, noise=noise).expand(len(values["out/train_grid"]), -1, -1)[:, :, None],
        values["out/train_grid"],
    )
    agree(readout(values["in/x"], values["in/shift"], noise=noise), values["out/train_shift"])


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_gradients(case, mode):
    readout, values = case
    noise = values["in/train_noise"][:, :, 0] if mode == "train" else None
    readout.train(mode == "train")
    readout(values["in/x"], values["in/shift"], noise=noise).square().sum().backward()
    for name, expected in state(values, f"grad/{mode}_shift_sq.").items():
        gradient = dict(readout.named_parameters())[name].grad
        agree(torch.zeros_like(expected) if gradient is None else gradient, expected, 1e-4)


def plain(readout, features, shift, noise):
    """The published operations, in the published order."""
    mu = readout.mu
    if readout.gauss_type == "full":
        drawn = torch.einsum("ancd,bnid->bnic", readout.sigma, noise[:, :, None])
    else:
        drawn = noise[:, :, None] * readout.sigma
    grid = torch.clamp(drawn + mu, min=-1, max=1).expand(len(features), -1, -1, -1) + shift[:, None, None, :]
    sampled = F.grid_sample(features, grid, align_corners=readout.align_corners).squeeze(-1)
    weights = readout.effective_features().view(1, readout.in_shape[0], readout.neurons)
    return (sampled * weights).sum(1) + readout.bias


@pytest.mark.parametrize("gauss_type", ["full", "uncorrelated", "isotropic"])
@pytest.mark.parametrize("options", [{}, {"batch_sample": False, "align_corners": False}, {"shared": True}])
def test_a_plain_transcription(gauss_type, options):
    """Noise and shifts that leave the map, in more frames than the products of shared points need."""
    torch.manual_seed(1)
    options = dict(options)
    if options.pop("shared", False):
        ids = Shared(np.array([3, 0, 3, 1, 0, 7, 1]))
        owner = GaussianReadout(IN_SHAPE, NEURONS, shared_features=ids, shared_grid=ids)
        borrowed = Shared(np.array([1, 7, 0, 1, 3, 0, 3]), owner)
        options |= {"shared_features": borrowed, "shared_grid": borrowed}
    readout = GaussianReadout(IN_SHAPE, NEURONS, gauss_type=gauss_type, **options)
    for parameter in readout.parameters():
        torch.nn.init.normal_(parameter, 0, 0.7)
    with torch.no_grad():
        readout.sigma[0, 0] *= -1
        if not options.get("shared_grid"):
            readout._mu.clamp_(-1, 1)
    features = torch.randn(12, *IN_SHAPE, requires_grad=True)
    shift = (torch.rand(12, 2) - 0.5).requires_grad_()
    noise = torch.randn(12 if readout.batch_sample else 1, NEURONS, 2)
    results = []
    for responses in (readout(features, shift, noise=noise), plain(readout, features, shift, noise)):
        wanted = [features, shift, *readout.parameters()]
        results.append((responses, *torch.autograd.grad(responses.square().sum(), wanted)))
    for found, expected in zip(*results, strict=True):
        agree(found, expected)


def test_noise_is_drawn_as_published():
    """`normal_()` on (frames, neurons, 1, 2), the clips' frames one after the other."""
    readout = GaussianReadout((3, 5, 6), 4)
    torch.manual_seed(3)
    points = readout.points(10)
    torch.manual_seed(3)
    noise = torch.empty(10, 4, 1, 2).normal_()
    expected = (torch.einsum("ancd,bnid->bnic", readout.sigma, noise) + readout.mu).clamp(-1, 1)
    torch.testing.assert_close(points[:, :, None], expected)


def test_owner_and_borrower(shared):
    values = read(shared / "reference/values/static/readout/full_gaussian2d_shared.npz")
    ids_a, ids_b = np.array([3, 0, 3, 1, 0, 7, 1]), np.array([1, 7, 0, 1, 3, 0, 3])
    owner = GaussianReadout(IN_SHAPE, NEURONS, shared_features=Shared(ids_a), shared_grid=Shared(ids_a))
    start = owner._mu.detach().clone()
    borrower = GaussianReadout(
        IN_SHAPE, NEURONS, shared_features=Shared(ids_b, owner), shared_grid=Shared(ids_b, owner)
    )
    assert torch.equal(owner._mu, start)
    assert borrower._features is owner._features
    assert torch.equal(borrower.mu_transform.weight, torch.eye(2))
    both = torch.nn.ModuleDict({"a": owner, "b": borrower}).eval()
    both.load_state_dict(state(values))
    for name, readout in both.items():
        agree(readout(values["in/x"]), values[f"out/{name}"])
        agree(readout.mu, values[f"out/{name}_mu"])
        agree(readout.regularizer(), values[f"out/{name}_reg_sum"])


def test_shared_ids_of_another_length_are_refused():
    with pytest.raises(ValueError, match="one per neuron"):
        GaussianReadout(IN_SHAPE, NEURONS, shared_features=Shared(np.arange(3)))
    owner = GaussianReadout(IN_SHAPE, NEURONS, shared_features=Shared(np.arange(NEURONS)))
    with pytest.raises(ValueError, match=r"_features of the owner has shape \(1, 6, 1, 7\)"):
        GaussianReadout(IN_SHAPE, NEURONS, shared_features=Shared(np.zeros(NEURONS), owner))


def test_recordings_of_their_own(shared):
    values = read(shared / "reference/values/static/readout/multi_two_sessions.npz")
    for name, neurons in (("s1", 7), ("s2", 5)):
        readout = GaussianReadout(IN_SHAPE, neurons, values[f"in/coord_{name}"], feature_reg_weight=0.0076).eval()
        readout.load_state_dict(state(values, f"sd/{name}."))
        shift = values["in/shift"] if name == "s1" else None
        agree(readout(values["in/x"], shift), values[f"out/{name}"])
        agree(readout.regularizer(), values[f"out/reg_{name}"])


def test_the_sensorium_model_from_its_core_on(shared):
    values = read(shared / "reference/values/static/encoder/firing_rate_sensorium.npz")
    key = next(name.split(".")[1] for name in values if name.startswith("sd/readout."))
    core = values["out/core"]
    readout = GaussianReadout(tuple(core.shape[1:]), 9, values["in/coord"]).eval()
    readout.load_state_dict(state(values, f"sd/readout.{key}."))
    shifter = MLPShifter()
    shifter.load_state_dict(state(values, f"sd/shifter.{key}."))
    shift = shifter(values["in/pupil_center"])
    agree(shift, values["out/shift"])
    agree(create_activation("elu1")(readout(core, shift)), values["out/eval"])


VIV1T = {  # shifter mode, grid mode (dimensions of the coordinates), output mode
    "parallel_beh2_exp": (1, 2, 1),
    "parallel_qknorm_swiglu_softplus_shift2_sinus": (2, 2, 2),
    "sequential_bmlp5_elu1_peg": (1, 2, 0),
    "parallel_noflash_posenc4_grid0_noshift": (0, 0, 1),
}
CLOSED_LOOP = {
    "default_causal_rope_reg": (1, 2, 1),
    "posenc2_rmsnorm_swiglu_qknorm_softplus": (1, 2, 3),
    "posenc4_nopad_beh1_noshift_act": (0, 2, 1),
    "posenc7_noflash_causal_sigmoid_grid2": (1, 3, 4),
}


def viv1t_output(folder, variant, project, shifter_mode, dimensions, output_mode, animal):
    """Our responses of an animal from the reference's core features, the reference's, and the parts with a loss."""
    inputs, outputs = read(folder / "inputs.npz"), read(folder / f"outputs_{variant}_perturbed.npz")
    weights = load_file(folder / f"state_{variant}_perturbed.safetensors")
    core, pupil, behavior = outputs[f"core_{animal}"], inputs["pupil"], inputs["behavior"]
    kind = StateGaussianReadout if project == "viv1t" else GaussianReadout
    coordinates = inputs[f"coords_{animal}"]
    readout = kind(
        (core.shape[1], *core.shape[3:]), len(coordinates), coordinates[:, :dimensions] if dimensions else None
    ).eval()
    readout.load_state_dict(from_published(state(weights, f"readouts.{animal}.")))
    parts = torch.nn.ModuleDict({"readouts": readout})
    shift = None
    if shifter_mode:
        parts["shifters"] = shifter = MLPShifter(behavior_inputs=2 if shifter_mode == 2 else 0)
        shifter.load_state_dict(from_published(state(weights, f"shifters.{animal}.")))
        shift = shifter(pupil, behavior)
    activation = published_activation(project, output_mode)
    activation.load_state_dict(from_published(state(weights, f"output_activation.{animal}.")))
    return activation(readout(core, shift, behavior, pupil)), outputs[f"y_{animal}"], parts, inputs


@pytest.mark.parametrize("animal", ["A", "F"])
@pytest.mark.parametrize("variant", VIV1T)
def test_viv1t_competition(shared, variant, animal):
    folder = shared / "reference/values/video/viv1t_competition"
    found, expected, *_ = viv1t_output(folder, variant, "viv1t", *VIV1T[variant], animal)
    agree(found, expected)


@pytest.mark.parametrize("animal", ["A", "F"])
@pytest.mark.parametrize("variant", CLOSED_LOOP)
def test_viv1t_closed_loop(shared, variant, animal):
    folder = shared / "reference/values/video/viv1t_closed_loop"
    found, expected, *_ = viv1t_output(folder, variant, "viv1t_closed_loop", *CLOSED_LOOP[variant], animal)
    agree(found, expected)


def test_viv1t_gradient_norms(shared):
    """Of the published loss, the mean squared error of animal A."""
    folder = shared / "reference/values/video/viv1t_competition"
    for variant in ("parallel_beh2_exp", "parallel_qknorm_swiglu_softplus_shift2_sinus"):
        found, _, parts, inputs = viv1t_output(folder, variant, "viv1t", *VIV1T[variant], "A")
        reference = json.loads((folder / "reference.json").read_text())["variants"][variant]
        target = inputs["target_A"][..., -found.shape[-1] :]
        loss = (found - target).square().mean()
        assert float(loss.detach()) == pytest.approx(reference["mse_A_perturbed"], rel=1e-5)
        loss.backward()
        norms = {name.replace(".", ".A.", 1): p.grad for name, p in parts.named_parameters()}
        norms = {name.replace("_features", "features"): grad for name, grad in norms.items()}
        compared = 0
        for name, expected in reference["grad_norms_A_perturbed"].items():
            if name in norms and expected is not None:
                found_norm = 0.0 if norms[name] is None else float(norms[name].norm())
                assert found_norm == pytest.approx(expected, rel=1e-4, abs=1e-7), name
                compared += 1
        assert compared >= 15


def test_video_is_its_frames():
    torch.manual_seed(0)
    readout = GaussianReadout(IN_SHAPE, NEURONS, mean_responses=torch.rand(NEURONS)).eval()
    video, shift = torch.randn(2, 6, 5, 9, 13), torch.rand(2, 2, 8) - 0.5
    found = readout(video, shift)
    assert found.shape == (2, NEURONS, 5)
    for frame in range(5):
        agree(found[..., frame], readout(video[:, :, frame], shift[..., frame + 3]))
    agree(readout(video, shift[..., -1]), readout(video, shift[..., -1:].expand(-1, -1, 5)))


def test_published_shapes_and_parameters():
    """Mouse A of ViV1T's competition version: 884,072 parameters in the readout."""
    with torch.device("meta"):
        readout = StateGaussianReadout((112, 15, 29), 7440, torch.empty(7440, 2))
    assert sum(each.numel() for each in readout.parameters()) == 884_072


def test_dropped_neurons_leave_the_others_as_they_were():
    ids = np.array([3, 0, 3, 1, 0, 7, 1])
    kept = np.array([5, 0, 2])
    features, shift = torch.randn(2, *IN_SHAPE), torch.rand(2, 2) - 0.5
    for options in (
        {},
        {"coordinates": torch.rand(NEURONS, 3)},
        {"shared_features": Shared(ids), "shared_grid": Shared(ids)},
    ):
        readout = GaussianReadout(IN_SHAPE, NEURONS, mean_responses=np.arange(7.0), **options).eval()
        before = readout(features, shift)
        readout.keep_neurons(kept)
        torch.testing.assert_close(readout(features, shift), before[:, kept])
        torch.nn.init.normal_(readout.sigma)
        assert readout.train()(features).shape == (2, 3)


def test_half_precision_runs_and_positions_stay_exact():
    readout = GaussianReadout(IN_SHAPE, NEURONS).eval()
    features = torch.randn(3, *IN_SHAPE).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = readout(features)
    agree(found, readout(features.float()))
    found.sum().backward()
    assert readout._mu.grad.abs().sum() > 0


def test_the_bias_is_a_copy():
    mean = torch.rand(NEURONS)
    readout = GaussianReadout(IN_SHAPE, NEURONS, mean_responses=mean)
    assert torch.equal(readout.bias, mean)
    readout.bias.data.zero_()
    assert mean.any()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"gauss_type": "round"}, "gauss_type is 'round', expected one of full, uncorrelated, isotropic"),
        ({"init_mu_range": 1.5}, "init_mu_range is 1.5"),
        ({"init_sigma": 0}, "init_sigma is 0"),
        ({"coordinates": torch.rand(6, 2)}, r"coordinates have shape \(6, 2\), expected \(7, 2 or 3\)"),
        ({"coordinates": torch.ones(7, 2)}, "the same for all neurons"),
        ({"mean_responses": torch.rand(3)}, r"mean_responses have shape \(3,\), expected \(7,\)"),
        ({"coordinates": torch.rand(7, 2), "shared_grid": Shared(np.arange(7))}, "shared_grid is for free positions"),
    ],
)
def test_mistakes(options, line):
    with pytest.raises(ValueError, match=line):
        GaussianReadout(IN_SHAPE, NEURONS, **options)


def test_features_that_do_not_fit():
    readout = GaussianReadout(IN_SHAPE, NEURONS)
    assert readout(torch.randn(1, 6, 20, 30)).shape == (1, NEURONS)
    with pytest.raises(ValueError, match=r"shape \(5, 9, 13\), the readout was built for \(6, 9, 13\)"):
        readout(torch.randn(1, 5, 9, 13))
    with pytest.raises(ValueError, match="shift has shape"):
        readout(torch.randn(1, 6, 5, 9, 13), torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="numbered 0 to 6"):
        readout(torch.randn(1, *IN_SHAPE), neurons=[2, 9])
    with pytest.raises(ValueError, match="behavior and pupil_center must be given"):
        StateGaussianReadout(IN_SHAPE, NEURONS)(torch.randn(1, *IN_SHAPE))


def test_own_offsets_follow_what_coordinates_do_not_tell():
    """Fields that scatter around a map that is linear in the coordinates: the network finds it, offsets the rest."""
    torch.manual_seed(0)
    coordinates = torch.rand(40, 2) * 1000
    centres = (coordinates / 1000 - 0.5) * 0.8 + 0.1 * torch.randn(40, 2)
    wide = F.pad(torch.randn(200, 2, 10, 14), (1, 1, 1, 1), mode="replicate")
    maps = F.avg_pool2d(wide, 3, 1)
    truth = GaussianReadout((2, 10, 14), 40, init_mu_range=0.1)
    truth._mu.data = centres[None, :, None]
    wanted = truth(maps, sample=False).detach()
    errors = {}
    for offsets in (False, True):
        readout = GaussianReadout((2, 10, 14), 40, coordinates, own_offsets=offsets, init_sigma=0.05)
        optimizer = torch.optim.Adam(readout.parameters(), 0.02)
        for _ in range(300):
            optimizer.zero_grad()
            (readout(maps) - wanted).square().mean().backward()
            optimizer.step()
        errors[offsets] = (readout.mu[0, :, 0] - centres).norm(dim=1).median().item()
    assert errors[True] < 0.03 < errors[False]


def test_offsets_are_kept_and_dropped_with_their_neurons():
    readout = GaussianReadout((2, 10, 14), 6, torch.rand(6, 2), own_offsets=True)
    readout.offsets.data.copy_(torch.arange(12).view(1, 6, 1, 2) / 100)
    before = readout.mu
    readout.keep_neurons(torch.tensor([1, 4]))
    torch.testing.assert_close(readout.mu, before[:, [1, 4]])
    with pytest.raises(ValueError, match="own_offsets are from positions that coordinates predict"):
        GaussianReadout((2, 10, 14), 6, own_offsets=True)
