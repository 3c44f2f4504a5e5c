"""Published weights: every layout that mouse-vision's trainers wrote, and others' that must not be taken for one."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from pretrain.models import create_model
from pretrain.published import PublishedWeights, select_matching, select_weights

State = dict[str, Any]


class Net(nn.Module):
    """A backbone of the field's shape: features, and a classifier whose last layer can be left out."""

    def __init__(self, num_classes: int = 0) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.classifier = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, num_classes or 6))
        if not num_classes:
            del self.classifier[2]


def weights(num_classes: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(num_classes + 1)
    return Net(num_classes).state_dict()


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def head(prefix: str = "module.") -> dict[str, Tensor]:
    return prefixed(prefix, {"weight": torch.ones(2, 6), "bias": torch.ones(2)})


def trainers(prefix: str) -> dict[str, State]:
    """What each of mouse-vision's trainers writes beside `epoch`, `optimizer` and `results`."""
    net = prefixed(prefix, weights())
    query, momentum = (prefixed(f"module.encoder_{which}.0.", weights()) for which in "qk")
    moco_loss = {
        **{name: value + 1 for name, value in momentum.items()},
        **prefixed("module.encoder_q.1.mlp.0.", head("")),
        **prefixed("module.encoder_q_neck.mlp.0.", head("")),
        "module.queue": torch.ones(4, 9),
        "module.queue_ptr": torch.zeros(1, dtype=torch.long),
    }
    mirror = prefixed(prefix, {"decoder_layers.VISpor_VISp.1.weight": torch.ones(3), "compress_fc.bias": torch.ones(2)})
    return {
        "supervised": {"state_dict": prefixed(prefix, weights(10)), "curr_best_acc": 57.1},
        "instance recognition": {
            "model_state_dict": net, "embedding_func": head(), "memory_bank": torch.ones(9, 8), "curr_best_acc": 40.0,
        },
        "simclr": {"model_state_dict": net, "neck_state_dict": head(), "curr_best_loss": 7.4},
        "simsiam": {"model_state_dict": net, "neck_state_dict": head(""), "curr_best_loss": -0.9},
        "moco": {"model_state_dict": weights(), "loss_state_dict": {**query, **moco_loss}, "curr_best_acc": 1.0},
        "moco, loss only": {"loss_state_dict": {**moco_loss, **query}},
        "rotnet": {"model_state_dict": net, "loss_state_dict": head(), "curr_best_acc": 70.0},
        "relative location": {"model_state_dict": net, "loss_state_dict": head(), "curr_best_acc": 50.0},
        "autoencoder": {"model_state_dict": {**mirror, **net}, "curr_best_loss": 0.1},
        "depth": {"model_state_dict": {**net, **mirror}, "decoder_state_dict": head(), "curr_best_loss": 0.1},
        "bare": net,
    }  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("trainer", trainers(""))
def test_the_backbone_is_found_where_each_trainer_left_it(trainer: str, prefix: str) -> None:
    state = trainers(prefix)[trainer]
    if trainer != "bare":
        state = {"epoch": 199, "optimizer": {"state": {}}, "results": {}} | state
    found = select_weights(Net(), state, "w.pt")
    expected = {name: value for name, value in weights(10 * (trainer == "supervised")).items() if name in weights()}
    assert list(found.weights) == list(expected)
    assert all(torch.equal(found.weights[name], value) for name, value in expected.items())
    Net().load_state_dict(found.weights)
    assert_every_name_is_accounted_for(found, state)


def assert_every_name_is_accounted_for(found: PublishedWeights, state: State) -> None:
    """Every key at the top and at the place is used or ignored, once; what is renamed is what was used."""
    below = list(state[found.place]) if found.place else []
    top = [key for key in state if key != found.place]
    assert sorted([*found.used, *found.ignored]) == sorted([*below, *top])
    renamed = {old: new for old, new in zip(found.used, found.weights, strict=True) if old != new}
    assert found.renamed == renamed


def test_moco_is_read_from_the_backbone_and_else_from_the_query_encoder() -> None:
    state = trainers("")["moco"]
    assert select_weights(Net(), state, "w.pt").place == "model_state_dict"
    only = select_weights(Net(), trainers("")["moco, loss only"], "w.pt")
    assert only.renamed["module.encoder_q.0.features.0.weight"] == "features.0.weight"
    assert {"module.encoder_k.0.features.0.weight", "module.queue"} <= set(only.ignored)


def test_masks_are_weights_like_others() -> None:
    model = create_model("shi_mousenet_ir")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    masks = [name for name in state if name.endswith(".mask")]
    for name in masks:
        state[name] = 1 - state[name]
    found = select_weights(model, {"model_state_dict": state}, "w.pt")
    assert len(masks) == 49
    assert all(torch.equal(found.weights[name], state[name]) for name in masks)
    del state[masks[0]]
    with pytest.raises(
        ValueError, match=r"no weights for 'Convs.input_LGNv.mask', shape \(5, 3, 9, 9\); of the model's"
    ):
        select_weights(model, {"model_state_dict": state}, "w.pt")


def test_a_linear_readout_is_recognised() -> None:
    state = {
        "epoch": 89,
        "loss_readout_state_dict": prefixed("module.readout.classifier.fc.1.", head("")),
        "results": {},
    }
    with pytest.raises(
        ValueError, match=r"is a linear readout, saved without the backbone .*found: epoch, loss_readout"
    ):
        select_weights(Net(), state, "w.pt")


def changed(**change: Tensor | None) -> State:
    state = weights() | {name.replace("__", "."): value for name, value in change.items()}
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("state", "line"),
    [
        (
            changed(features__0__bias=None),
            r"w.pt has no weights for 'features.0.bias', shape \(4,\); of the model's 9 it lacks 1",
        ),
        (changed(features__0__bias=torch.zeros(9)), r"'features.0.bias' has shape \(9,\) in w.pt, \(4,\) in the model"),
        (changed(extra=torch.zeros(1)), r"w.pt has weights that the model does not: 'extra'; is it another"),
        (changed(a=torch.zeros(1), b=torch.zeros(1)), "that the model does not: 'a' and 1 more"),
        (
            {"conv1.weight": torch.zeros(2), "z": torch.zeros(1)},
            r"nor for any other of the model's; it has conv1.weight, z",
        ),
        ({"epoch": 3, "args": {}}, r"holds no weights by name \(found: epoch, args\)"),
        ({}, r"holds no weights by name \(found: nothing\)"),
        ({1: torch.zeros(2)}, "holds no weights by name"),
        (torch.zeros(3), "holds no weights by name, but Tensor"),
        ([weights()], "holds no weights by name, but list"),
    ],
)
def test_what_does_not_fit_is_one_line(state: Any, line: str) -> None:
    with pytest.raises(ValueError, match=line) as error:
        select_weights(Net(), state, "w.pt")
    assert "\n" not in str(error.value)


