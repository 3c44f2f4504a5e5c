"""Models that are compared: their names, and features that are computed a batch at a time, in memory or on disk."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pretrain.checkpoint import BackboneSpec
from pretrain.models import create_model
from transfer.compared_models import ComparedModel, checkpoints_of, compared_models, labels, network, stimulus_features
from transfer.config import PredictivityConfig
from transfer.features import prepare_stimuli


def spec(**changes: object) -> BackboneSpec:
    facts = {"name": "timm/test_resnet", "args": {"num_classes": 0}, "input_size": 32}
    return BackboneSpec(**(facts | {"mean": (0.5,) * 3, "std": (0.25,) * 3} | changes))


@pytest.fixture(scope="module")
def model() -> ComparedModel:
    torch.manual_seed(0)
    backbone = create_model("timm/test_resnet", num_classes=0).eval()
    return network("m", backbone, spec(), PredictivityConfig(layers=["layer1", "layer4"]), None)


@pytest.mark.parametrize("memory_gb", [1.0, 0.0])
def test_features_of_many_stimuli_are_those_of_each(model, tmp_path, memory_gb):
    stimuli = np.random.default_rng(0).integers(0, 256, (300, 32, 32), np.uint8)
    rows, config = np.arange(10, 280), PredictivityConfig(memory_gb=memory_gb, stimulus_view="whole")
    found = stimulus_features(model, stimuli, rows, model.layers, tmp_path / "store", config)
    assert list(found) == ["layer1", "layer4"]
    assert found["layer1"].dtype == np.float32
    assert isinstance(found["layer1"], np.memmap) == (memory_gb == 0)
    alone = model.activations(prepare_stimuli(stimuli[265:268], model.spec, "whole"), ["layer4"])["layer4"].flatten(1)
    np.testing.assert_allclose(found["layer4"][255:258], alone.numpy(), rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_not_there_is_named_at_once():
    backbone = create_model("timm/test_resnet", num_classes=0)
    with pytest.raises(ValueError, match="the model has no layer 'layer5'; nearest: layer4"):
        network("m", backbone, spec(), PredictivityConfig(layers=["layer5"]), None)


def checkpoint(path: str) -> SimpleNamespace:
    return SimpleNamespace(path=path)


def test_one_checkpoint_is_the_trained_one_and_several_have_names():
    assert labels([checkpoint("runs/a/checkpoints/step-1.pt")]) == ["trained"]
    paths = ["runs/a/checkpoints/step-1.pt", "files/alexnet_bn_ir.pt", "other/a/checkpoints/step-9.pt"]
    assert labels([checkpoint(path) for path in paths]) == ["a (1)", "alexnet_bn_ir", "a (2)"]


@pytest.mark.parametrize(("keys", "found"), [({}, "neither"), ({"checkpoint": "a", "checkpoints": ["b"]}, "both")])
def test_one_key_or_the_other(keys, found):
    with pytest.raises(ValueError, match=f"found {found} of checkpoint and checkpoints"):
        checkpoints_of(PredictivityConfig(**keys))


def test_baselines_are_there_once_for_each_network_and_input(tiny_run):
    config = PredictivityConfig(layers=["layer1"], accelerator="cpu")
    trained = checkpoints_of(PredictivityConfig(checkpoints=[str(tiny_run), str(tiny_run)]))
    models = list(compared_models(trained, config))
    assert [model.label for model in models] == [
        f"{tiny_run.name} (1)",
        f"{tiny_run.name} (2)",
        "random",
        "gabor",
        "pixels",
    ]
    images = torch.rand(2, 3, 32, 32)
    assert models[-1].activations(images, ["pixels"])["pixels"].shape == (2, 3 * 32 * 32)
    trained_layer, random_layer = (layer_of(models[place], images) for place in (0, 2))
    assert not torch.allclose(trained_layer, random_layer)


def layer_of(model: ComparedModel, images: torch.Tensor) -> torch.Tensor:
    return model.activations(images, ["layer1"])["layer1"]


def test_an_untrained_network_is_a_model_of_its_own_and_its_own_baseline():
    config = PredictivityConfig(checkpoints=["untrained_single_stream"], layers=["VISp"], accelerator="cpu", seed=3)
    trained = checkpoints_of(config)
    assert [model.label for model in compared_models(trained, config)] == ["untrained_single_stream", "gabor", "pixels"]
    torch.manual_seed(3)
    expected = create_model("single_stream", **trained[0].spec.args)
    for name, values in expected.state_dict().items():
        assert torch.equal(trained[0].backbone.state_dict()[name], values)
    with pytest.raises(ValueError, match="single_strem"):
        checkpoints_of(PredictivityConfig(checkpoint="untrained_single_strem"))
