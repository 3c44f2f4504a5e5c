"""Video cores as models: features of every frame of a clip, in step with it."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.checkpoint import BackboneSpec, save_checkpoint
from pretrain.models.cores import CORES
from pretrain.models.factorized3d import Factorized3d
from tests.transfer.test_video_bins import recording
from transfer.compared_models import checkpoints_of, compared_models, stimulus_features
from transfer.config import PredictivityConfig
from transfer.video_bins import binned_recording
from transfer.video_cores import (
    TrainedCore,
    VideoModel,
    core_in_time,
    core_model,
    grey_of,
    pixel_moments,
    prepared,
    run_core,
)

INFO = CORES["factorized3d"]
CPU = {"accelerator": "cpu"}


@pytest.fixture(scope="module")
def core() -> Factorized3d:
    """The factorised core with few channels, which loses 2 + 2 frames."""
    torch.manual_seed(0)
    return Factorized3d(channels=(4, 6), spatial_kernels=(5, 3), temporal_kernels=(3, 3)).eval()


def model_of(core: torch.nn.Module, name: str = "factorized3d") -> VideoModel:
    return core_model("m", core, TrainedCore(core, CORES[name], Path("m")))


def test_features_are_in_step_with_the_frames_and_the_first_frame_stands_still_before(core):
    video = torch.randn(1, 1, 20, 36, 64)
    found = core_in_time(core, video, 4, 1)
    torch.testing.assert_close(model_of(core).in_time(video), found)
    assert found.shape == (20, 6 * 30 * 58)
    torch.testing.assert_close(found[4:], run_core(core, video)[0].transpose(0, 1).flatten(1), rtol=1e-4, atol=1e-5)
    still = torch.cat([video[:, :, :1].expand(-1, -1, 4, -1, -1), video[:, :, :3]], 2)
    torch.testing.assert_close(found[:3], run_core(core, still)[0].transpose(0, 1).flatten(1), rtol=1e-4, atol=1e-5)
    changed = video.clone()
    changed[:, :, 12] = 0
    apart = (core_in_time(core, changed, 4, 1) - found).abs().amax(1) > 1e-6
    assert np.flatnonzero(apart.numpy()).tolist() == [12, 13, 14, 15, 16], "a frame acts on itself and on 4 after it"


@pytest.mark.parametrize("frames", [20, 21])
def test_frames_that_are_made_of_two_count_for_both(frames):
    class Halving(torch.nn.Module):
        def forward(self, video, behavior=None, pupil_center=None):
            return video.unflatten(2, (-1, 2)).mean(3)

    video = torch.arange(float(frames))[None, None, :, None, None].expand(-1, -1, -1, 2, 2)
    found = core_in_time(Halving(), video, 0, 2)[:, 0]
    assert len(found) == frames
    # Counted from the end, as what stands before the clip makes the number of frames even.
    expected = np.arange(frames) - frames % 2 - (np.arange(frames) - frames % 2) % 2 + 0.5 + frames % 2
    expected[0] = 0 if frames % 2 else 0.5
    np.testing.assert_allclose(found, expected)


def test_features_of_bins_are_means_over_frames_of_whole_clips(core, tmp_path):
    clips = binned_recording(recording(), PredictivityConfig(bin_ms=200.0)).stimuli
    rows = np.array([2, 3, 9, 14, 29])
    model = model_of(core)
    for memory_gb in (1.0, 0.0):
        config = PredictivityConfig(memory_gb=memory_gb, **CPU)
        found = stimulus_features(model, clips, rows, model.layers, tmp_path / "store", config)["core"]
        assert isinstance(found, np.memmap) == (memory_gb == 0)
        seen = [(0, 40), (1, 20), (2, 40)]  # clip and its last frame that counts
        pixels = np.concatenate([np.ravel(clips.videos[clip, :stop]) for clip, stop in seen]).astype(float)
        assert pixel_moments(clips, *clips.places(rows)) == pytest.approx((pixels.mean(), pixels.std()))
        for row, (clip, stop) in ((0, seen[0]), (2, seen[0]), (3, seen[1]), (4, seen[2])):
            video = (prepared(np.asarray(clips.videos[clip, :stop]), (36, 64)) - pixels.mean()) / pixels.std()
            in_time = core_in_time(core, video[None, None].float(), 4, 1)
            first = clips.places(rows)[1][row] * 4
            np.testing.assert_allclose(found[row], in_time[first : first + 4].mean(0), rtol=1e-3, atol=1e-5)


QUICK = ("factorized3d", "viv1t", "dynamic_vfm")
VIDEO_CORES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name, info in CORES.items() if info.video
]


@pytest.mark.parametrize("name", VIDEO_CORES)
def test_every_video_core_gives_as_many_frames_as_it_sees(name):
    model = model_of(CORES[name].build().eval(), name)
    assert len(model.in_time(torch.randn(1, 1, 9, *model.size))) == 9


def test_a_core_is_named_by_its_name_or_its_file(tmp_path):
    config = PredictivityConfig(checkpoint="untrained_factorized3d", seed=4, **CPU)
    (opened,) = checkpoints_of(config)
    torch.manual_seed(4)
    expected = INFO.build().state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in opened.core.state_dict().items())
    models = list(compared_models([opened], config))
    assert [(model.label, model.layers) for model in models] == [
        ("untrained_factorized3d", ("core",)), ("gabor", ("gabor",)), ("pixels", ("pixels",)),
    ]  # fmt: skip
    assert [len(model.in_time(torch.randn(1, 1, 7, 36, 64))) for model in models] == [7, 7, 7]
    torch.manual_seed(9)
    other = INFO.build().state_dict()
    torch.save(other, tmp_path / "weights.pt")
    named = PredictivityConfig(checkpoint=str(tmp_path / "weights.pt"), model="factorized3d", **CPU)
    (opened,) = checkpoints_of(named)
    assert opened.path == Path(tmp_path / "weights.pt").resolve()
    assert all(torch.equal(value, other[key]) for key, value in opened.core.state_dict().items())
    assert [model.label for model in compared_models([opened], named)] == ["trained", "random", "gabor", "pixels"]
    with pytest.raises(ValueError, match=r"layers are of backbones, found \['features'\]; a video core has one"):
        list(compared_models([opened], PredictivityConfig(layers=["features"], **CPU)))


def test_images_are_no_videos(core, tmp_path):
    model = model_of(core)
    with pytest.raises(ValueError, match="m takes videos, and the recording's stimuli are images; choose a backbone"):
        stimulus_features(model, np.zeros((5, 8, 8)), np.arange(5), ["core"], tmp_path, PredictivityConfig(**CPU))


def test_colour_becomes_grey():
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
    np.testing.assert_allclose(grey_of(frames), frames @ [0.299, 0.587, 0.114], rtol=1e-6)
    np.testing.assert_allclose(grey_of(frames[..., :2]), frames[..., :2].mean(-1), rtol=1e-6)
    assert prepared(frames, (8, 10)).shape == (3, 8, 10)


def test_a_core_that_was_pretrained_on_clips_is_scored_as_it_was_pretrained(tmp_path):
    create_backbone = pytest.importorskip("pretrain.core_backbone").create_backbone
    args = {"channels": (4, 6), "spatial_kernels": (5, 3), "temporal_kernels": (3, 3)}
    torch.manual_seed(2)
    backbone = create_backbone("factorized3d", **args)
    spec = BackboneSpec("factorized3d", args, 64, [0.4] * 3, [0.2] * 3)
    state = {"epoch": 3, "model": dataclasses.asdict(spec), "backbone": backbone.state_dict(), "average": None}
    (tmp_path / "run").mkdir()
    save_checkpoint(tmp_path / "run" / "checkpoints", 7, state, keep=1)
    config = PredictivityConfig(checkpoint=str(tmp_path / "run"), **CPU)
    (opened,) = checkpoints_of(config)
    assert (opened.epoch, opened.step, opened.size) == (3, 7, (36, 64))
    assert opened.moments == pytest.approx((102, 51))
    models = list(compared_models([opened], config))
    assert [model.label for model in models] == ["trained", "random", "gabor", "pixels"]
    video = torch.randn(1, 1, 9, 36, 64)
    torch.testing.assert_close(models[0].in_time(video), core_in_time(backbone.core.eval(), video, 4, 1))
    assert models[1].in_time(video).shape == models[0].in_time(video).shape
    clips = binned_recording(recording(), PredictivityConfig(bin_ms=200.0)).stimuli
    pixels = stimulus_features(models[3], clips, np.arange(2), ["pixels"], tmp_path / "store", config)["pixels"]
    expected = (prepared(np.asarray(clips.videos[0, :8]), (36, 64)) - 102) / 51
    np.testing.assert_allclose(pixels, expected.unflatten(0, (2, 4)).mean(1).flatten(1), rtol=1e-4, atol=1e-4)