def test_a_classifier_that_the_model_lacks_is_ignored_and_one_that_the_file_lacks_is_asked_for() -> None:
    found = select_weights(Net(), {"state_dict": prefixed("module.", weights(10)), "epoch": 3}, "w.pt")
    assert found.ignored == ("module.classifier.2.weight", "module.classifier.2.bias", "epoch")
    with pytest.raises(
        ValueError, match=r"no weights for 'classifier.2.weight', shape \(10, 6\): it was saved without"
    ):
        select_weights(Net(10), weights(), "w.pt")


def test_old_batch_norm_without_its_counter_is_complete() -> None:
    state = {name: value for name, value in weights().items() if "num_batches_tracked" not in name}
    assert set(weights()) - set(select_weights(Net(), state, "w.pt").weights) == {"features.1.num_batches_tracked"}


@example(set(weights(10)) - {"features.1.num_batches_tracked"}, set())
@given(st.sets(st.sampled_from(list(weights(10)))), st.sets(st.sampled_from(list(weights(10)))))
def test_what_matches_is_exactly_what_has_the_name_and_the_shape(absent: set[str], reshaped: set[str]) -> None:
    state = {name: value for name, value in weights(10).items() if name not in absent}
    state |= {name: torch.zeros(1, 2, 3) for name in reshaped if name in state}
    fitting = [name for name in weights(10) if name in state and name not in reshaped]
    if all(name.endswith("num_batches_tracked") for name in fitting):
        with pytest.raises(ValueError, match=r"has shape|no weights"):
            select_matching(Net(10), {"epoch": 1, "state_dict": state}, "w.pt")
        return
    found = select_matching(Net(10), {"epoch": 1, "state_dict": state}, "w.pt")
    assert list(found.weights) == fitting
    assert_every_name_is_accounted_for(found, {"epoch": 1, "state_dict": state})


