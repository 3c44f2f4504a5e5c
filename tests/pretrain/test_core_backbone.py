"""Cores of encoding models as backbones: what they see, what they give, and whole pretrainings on clips."""

import numpy as np
import pandas as pd
import pytest
import torch

from pretrain.checkpoint import load_trained_backbone, newest_checkpoint, read_checkpoint
from pretrain.core_backbone import LUMA, CoreBackbone, core_weights, create_backbone
from pretrain.loop import Training
from pretrain.models import core_names, create_model
from pretrain.run import draw_views, pretrain
from pretrain.shards import write_shards
from pretrain.sources import open_source
from ray_jobs.config import compose

SMALL = {
    "dwiseneuro": {"features": (8, 8), "strides": (2, 2), "cortex_features": (16,)},
    "viv1t": {"width": 16, "heads": 2, "head_dim": 8, "ff_dim": 16, "spatial_depth": 1, "temporal_depth": 1},
    "dynamic_vfm": {"channels": 16, "blocks": 1, "heads": 2, "hidden": 16},
    "factorized3d": {"channels": (4, 8), "spatial_kernels": (5, 5), "temporal_kernels": (5, 5)},
    "full3d": {"channels": (4, 8)},
    "gru_stacked2d": {"channels": 4, "layers": 2, "state_channels": 4},
    "v1t": {"emb_dim": 16, "num_blocks": 1, "num_heads": 2, "mlp_dim": 16, "patch_stride": 4},
    "stacked2d": {"channels": 4, "layers": 2},
    "rotation_equivariant": {"features": 2, "rotations": 2, "layers": 2},
}
RUN = (
    "model=factorized3d", "model_args={channels: [4, 8], spatial_kernels: [5, 5], temporal_kernels: [3, 3]}",
    "objective=simclr", "objective_args={hidden_dim: 32, dim: 16}", "views.size=32", "views.clip_frames=6",
    "batch_size=12", "epochs=2", "data.workers=0", "optimizer.lr=0.01", "probe.measures=[rankme,knn,alignment]",
    "accelerator=cpu", "logging.trackers=[]", "log_every=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Shards of 36 clips of 8 frames: textures that drift to the left, to the right, or stand still."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    texture = rng.integers(0, 256, (36, 32, 64), dtype=np.uint8)
    labels = np.arange(36) % 3
    speeds = (labels - 1)[:, None] * 2
    starts = 16 + speeds * np.arange(8)
    stack = np.stack([np.stack([texture[i][:, s : s + 32] for s in starts[i]]) for i in range(36)])
    np.save(folder / "clips.npy", stack)
    np.save(folder / "labels.npy", labels)
    config = compose("shards", [f"source={folder}", "frame_rate_hz=30", "size=32", f"out={folder}/shards"])
    write_shards(open_source(config), config)
    return folder / "shards"


@pytest.mark.parametrize("name", SMALL)
def test_features_are_the_mean_of_the_cores_maps(name):
    torch.manual_seed(0)
    backbone = create_backbone(name, **SMALL[name]).eval()
    time = (30,) if core_names()[name].video else ()
    views = torch.rand(2, 3, *time, 64, 64)
    grey = sum(weight * views[:, channel : channel + 1] for channel, weight in enumerate(LUMA))[..., 14:50, :]
    behavior, pupil = torch.zeros(2, backbone.behavior_values, *time), torch.zeros(2, 2, *time)
    maps = backbone.core(grey, behavior=behavior, pupil_center=pupil)
    features = backbone(views)
    torch.testing.assert_close(features, maps.mean(tuple(range(2, maps.ndim))), rtol=1e-4, atol=1e-5)
    assert features.shape == (2, backbone.feature_count)
    features.square().sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_a_backbone_that_is_no_core_is_made_as_ever():
    made = create_backbone("alexnet_bn", num_classes=0)
    assert type(made) is type(create_model("alexnet_bn", num_classes=0))


def test_clips_are_too_short_for_a_core_in_one_line():
    backbone = create_backbone("viv1t", **SMALL["viv1t"])
    with pytest.raises(ValueError, match=r"ViV1T makes maps of shape .* of 16 x 36 x 64 frames, rows and columns; set"):
        backbone.require_clips_of(16, 64)
    backbone.require_clips_of(30, 64)


def test_pretraining_on_clips_goes_on_after_a_kill_with_the_same_numbers(clips, tmp_path, monkeypatch):
    keys = [*RUN, f"data.shards={clips}", f"data.labelled={clips}"]
    whole = pretrain(compose("pretrain", [*keys, f"out={tmp_path}/whole"]))
    measured = pd.read_csv(whole / "metrics.csv")
    assert {"rankme", "knn_accuracy", "alignment"} <= set(measured.columns)

    step, killed = Training.train_step, []

    def fails_once(self, batch):
        if self.step == 4 and not killed:
            killed.append(self.step)
            raise KeyboardInterrupt
        step(self, batch)

    monkeypatch.setattr(Training, "train_step", fails_once)
    again = compose("pretrain", [*keys, f"out={tmp_path}/killed"])
    with pytest.raises(KeyboardInterrupt):
        pretrain(again)
    killed_run = pretrain(again)
    states = [read_checkpoint(newest_checkpoint(run / "checkpoints"))["backbone"] for run in (whole, killed_run)]
    assert killed == [4]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])

    read = pretrain(compose("pretrain", [*keys, f"out={tmp_path}/read", "data.memory_share=0"]))
    from_reader = read_checkpoint(newest_checkpoint(read / "checkpoints"))["backbone"]
    assert all(torch.equal(states[0][key], from_reader[key]) for key in states[0])
    figures = ["rankme", "knn_accuracy", "alignment"]
    assert measured[figures].dropna().equals(pd.read_csv(read / "metrics.csv")[figures].dropna())

    trained = load_trained_backbone(whole)
    assert isinstance(trained.backbone, CoreBackbone)
    core = create_model(trained.spec.name, **trained.spec.args)
    core.load_state_dict(core_weights(states[0]))
    assert draw_views(again, tmp_path / "views.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("objective", "arguments"),
    [("instance_recognition", "{}"), ("rotnet", "{}"), ("moco_v2", "{queue_size: 24}"), ("supervised", "{}")],
)
def test_other_objectives_train_on_clips(clips, tmp_path, objective, arguments):
    others = [key for key in RUN if not key.startswith("objective")]
    keys = [
        *others,
        f"objective={objective}",
        f"objective_args={arguments}",
        f"data.shards={clips}",
        f"data.labelled={clips}",
    ]
    run = pretrain(compose("pretrain", [*keys, f"out={tmp_path}/run"]))
    assert np.isfinite(pd.read_csv(run / "metrics.csv")["loss"].dropna()).all()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["model=alexnet_bn"], "holds clips, and model=alexnet_bn takes images"),
        (["objective=relative_location"], "objective=relative_location wants patches, depth maps or local views"),
        (["views.clip_frames=2"], "Factorized3d|too small"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_made(clips, tmp_path, keys, message):
    replaced = {key.split("=")[0] for key in keys} | ({"model_args"} if "model=alexnet_bn" in keys else set())
    replaced |= {"objective_args"} if "objective=relative_location" in keys else set()
    others = [key for key in RUN if key.split("=")[0] not in replaced]
    config = compose("pretrain", [*others, *keys, f"data.shards={clips}", f"out={tmp_path}/run"])
    with pytest.raises(ValueError, match=message):
        pretrain(config)
    assert not (tmp_path / "run").exists()
