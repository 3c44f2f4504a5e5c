"""Predictivity of videos: neurons whose truth is known, and whole runs on simulated animals."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch

from neural_data.arrays import write_arrays
from neural_data.recording import Recording
from neural_data.simulate import SimulationConfig
from neural_data.simulate_videos import simulate_videos
from neural_data.simulation_config import VideoConfig
from neural_data.video_truth import VideoTruth
from transfer.compared_models import stimulus_features
from transfer.config import PredictivityConfig
from transfer.corrected_score import scoring
from transfer.interanimal import other_animals
from transfer.neuron_groups import SILENT, UNRELIABLE, neuron_groups
from transfer.predictivity import Recorded, predictivity, score_groups
from transfer.static_responses import static_responses
from transfer.video_cores import VideoModel

FEW = {"splits": 2, "halvings": 6, "components": 12}


@pytest.fixture(scope="module")
def known() -> tuple[Recording, VideoTruth]:
    """An animal with 12 neurons, 3 of them dead, that saw 12 clips of 2 s 10 times, less some, without state or gaze.

    The last neuron answers with noise alone."""
    videos = VideoConfig(
        height=24, width=32, frames=60, train_clips=2, test_clips=4, repeats=10, missing_repeats=3, short_clips=0.2,
        lost_frames=0.2, behavior_gain=0.0, gaze_shift=0.0,
    )  # fmt: skip
    config = SimulationConfig(
        animals=1, areas=["VISp"], neurons_per_area=12, dead_neurons=0.25, reliability=0.9, dynamic=True, videos=videos
    )
    recording, truth = simulate_videos(config)[0]
    responses = np.asarray(recording.responses[:])
    shape = responses[:, -1].shape
    noise = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    responses[:, -1] = np.where(np.isnan(responses[:, -1]), np.nan, noise)
    stimuli = np.stack([recording.stimuli[clip] for clip in range(len(recording.stimuli))])
    return dataclasses.replace(recording, responses=responses, stimuli=stimuli), truth


def video_model(in_time) -> VideoModel:
    return VideoModel("m", ("core",), (24, 32), in_time, moments=(0.0, 1.0))


def scores_of(model: VideoModel, recording: Recording, tmp_path, **keys: object) -> tuple[pd.Series, pd.DataFrame]:
    """The mean score of each neuron over the splits, by its id; and the excluded neurons."""
    config = PredictivityConfig(accelerator="cpu", **(FEW | keys))
    static, _ = static_responses(recording, config)
    groups, excluded = neuron_groups(static, config)
    part = Recorded(static, groups, groups[0].stimuli)
    features = stimulus_features(model, static.stimuli, part.rows, ["core"], tmp_path / "store", config)["core"]
    how = scoring(config)
    table = pd.concat(score_groups(how.prepare(features), part, groups, how, config, choose=True))
    return table.groupby("neuron_id", sort=False)["score"].mean(), excluded


def test_motion_energy_neurons_are_predicted_by_their_own_features_up_to_their_ceiling(known, tmp_path):
    recording, truth = known

    def rates(video: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(truth.rates_of(video[0, 0].numpy()).T))

    found, excluded = scores_of(video_model(rates), recording, tmp_path)
    reasons = excluded.set_index("neuron_id")["reason"]
    dead = set(recording.neurons["neuron_id"][truth.neurons["kind"] == "dead"]) - {
        recording.neurons["neuron_id"].iloc[-1]
    }
    assert set(reasons[reasons == SILENT].index) == dead
    assert reasons[recording.neurons["neuron_id"].iloc[-1]] == UNRELIABLE, "noise is not scored"
    assert len(found) == len(recording.neurons) - len(dead) - 1
    assert 0.95 < found.median() < 1.03
    assert found.min() > 0.85

    each = [np.tile(one, (len(truth.neurons), 1)) for one in np.eye(len(truth.core.features), dtype=np.float32)]
    reads = [truth.core.readout(truth.neurons["x"].to_numpy(), truth.neurons["y"].to_numpy(), one) for one in each]

    def moving(video: torch.Tensor) -> torch.Tensor:
        maps = truth.core.maps(video[0, 0].numpy() / 127.5 - 1)
        return torch.from_numpy(np.concatenate([read @ maps.reshape(-1, maps.shape[-1]) for read in reads]).T.copy())

    energies, _ = scores_of(video_model(moving), recording, tmp_path, mapping="ridge")
    pixels, _ = scores_of(video_model(lambda video: video[0, 0].flatten(1)), recording, tmp_path)
    assert energies.median() > 0.85, "all features of the bank at the places of all neurons"
    assert pixels.median() < energies.median() - 0.2
    late = rates_late(truth)
    assert scores_of(video_model(late), recording, tmp_path)[0].median() < found.median() - 0.1


def rates_late(truth: VideoTruth):
    """True rates of what was shown half a second ago."""

    def late(video: torch.Tensor) -> torch.Tensor:
        found = truth.rates_of(video[0, 0].numpy())
        return torch.from_numpy(np.roll(found, 15, axis=1).T.copy())

    return late


def test_responses_that_come_later_are_found_with_their_latency(known, tmp_path):
    recording, truth = known
    delayed = np.full_like(recording.responses, np.nan)
    delayed[..., 4:] = recording.responses[..., :-4]
    delayed[..., :4] = recording.responses[..., :4][..., ::-1]
    late = dataclasses.replace(recording, responses=delayed)

    def rates(video: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(truth.rates_of(video[0, 0].numpy()).T))

    latency_ms = 4 * 1000 / recording.sampling_rate_hz
    found, _ = scores_of(video_model(rates), late, tmp_path, latency_ms=latency_ms, bin_ms=30.0)
    without, _ = scores_of(video_model(rates), late, tmp_path, bin_ms=30.0)
    assert found.median() > 0.9
    assert without.median() < found.median() - 0.05


def test_one_long_clip_is_split_by_blocks_of_time(known, tmp_path):
    recording, truth = known
    clips = np.concatenate([truth.clip(clip)[:48] for clip in range(2, 14)])
    rates = truth.rates_of(clips)
    rng = np.random.default_rng(1)
    neurons = (truth.neurons["kind"] != "dead").to_numpy()
    responses = rng.poisson(30 * rates[neurons] / rates[neurons].mean(1, keepdims=True) / 10, (8, neurons.sum(), 576))
    movie = dataclasses.replace(
        recording, stimuli=clips[None], responses=responses.astype(np.float32), behavior=None, pupil_center=None,
        neurons=recording.neurons[neurons].reset_index(drop=True), behavior_names=(),
        trials=recording.trials.iloc[:8].assign(stimulus=0, repeat=np.arange(8), frames=576, withheld=False),
    )  # fmt: skip

    def true_rates(video: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(truth.rates_of(video[0, 0].numpy()).T))

    found, _ = scores_of(video_model(true_rates), movie, tmp_path, block_ms=1600.0, gap_ms=300.0)
    assert 0.95 < found.median() < 1.03
    with pytest.raises(ValueError, match=r"animal 'animal1': 1 clips of 192 bins are 2 blocks .* so lower block_ms"):
        scores_of(video_model(true_rates), movie, tmp_path, block_ms=10_000.0)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory, known):
    """The same animal as arrays on disk, whose clips were shown unequally often."""
    return write_arrays(known[0], tmp_path_factory.mktemp("videos") / "known")


def test_a_run_on_videos(tiny_run, simulated, known, tmp_path, capsys):
    config = PredictivityConfig(
        str(tiny_run), str(simulated), layers=["layer1", "layer4"], accelerator="cpu", stimulus_view="whole",
        bootstrap=50, min_reliability=0.2, out=str(tmp_path / "scores"), **FEW,
    )  # fmt: skip
    folder = predictivity(config)
    table = pd.read_parquet(folder / "predictivity.parquet")
    assert set(table["model"]) == {"trained", "random", "gabor", "pixels"}
    assert table["neurons"].max() + len(pd.read_csv(folder / "excluded.csv")) == len(known[0].neurons)
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert pd.read_csv(folder / "chosen.csv")["median"].notna().all()
    assert "12 clips in bins of 3 frames (100 ms), responses 0 samples later" in capsys.readouterr().err
    streamed = dataclasses.replace(config, memory_gb=0.0, out=str(tmp_path / "streamed"))
    other = pd.read_parquet(predictivity(streamed) / "neurons.parquet")
    pd.testing.assert_frame_equal(other, pd.read_parquet(folder / "neurons.parquet"), check_exact=True)


def test_a_run_of_a_core_beside_a_backbone(tiny_run, simulated, tmp_path):
    config = PredictivityConfig(
        recording=str(simulated), checkpoints=[str(tiny_run), "untrained_factorized3d"], layers=["layer1"],
        accelerator="cpu", stimulus_view="whole", bootstrap=50, min_reliability=0.2, out=str(tmp_path / "both"),
        mapping="ridge", splits=2, halvings=2, tier="oracle",
    )  # fmt: skip
    chosen = pd.read_csv(predictivity(config) / "chosen.csv")
    assert set(chosen["model"]) == {tiny_run.name, "untrained_factorized3d", "random", "gabor", "pixels"}
    assert chosen["median"].notna().all()


def test_animals_that_share_clips_predict_each_other(known):
    """Two halves of the neurons as two animals; of clips alone, splits need two that both saw."""
    recording, _ = known
    neurons = recording.neurons.assign(animal=["a"] * 6 + ["b"] * 6)
    config = PredictivityConfig(min_reliability=-1.0, **FEW)
    static, _ = static_responses(dataclasses.replace(recording, neurons=neurons, behavior=None, pupil_center=None,
                                                     behavior_names=()), config)  # fmt: skip
    groups, _ = neuron_groups(static, config)
    assert len(other_animals(groups, "holdout")) == 2
    one = dataclasses.replace(groups[1], stimuli=groups[1].stimuli[:12], responses=groups[1].responses[:, :12])
    lone = dataclasses.replace(groups[0], stimuli=groups[0].stimuli[:20], places=groups[0].places.of(np.arange(20)))
    assert other_animals([lone, one], "holdout") == [], "one clip is one block, which cannot be split"


@pytest.mark.parametrize("keys", [{"window_ms": [0.0, 100.0]}, {"selection": "neuropixels"}])
def test_what_is_for_images_is_refused(known, keys):
    with pytest.raises(ValueError, match=r"animal1: stimuli are videos, .* is for images; see bin_ms and latency_ms"):
        static_responses(known[0], PredictivityConfig(**keys))
