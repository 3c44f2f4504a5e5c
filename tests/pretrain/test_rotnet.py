"""RotNet: the published values, which way images are turned, and what is learned."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models import create_model
from pretrain.objectives.rotnet import RotNet, rotated

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def small(seed: int = 0) -> RotNet:
    """An objective around a linear backbone of 4 x 4 images."""
    torch.manual_seed(seed)
    return RotNet(nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.ReLU()), input_size=4)


def random_views(batch: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(1, batch, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_published_loss_and_gradient(mouse_vision):
    values = torch.load(mouse_vision / "losses" / "rotnet.pt", weights_only=True)
    weight = values["head"]["fc.weight"]
    objective = RotNet(nn.Sequential(nn.Flatten(), nn.Linear(3, weight.shape[1])), input_size=1)
    objective.head.load_state_dict({"weight": weight, "bias": values["head"]["fc.bias"]})
    features = values["x"].clone().requires_grad_()
    found = objective.compare(features.flatten(0, 1).flatten(1), values["targets"].flatten())
    torch.testing.assert_close(found["loss"], values["loss"], **TOLERANCE)
    right = values["preds"].argmax(1) == values["targets"].flatten()
    assert found["accuracy"].item() == pytest.approx(right.float().mean().item())
    found["loss"].backward()
    torch.testing.assert_close(features.grad, values["grad_x"], **TOLERANCE)


def test_images_are_turned_counter_clockwise():
    # Rows from top to bottom; the letters of a clock: north is up.
    upright = torch.tensor([[0, 12, 0], [9, 0, 3], [0, 6, 0]]).expand(2, 3, 3, 3)
    turned, labels = rotated(upright)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for label, up, left, right, down in ((0, 12, 9, 3, 6), (1, 3, 12, 6, 9), (2, 6, 3, 9, 12), (3, 9, 6, 12, 3)):
        expected = torch.tensor([[0, up, 0], [left, 0, right], [0, down, 0]])
        for image in turned[labels == label]:
            assert torch.equal(image, expected.expand(3, 3, 3))


def test_loss_is_the_mean_over_every_image_and_each_of_its_rotations():
    objective, views = small(), random_views()
    found = objective({"views": views})
    losses, right = [], []
    for image in views[0]:
        for label, dims in enumerate(((), (1, 2), (1, 2), (1, 2))):
            turned = torch.rot90(image, label, dims) if dims else image
            logits = objective.head(objective.backbone(turned[None]))
            losses.append(F.cross_entropy(logits, torch.tensor([label])))
            right.append(float(logits.argmax() == label))
    torch.testing.assert_close(found["loss"], torch.stack(losses).mean())
    assert found["accuracy"].item() == pytest.approx(sum(right) / 24)


def test_forty_steps_on_one_batch_tell_all_rotations():
    objective, views = small(), random_views()
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1, momentum=0.9)
    for _ in range(40):
        found = objective({"views": views})
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
    assert found["accuracy"] == 1
    assert found["loss"] < 0.1


def test_the_loss_leaves_half_precision():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = small()({"views": random_views()})
    assert {value.dtype for value in found.values()} == {torch.float32}


def test_the_head_has_four_outputs_of_any_backbone():
    with torch.device("meta"):
        objective = RotNet(create_model("alexnet_bn", num_classes=0))
    assert objective.head.weight.shape == (4, 4096)
    assert objective.wants.views == 1
