"""CutMix against the winner's boxes; what is pasted, what is mixed, and that draws follow from the step."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.models.dwiseneuro import DwiseNeuro
from transfer.cutmix import CutMix, box


@pytest.fixture
def known(shared: Path) -> dict:
    path = shared / "reference" / "values" / "video" / "dwiseneuro" / "cutmix_reference.json"
    return json.loads(path.read_text())


def test_boxes_are_the_winners(known):
    """Centres drawn by numpy's old generator, first along one axis, then along the other, as there."""
    np.random.seed(3)  # noqa: NPY002
    for area, expected in zip((0.1, 0.5, 0.9), known["rand_bbox_np_seed3_64x64_lam(.1,.5,.9)"], strict=True):
        row, column = np.random.randint(64), np.random.randint(64)  # noqa: NPY002
        first, last, left, right = box(*(np.array([x]) for x in (area, row, column)), 64, 64)
        assert [first[0], left[0], last[0], right[0]] == expected


def test_the_pasted_box_and_the_mixed_responses_are_the_winners(known):
    """Their width is taken for the first axis, which is the same where frames are square; numpy cuts it off after."""
    height, width = known["input_hw"]
    np.random.seed(known["np_seed"])  # noqa: NPY002
    area = np.random.beta(1, 1)  # noqa: NPY002
    row, column = np.random.randint(width), np.random.randint(height)  # noqa: NPY002
    first, last, left, right = (int(edge) for edge in box(area, row, column, width, height))
    pasted = np.zeros((height, width), int)
    pasted[first:last, left:right] = 1
    assert pasted.tolist() == known["pasted_box_mask"]
    assert (last - first) * (right - left) / (height * width) == known["target_value"]


def clips(count: int = 40, time: int = 4, height: int = 12, width: int = 16) -> dict[str, Tensor]:
    """Each clip, its signals and its responses have its own number, from 1, everywhere."""
    number = torch.arange(1.0, count + 1)
    shapes = {
        "video": (1, time, height, width),
        "behavior": (2, time),
        "pupil_center": (2, time),
        "responses": (5, time),
    }
    batch = {name: number.view(-1, *[1] * len(shape)).expand(-1, *shape).clone() for name, shape in shapes.items()}
    return batch | {"valid": torch.ones(count, time, dtype=torch.bool), "index": torch.arange(count)}


def test_responses_are_mixed_by_the_area_that_is_pasted():
    batch = clips()
    found = CutMix(0.5, seed=1)({"a": batch}, step=3)["a"]
    share = (found["video"] != batch["video"]).float().mean((1, 2, 3, 4))
    assert 0.25 < (share > 0).float().mean() < 0.75
    for name in ("responses", "behavior", "pupil_center"):
        own, other = batch[name], batch[name].roll(-1, 0)
        weight = share.view(-1, 1, 1)
        torch.testing.assert_close(found[name], (1 - weight) * own + weight * other)
    assert torch.equal(found["index"], batch["index"])
    for row in range(len(share)):
        values = found["video"][row].unique().tolist()
        assert set(values) <= {row + 1.0, (row + 1) % len(share) + 1.0}
        assert torch.equal(found["video"][row, 0, 0], found["video"][row, 0, -1]), "the box is that of all frames"


def test_draws_follow_from_seed_step_and_animal():
    batch = {"a": clips(), "b": clips()}
    mixed = [CutMix(seed=seed)(batch, step) for seed, step in ((1, 3), (1, 3), (1, 4), (2, 3))]
    assert torch.equal(mixed[0]["a"]["video"], mixed[1]["a"]["video"])
    assert not torch.equal(mixed[0]["a"]["video"], mixed[0]["b"]["video"])
    for other in mixed[2:]:
        assert not torch.equal(mixed[0]["a"]["video"], other["a"]["video"])


def test_partners_can_be_given_and_a_lone_clip_is_left_alone():
    batch, partners = {"a": clips(3)}, {"a": {name: value + 10 for name, value in clips(3).items() if name != "valid"}}
    partners["a"]["valid"] = batch["a"]["valid"]
    found = CutMix(1.0, alpha=50.0)(batch, 0, partners)["a"]
    assert set(found["video"].unique().tolist()) == {1.0, 2.0, 3.0, 11.0, 12.0, 13.0}
    lone = CutMix(1.0)({"a": clips(1)}, 0)["a"]
    assert all(torch.equal(lone[name], value) for name, value in clips(1).items())


def test_frames_count_where_both_clips_have_them():
    batch = clips(2)
    batch["valid"][1, 2:] = False
    found = CutMix(1.0, alpha=50.0)({"a": batch}, 0)["a"]
    assert found["valid"].tolist() == [[True, True, False, False]] * 2
    assert torch.equal(CutMix(0.0)({"a": batch}, 0)["a"]["valid"], batch["valid"])


def test_planes_of_signals_are_pasted_with_the_video():
    """DwiseNeuro's core takes its planes as video, with the numbers of the clip that they were without CutMix."""
    torch.manual_seed(0)
    core = DwiseNeuro(features=(8, 8), strides=(2, 2), cortex_features=(16,), canvas=(16, 16)).eval()
    batch = clips(6, height=12, width=16)
    still = CutMix(0.0, planes=core.planes)({"a": batch}, 0)["a"]
    assert still["video"].shape == (6, 5, 4, 16, 16)
    assert not {"behavior", "pupil_center"} & still.keys()
    with torch.no_grad():
        torch.testing.assert_close(
            core(still["video"]), core(*(batch[n] for n in ("video", "behavior", "pupil_center")))
        )
    mixed = CutMix(1.0, alpha=50.0, planes=core.planes)({"a": batch}, 0)["a"]
    changed = mixed["video"] != still["video"]
    assert torch.equal(changed[:, 1], changed[:, 4])
    torch.testing.assert_close(
        mixed["responses"][:, 0, 0],
        batch["responses"][:, 0, 0].lerp(batch["responses"][:, 0, 0].roll(-1), changed[:, 1, 0].float().mean((1, 2))),
    )
