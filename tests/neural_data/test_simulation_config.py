"""Keys of simulations: each is described, and each mistake is one line that names the key."""

import dataclasses

import pytest

from neural_data.simulate import simulate, simulate_videos
from neural_data.simulation_config import SimulationConfig, VideoConfig, check_simulation
from ray_jobs.config import compose
from ray_jobs.keys import all_keys


def test_every_key_says_what_it_means():
    for config in (SimulationConfig, VideoConfig):
        for field in dataclasses.fields(config):
            assert field.metadata["meaning"]
    check_simulation(SimulationConfig())
    check_simulation(SimulationConfig(dynamic=True))


def test_the_command_reads_groups_of_keys():
    config = compose(
        "simulate", ["dynamic=true", "videos.response=calcium", "videos.withheld=[oracle]", "videos.noise=1"]
    )
    assert config == SimulationConfig(
        dynamic=True, videos=VideoConfig(response="calcium", withheld=["oracle"], noise=1.0)
    )
    assert {key.path for key in all_keys(SimulationConfig)} >= {"videos", "videos.gaze_shift", "format"}
    with pytest.raises(ValueError, match=r"'videos.respons': did you mean 'videos.response'"):
        compose("simulate", ["videos.respons=calcium"])


@pytest.mark.parametrize(
    ("change", "videos", "message"),
    [
        ({"dynamic": True, "stimuli": 50}, {}, "stimuli: is a key of images, found with dynamic=true"),
        ({}, {"frames": 50}, "videos: set, but dynamic is false; expected dynamic=true"),
        ({"format": "sensorium_video"}, {}, "format: found 'sensorium_video', expected one of arrays, .* for images"),
        ({"dynamic": True, "format": "sensorium_static"}, {}, "format: found 'sensorium_static', .* for videos"),
        (
            {"dynamic": True, "format": "packaged"},
            {},
            "format: found 'packaged', expected one of arrays, .* for videos",
        ),
        (
            {"dynamic": True, "format": "nwb_two_photon"},
            {"response": "calcium"},
            "videos.response: found 'calcium', expected 'spikes' for format=nwb_two_photon",
        ),
        (
            {"dynamic": True, "format": "nwb"},
            {"withheld": ["oracle"]},
            "videos.withheld: found oracle, but format=nwb withholds nothing",
        ),
        ({"format": "zip"}, {}, "format: found 'zip', expected one of arrays, sensorium_static"),
        ({"dynamic": True}, {"frames": 5}, "videos.frames: found 5, expected 20 to 10000"),
        ({"dynamic": True}, {"response": "dff"}, "videos.response: found 'dff', expected one of spikes, calcium"),
        ({"dynamic": True}, {"withheld": ["train"]}, "videos.withheld: found 'train', expected one of oracle"),
        ({"dynamic": True}, {"classes": []}, "videos.classes: found no kind of clips, expected at least one"),
        ({"dynamic": True}, {"missing_repeats": 9}, "videos.missing_repeats: found 9 of 10 repeats"),
        ({"dynamic": True}, {"rise_ms": 600.0}, "videos.rise_ms: found 600.0, expected less than decay_ms, 500.0"),
        ({"dynamic": True, "areas": []}, {}, r"areas: found \[\], expected at least one area"),
    ],
)
def test_mistakes_are_told(change, videos, message):
    with pytest.raises(ValueError, match=message):
        check_simulation(SimulationConfig(**change, videos=VideoConfig(**videos)))


def test_images_and_videos_have_a_function_each():
    with pytest.raises(ValueError, match="dynamic: found true, expected false; `simulate_videos` makes"):
        simulate(SimulationConfig(dynamic=True))
    small = VideoConfig(height=16, width=20, frames=20, train_clips=1, test_clips=1, repeats=2)
    [(recording, _)] = simulate_videos(SimulationConfig(animals=1, videos=small))
    assert recording.dynamic
