"""Published weights of ViV1T: every key of both versions has a place, and what does not fit is one line."""

import json

import pytest
import torch
from torch import nn

from pretrain.models.viv1t import ViV1T, viv1t, viv1t_closed_loop
from pretrain.published_viv1t import core_weights, from_published, published_arguments

BUILD = {"viv1t_competition": viv1t, "viv1t_closed_loop": viv1t_closed_loop}
ENTRIES = {"viv1t_competition": 293, "viv1t_closed_loop": 403}


def published(shared, version: str) -> dict[str, torch.Tensor]:
    path = shared / "reference" / "values" / "video" / version / "default_state_dict_keys.json"
    return {key: torch.empty(shape, device="meta") for key, (shape, _) in json.loads(path.read_text()).items()}


@pytest.mark.parametrize("version", BUILD)
def test_the_default_state_dict_fits_the_default_core(version, shared):
    state = published(shared, version)
    assert len(state) == ENTRIES[version]
    with torch.device("meta"):
        core = BUILD[version]()
    assert set(core_weights(state, core)) == set(core.state_dict())


@pytest.mark.parametrize("version", BUILD)
def test_only_constants_are_left_out_and_no_two_weights_meet(version, shared):
    state = published(shared, version)
    weights = from_published(state)
    left_out = ("reg_scale", "scale", "keep_prob", "inv_freq", "one")
    assert len(weights) == sum(key.rpartition(".")[2] not in left_out for key in state)
    children = {name.split(".")[0] for name in weights}
    assert children == {"core", "shifters", "readouts"}
    assert weights["readouts.A._features"].shape == (1, 112, 1, 7440)
    for name in ("readouts.J.sigma", "readouts.J.mu_transform.2.bias", "shifters.C.mlp.4.weight"):
        assert weights[name].shape == state[name].shape


def test_every_described_variant_is_mapped(shared):
    for version in BUILD:
        facts = json.loads((shared / "reference" / "values" / "video" / version / "reference.json").read_text())
        for variant in facts["variants"].values():
            state = {key: torch.empty(shape, device="meta") for key, (shape, _) in variant["state_dict"].items()}
            assert len(set(from_published(state))) == len(from_published(state))


def small_state(core: nn.Module) -> dict[str, torch.Tensor]:
    """The competition's names of a parallel core's weights."""
    renamed = {
        "tokenizer.norm": "vivit.tokenizer.tokenizer.1",
        "tokenizer.linear": "vivit.tokenizer.tokenizer.2",
        "tokenizer.out_norm": "vivit.tokenizer.tokenizer.3",
        "positions.spatial": "vivit.tokenizer.spatial_pos_embedding",
        "positions.temporal": "vivit.tokenizer.temporal_pos_embedding",
        "spatial.blocks": "vivit.spatial_transformer.blocks",
        "temporal.blocks": "vivit.temporal_transformer.blocks",
        "ff_out": "ff_out.2",
    }
    state = {}
    for name, value in core.state_dict().items():
        for ours, theirs in renamed.items():
            name = name.replace(ours, theirs)
        state[f"core.{name}"] = value
    return state


SMALL = {
    "input_size": (9, 11), "frames": 3, "patch": 3, "max_frames": 8, "spatial_depth": 1, "temporal_depth": 1,
    "heads": 2, "head_dim": 4, "width": 8, "ff_dim": 6,
}  # fmt: skip


@pytest.mark.parametrize("form", ["bare", "checkpoint", "compiled"])
def test_weights_come_back_from_every_form_of_file(form):
    core = ViV1T(**SMALL)
    state = small_state(core)
    if form == "checkpoint":
        state = {"epoch": 3, "value": 0.25, "model": state, "optimizer": {}}
    elif form == "compiled":
        state = {key.replace("_transformer.", "_transformer._orig_mod."): value for key, value in state.items()}
    found = core_weights(state, core)
    for name, value in core.state_dict().items():
        assert torch.equal(found[name], value), name


def test_what_does_not_fit_is_one_line():
    core = ViV1T(**SMALL)
    state = small_state(core)
    wrong = state | {"core.vivit.tokenizer.tokenizer.2.bias": torch.zeros(9)}
    with pytest.raises(
        ValueError, match=r"'tokenizer.linear.bias' has shape \(9,\) in the published file, \(8,\) in the model"
    ):
        core_weights(wrong, core)
    missing = {key: value for key, value in state.items() if "attn_out" not in key}
    with pytest.raises(ValueError, match=r"published file has no 'spatial.blocks.0.attn_out.weight', shape \(8, 8\)"):
        core_weights(missing, core)
    more = state | {"core.vivit.reg_s_tokens": torch.zeros(2, 8)}
    with pytest.raises(ValueError, match=r"has 'spatial.registers', shape \(2, 8\), which the model does not have"):
        core_weights(more, core)
    with pytest.raises(ValueError, match=r"no weight of the name 'nn.stem.weight'; is the file of another model"):
        from_published({"nn.stem.weight": torch.zeros(1)})


def test_a_whole_encoder_is_checked_too():
    core = ViV1T(**SMALL)
    encoder = nn.Module()
    encoder.core, encoder.readouts = core, nn.ModuleDict({"A": nn.Linear(2, 3)})
    state = small_state(core) | {"readouts.A.weight": torch.zeros(3, 2), "readouts.A.bias": torch.zeros(3)}
    encoder.load_state_dict(from_published(state, encoder))
    with pytest.raises(ValueError, match=r"has no 'readouts.A.bias'"):
        from_published({key: value for key, value in state.items() if key != "readouts.A.bias"}, encoder)


@pytest.mark.parametrize("version", BUILD)
def test_the_published_arguments_are_our_defaults(version, shared):
    path = shared / "reference" / "values" / "video" / version / "param_counts.json"
    args = json.loads(path.read_text())["readme_command_config"]["args"]
    with torch.device("meta"):
        found, expected = ViV1T(**published_arguments(args)), BUILD[version]()
    assert str(found) == str(expected)
    for part in ("input_size", "max_frames", "behavior", "frames", "token_dropout", "drop_whole_tokens"):
        assert getattr(found, part) == getattr(expected, part)
    assert found.temporal.blocks[0].sizes == expected.temporal.blocks[0].sizes


def test_the_broken_patch_mode_and_other_cores_are_one_line(shared):
    path = shared / "reference" / "values" / "video" / "viv1t_competition" / "param_counts.json"
    args = json.loads(path.read_text())["readme_command_config"]["args"]
    with pytest.raises(ValueError, match="core_patch_mode=1 of the competition version does not run as published"):
        published_arguments(args | {"core_patch_mode": 1})
    with pytest.raises(ValueError, match="core must be 'vivit', found 'factorized'"):
        published_arguments(args | {"core": "factorized"})