def test_a_supervised_network_starts_an_hour_glass() -> None:
    """As mouse-vision's depth prediction starts from a multi-stream network that was trained to classify."""
    with torch.device("meta"):
        supervised, depth = create_model("single_stream"), create_model("single_stream_depth")
    found = select_matching(depth, {"state_dict": prefixed("module.", supervised.state_dict())}, "w.pt")
    assert found.ignored == ("module.classifier.2.weight", "module.classifier.2.bias")
    assert len(found.weights) == 35
    assert all(name.startswith(("decoder_layers.",)) for name in set(depth.state_dict()) - set(found.weights))


def test_the_account_is_short() -> None:
    found = select_weights(Net(), {"epoch": 3, "state_dict": prefixed("module.", weights(10))}, "w.pt")
    first, second = "features.0.weight", "features.0.bias"
    third, fourth = "features.1.weight", "features.1.bias"
    assert list(found.account("w.pt")) == [
        f"w.pt: 9 tensors from `state_dict`: module.{first}, module.{second}, module.{third}, module.{fourth} "
        "and 5 more",
        f"  renamed: module.{first} -> {first}, module.{second} -> {second}, module.{third} -> {third}, "
        f"module.{fourth} -> {fourth} and 5 more",
        "  not used: module.classifier.2.weight, module.classifier.2.bias, epoch",
    ]
    bare = select_weights(Net(), weights(), "w.pt")
    assert list(bare.account("w.pt")) == [f"w.pt: 9 tensors: {first}, {second}, {third}, {fourth} and 5 more"]


@pytest.fixture(scope="module")
def on_meta() -> Callable[[str], nn.Module]:
    def make(name: str) -> nn.Module:
        with torch.device("meta"):
            return create_model(name)

    return make


def test_published_keys_and_shapes_fit_every_network_of_that_name(mouse_vision, on_meta) -> None:
    """The files hold what the original constructors have: 21 of them are known key by key."""
    known = json.loads((mouse_vision / "models.json").read_text())
    assert len(known) == 21
    for name, facts in known.items():
        keys = {f"module.{key}": torch.empty(shape, device="meta") for key, shape in facts["state_keys"].items()}
        found = select_weights(on_meta(name), {"model_state_dict": keys}, name)
        assert list(found.renamed) == list(keys), name


def test_no_published_file_is_taken_for_another(mouse_vision, on_meta) -> None:
    known = json.loads((mouse_vision / "models.json").read_text())
    files = {
        "alexnet_bn_ir": "alexnet_bn_ir_64x64_input_pool_6",
        "dual_stream_ir": "simplified_mousenet_dual_stream_visp_3x3_ir",
        "six_stream_simclr": "simplified_mousenet_six_stream_visp_3x3_simclr",
        "shi_mousenet_ir": "shi_mousenet_ir",
        "shi_mousenet_vispor5_ir": "shi_mousenet_vispor5_ir",
    }
    same = {"shi_mousenet_ir", "shi_mousenet_vispor5_ir"}
    for file, constructor in files.items():
        keys = {key: torch.empty(shape, device="meta") for key, shape in known[constructor]["state_keys"].items()}
        for name in files:
            if name == file or {name, file} == same:
                assert len(select_weights(on_meta(name), keys, file).used) == len(keys)
            else:
                with pytest.raises(ValueError, match=file):
                    select_weights(on_meta(name), keys, file)
