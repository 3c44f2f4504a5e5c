"""Images of probes: the first ones, always the same, decoded once where there is room."""

import pytest
import torch

from pretrain import probe_images, stream
from pretrain.checkpoint import BackboneSpec
from pretrain.config import ViewsConfig
from pretrain.objectives.objective import Wants
from pretrain.probe_images import ProbeImages
from pretrain.shard_set import open_shards
from pretrain.views import ViewMaker

# One tiny image of 40 by up to 72 pixels takes less than 9 kB.
ROOMY, CRAMPED = 10, 0


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """The indices of the images that are decoded, in their order, in batches of 8."""
    seen = []
    decode = stream.decode

    def counted(sample, times=None):
        found = decode(sample, times)
        seen.append(found.index)
        return found

    monkeypatch.setattr(stream, "decode", counted)
    monkeypatch.setattr(probe_images, "BATCH", 8)
    return seen


def indices(images: ProbeImages, limit: int) -> list[int]:
    return torch.cat([batch["index"] for batch in images.batches(limit)]).tolist()


@pytest.mark.parametrize("keep_mib", [ROOMY, CRAMPED])
@pytest.mark.parametrize("limit", [1, 8, 19, 50, 1000])
def test_they_are_the_first_ones_each_time(tiny_shards, decoded, limit, keep_mib):
    images = ProbeImages(open_shards(tiny_shards), keep_mib)
    first = indices(images, limit)
    assert first == list(range(min(limit, 50)))
    assert indices(images, limit) == first


def test_what_was_decoded_is_kept_and_a_larger_limit_goes_on_from_there(tiny_shards, decoded):
    images = ProbeImages(open_shards(tiny_shards), ROOMY)
    assert indices(images, 10) == list(range(10))
    assert indices(images, 16) == list(range(16))
    assert decoded == list(range(16))
    assert indices(images, 50) == list(range(50))
    assert indices(images, 50) == list(range(50))
    assert decoded == list(range(50))


def test_what_has_no_room_is_decoded_again(tiny_shards, decoded, monkeypatch):
    images = ProbeImages(open_shards(tiny_shards), ROOMY)
    whole = list(images.batches(50))
    sizes = [sum(rows.nbytes for rows in batch.values()) for batch in whole]
    decoded.clear()
    images = ProbeImages(open_shards(tiny_shards), CRAMPED)
    images.room = sizes[0] + sizes[1]
    for _ in range(2):
        for expected, found in zip(whole, images.batches(50), strict=True):
            assert torch.equal(expected["images"], found["images"])
            assert torch.equal(expected["label"], found["label"])
    assert decoded == [*range(50), *range(16, 50)]


def test_a_small_batch_is_not_kept_behind_one_that_had_no_room(tiny_shards, decoded):
    images = ProbeImages(open_shards(tiny_shards), ROOMY)
    images.room = 20_000  # of the last batch of two images, not of any other
    assert indices(images, 50) == indices(images, 50) == list(range(50))
    assert images.kept == []


def test_what_was_decoded_before_an_interruption_is_kept(tiny_shards, decoded):
    images = ProbeImages(open_shards(tiny_shards), ROOMY)
    next(images.batches(50))
    assert indices(images, 50) == list(range(50))
    assert decoded == list(range(50))


@pytest.mark.parametrize("limit", [5, 12])
def test_of_clips_they_are_the_frames_that_probes_look_at(long_clips, monkeypatch, limit):
    monkeypatch.setattr(probe_images, "BATCH", 8)
    config, spec = ViewsConfig(size=12, clip_frames=4, speed_max=2.0), BackboneSpec("any", {}, 12, [0.0] * 3, [1.0] * 3)
    views = ViewMaker(config, spec, Wants(views=2), 3, torch.device("cpu"))
    whole = list(ProbeImages(open_shards(long_clips), ROOMY).batches(limit))
    few = list(ProbeImages(open_shards(long_clips), ROOMY, views.probe_times()).batches(limit))
    for all_frames, shown in zip(whole, few, strict=True):
        assert shown["video"].shape[2] <= 3 * config.clip_frames < all_frames["video"].shape[2]
        assert torch.equal(views.evaluation(shown), views.evaluation(all_frames))
        assert torch.equal(views.pair(shown), views.pair(all_frames))
