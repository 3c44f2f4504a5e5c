"""The recipes of pretraining: every one builds, and those of a published family have its settings."""

import json

import pytest
import torch

from pretrain.config import PretrainConfig
from pretrain.core_backbone import create_backbone
from pretrain.models import model_info
from pretrain.objectives import known_objective
from pretrain.run import backbone_spec, require_consistent
from pretrain.schedule import learning_rate
from ray_jobs.config import compose, list_recipes, read_recipe

RECIPES = list_recipes("pretrain")
# Recipes of ours, not of the published families.
OWN = {"demo", *(name for name in RECIPES if name.startswith("cifar10_") or name.endswith("_ir_cifar10"))}
OF_CLIPS = {"dwiseneuro_simclr", "dynamic_vfm_simclr", "factorized3d_simclr", "viv1t_simclr"}
OWN |= OF_CLIPS
PARTS = {"model", "model_args", "objective", "objective_args", "views", "optimizer", "epochs", "batch_size"}


def recipe(name: str, *more: str) -> PretrainConfig:
    return compose("pretrain", [f"recipe={name}", *more])


def rates(config: PretrainConfig) -> list[float]:
    return [learning_rate(epoch, config.epochs, config.optimizer) for epoch in range(config.epochs)]


def test_the_published_recipe_equals_the_defaults():
    assert recipe("alexnet_bn_ir") == PretrainConfig(
        objective_args={"dim": 128, "negatives": 4096, "temperature": 0.07, "momentum": 0.5}
    )


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - OWN))
def test_a_recipe_is_complete_and_its_names_exist(name):
    config = recipe(name)
    assert read_recipe(RECIPES[name]).keys() >= PARTS
    require_consistent(config)
    assert RECIPES[name].read_text().startswith("# ")


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_objective_takes_its_arguments(name):
    import inspect

    config = recipe(name)
    assert set(config.objective_args) <= set(inspect.signature(known_objective(config.objective)).parameters)


@pytest.mark.parametrize("name", sorted(OF_CLIPS))
def test_the_core_of_a_recipe_fits_its_clips(name):
    config = recipe(name)
    require_consistent(config)
    spec = backbone_spec(config)
    with torch.device("meta"):
        create_backbone(spec.name, **spec.args).require_clips_of(config.views.clip_frames, config.views.size)


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - OF_CLIPS))
def test_the_backbone_of_a_recipe_is_built(name):
    from pretrain.models import create_model

    spec = backbone_spec(recipe(name))
    with torch.device("meta"):
        model = create_model(spec.name, **spec.args)
    layers = dict(model.named_modules())
    assert all(layer in layers for layer in model_info(spec.name).fit_layers)


# Section 4.1 of the fact sheet, a row for each family: optimiser, batch, epochs, and what depends on the network.
FAMILIES = {
    "_ir": ("momentum", 256, 200),
    "_simclr": ("lars", 4096, 200),
    "_simsiam": ("momentum", 512, 100),
    "_mocov2": ("momentum", 512, 200),
    "_rotnet": ("nesterov", 192, 50),
    "_relative_location": ("momentum", 512, 70),
    "_autoencoder": ("momentum", 256, 100),
    "_depth": ("momentum", 256, 50),
    "_depth_load": ("adam", 256, 50),
    "_supervised": ("momentum", 256, 100),
}


def of_families(families: dict) -> list[str]:
    """Recipes of label-free or supervised training whose name ends in one of these."""
    trained = [name for name in RECIPES.keys() - OWN if not name.startswith("linear_")]
    return sorted(name for name in trained if any(name.endswith(family) for family in families))


@pytest.mark.parametrize("name", of_families(FAMILIES))
def test_a_familys_optimiser_batch_and_epochs(name):
    config = recipe(name)
    family = next(family for family in FAMILIES if name.endswith(family))
    assert (config.optimizer.name, config.batch_size, config.epochs) == FAMILIES[family]
    assert config.optimizer.momentum == 0.9
    assert config.seed == 1


PUBLISHED_RATES = {
    "alexnet_bn_simclr": "simclr/alexnet_bn_simclr_gpu.json",
    "alexnet_bn_simsiam": "simsiam/alexnet_bn_simsiam_gpu.json",
    "alexnet_bn_mocov2": "mocov2/alexnet_bn_mocov2_gpu.json",
    "resnet50_relative_location": "relative_location/resnet50_relative_location_trainer_tpu.json",
    "alexnet_bn_ir": "ir/alexnet_bn_ir.json",
    "six_stream_rotnet": "rotnet/simplified_mousenet_six_stream_visp_3x3_rotnet_trainer_gpu.json",
    "linear_alexnet_bn": "finetune/finetune_generic_preproc/finetune_alexnet_bn_64x64_ir.json",
    "dual_stream_depth_load": (
        "depth_prediction/simplified_mousenet_dual_stream_depth_pred_hour_glass_pbrnet_trainer_gpu_load.json"
    ),
    "alexnet_bn_supervised_ir_views": "imagenet/alexnet_bn_64x64_imagenet_IR_transforms_gpu.json",
}


@pytest.mark.parametrize("name", PUBLISHED_RATES)
def test_learning_rates_by_epoch_are_the_published_ones(name, mouse_vision):
    published = json.loads((mouse_vision / "training" / "lr_schedules.json").read_text())[PUBLISHED_RATES[name]]
    assert rates(recipe(name)) == pytest.approx(published, abs=1e-12)


SAME_RATES = {
    "_simclr": "alexnet_bn_simclr",
    "_simsiam": "alexnet_bn_simsiam",
    "_mocov2": "alexnet_bn_mocov2",
    "_rotnet": "six_stream_rotnet",
    "_relative_location": "resnet50_relative_location",
    "_depth_load": "dual_stream_depth_load",
}


@pytest.mark.parametrize("name", of_families(SAME_RATES))
def test_all_networks_of_a_family_share_its_learning_rates(name):
    family = next(family for family in SAME_RATES if name.endswith(family))
    assert rates(recipe(name)) == rates(recipe(SAME_RATES[family]))


@pytest.mark.parametrize(
    ("name", "first", "milestones", "decay"),
    [
        ("alexnet_bn_ir_224", 0.03, [120, 160], 1e-4),
        ("resnet50_ir", 0.03, [120, 160], 1e-4),
        ("six_stream_ir_low_lr", 0.003, [120, 160], 5e-4),
        ("six_stream_autoencoder", 0.001, [30, 60, 90], 5e-4),
        ("dual_stream_autoencoder", 0.01, [30, 60, 90], 5e-4),
        ("resnet18_supervised", 0.1, [30, 60, 90], 1e-4),
        ("alexnet_supervised", 0.01, [30, 60, 90], 5e-4),
        ("dual_stream_depth", 1e-4, [15, 30, 45], 1e-4),
    ],
)
def test_the_exceptions_of_a_family(name, first, milestones, decay):
    config = recipe(name)
    found = rates(config)
    assert found[0] == first
    assert config.optimizer.weight_decay == decay
    steps = [epoch for epoch in range(1, config.epochs) if found[epoch] != found[epoch - 1]]
    assert steps == [milestone for milestone in milestones if milestone < config.epochs]


def test_resnet18_scales_its_rate_with_its_batch():
    for batch in (256, 512, 2048):
        config = recipe(f"resnet18_simclr_{batch}")
        assert config.optimizer.lr == pytest.approx(0.3 * batch / 256)
        assert config.batch_size == batch
