"""The recipes of fits: each is complete, builds its encoder at full size, and takes a step at a small one."""

import numpy as np
import pandas as pd
import pytest
import torch

from ray_jobs.config import compose, list_recipes, read_recipe
from tests.transfer.fits import write_colours, write_images, write_videos
from transfer.encoder_builder import build_encoder
from transfer.encoder_spec import AnimalFacts
from transfer.fit import fit, require_consistent
from transfer.fit_encoder import encoder_spec

RECIPES = list_recipes("fit")
PUBLISHED = {name for name in RECIPES if not name.startswith("demo_")}
PARTS = {"model", "trials", "normalisation", "loss", "batching", "batch_size", "optimizer", "schedule", "epochs"}
STATIC = ("v1t", "v1t_franke2022", "sensorium2022_cnn", "sensorium2022_ln")
# Arguments with which a core is small, by the model of a recipe.
SMALL = {
    "dwiseneuro": {
        "features": [8, 8], "strides": [2, 2], "cortex_features": [16], "expansion": 2, "squeeze": 4, "canvas": [20, 32]
    },
    "viv1t": {"spatial_depth": 1, "temporal_depth": 1, "heads": 2, "head_dim": 4, "width": 8, "ff_dim": 8},
    "dynamic_vfm": {"channels": 8, "blocks": 1, "heads": 2, "hidden": 8},
    "sensorium2023_factorized": {"channels": [4, 4, 4]},
    "sensorium2023_gru": {
        "state_channels": 4, "features": 2, "rotations": 4, "layers": 2, "input_kernel": 5, "hidden_kernel": 3
    },
    "v1t": {"emb_dim": 8, "num_blocks": 1, "num_heads": 2, "mlp_dim": 8, "image_size": [20, 32]},
    "sensorium2022_cnn": {"channels": 4},
}  # fmt: skip
SMALL["dwiseneuro_distillation"] = SMALL["dwiseneuro"]
SMALL["viv1t_closed_loop"] = SMALL["viv1t"]
SMALL["v1t_franke2022"] = SMALL["v1t"]
SMALL["sensorium2022_ln"] = SMALL["sensorium2022_cnn"]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    out = tmp_path_factory.mktemp("recordings")
    videos, images = write_videos(out / "videos"), write_images(out / "images")
    return {"videos": videos, "images": images, "colours": write_colours(out / "colours")}


def test_every_published_solution_has_a_recipe():
    assert {
        "dwiseneuro_true_batch_001", "dwiseneuro_distillation_001", "viv1t", "viv1t_closed_loop", "dynamic_vfm",
        "sensorium2023_factorized", "sensorium2023_gru", "v1t", "v1t_franke2022", "sensorium2022_cnn",
        "sensorium2022_ln",
    } == PUBLISHED  # fmt: skip


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_recipe_is_complete(name):
    assert read_recipe(RECIPES[name]).keys() >= PARTS
    assert RECIPES[name].read_text().startswith("# ")


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_builds_at_its_size(name):
    config = compose("fit", [f"recipe={name}", "recording=somewhere"])
    require_consistent(config)
    images = config.model in STATIC
    facts = {"size": (36, 64), "channels": 1 + (config.model == "v1t_franke2022"), "pupil_channels": 2}
    facts |= {"neurons": 7863, "behavior_channels": 2 + images, "coordinates": np.zeros((7863, 3))}
    with torch.device("meta"):
        encoder = build_encoder(encoder_spec(config), {name: AnimalFacts(**facts) for name in "abcde"})
    assert encoder.animals == list("abcde")


def recording_of(config, recordings):
    if config.model == "v1t_franke2022":
        return recordings["colours"]
    return recordings["images" if config.model in STATIC else "videos"]


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_recipe_takes_a_step_at_a_small_size(name, recordings, tmp_path):
    config = compose("fit", [f"recipe={name}", "accelerator=cpu", f"out={tmp_path / 'run'}", "log_every=1"])
    config.core.args = SMALL[config.model]
    config.recording = str(recording_of(config, recordings))
    # Steps of both animals, with the batch of the recipe or all trials, and windows that fit into 60 frames.
    config.epochs, config.samples_per_epoch, config.batch_size = 1, 0, 8
    config.window.frames = min(config.window.frames, 30)
    config.schedule.warmup_epochs = config.schedule.warmup_steps = config.schedule.second_epoch = 0
    config.stimulus_scale = 1.0
    config.precision, config.trials.folds = "32-true", 2 * bool(config.trials.folds)
    if config.distillation.teacher:
        config.distillation.teacher = str(teacher(config, recordings, tmp_path / "teacher"))
    table = pd.read_csv(fit(config) / "metrics.csv")
    assert np.isfinite(table["loss"].dropna()).all()
    assert table["single_trial_correlation"].notna().sum() == 1 + (config.schedule.counting == "neuralpredictors")


def teacher(config, recordings, out):
    """A fit of the other DwiseNeuro for a step."""
    taught = compose("fit", ["recipe=dwiseneuro_true_batch_001", "accelerator=cpu", f"out={out}"])
    taught.core.args, taught.recording = SMALL[taught.model], config.recording
    taught.epochs, taught.samples_per_epoch, taught.precision = 1, 0, "32-true"
    taught.schedule.warmup_epochs, taught.trials.folds = 0, 2
    return fit(taught)


def test_all_31_models_of_dynamic_vfm_are_two_keys_away():
    levels = "[[2,4,8,16],[2,4,8],[2,4,16],[2,8,16],[4,8,16],[2,4],[2,8],[2,16],[4,8],[4,16],[8,16],[2],[4],[8],[16]]"
    for each in levels.strip("[]").split("],["):
        for fusion in ("mean", "adaptive"):
            keys = [f"readout.args.levels=[{each}]", f"readout.args.fusion={fusion}"]
            spec = encoder_spec(compose("fit", ["recipe=dynamic_vfm", *keys]))
            assert spec.readout_arguments["levels"] == [int(level) for level in each.split(",")]
            assert spec.readout_arguments["fusion"] == fusion
    assert (
        encoder_spec(compose("fit", ["recipe=dynamic_vfm", "readout.args.levels=[]"])).readout_arguments["levels"] == []
    )
