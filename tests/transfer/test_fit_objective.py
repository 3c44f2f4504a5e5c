"""What an encoder is fitted to: parts that add up, frames that count, penalties, a teacher's share."""

import math

import pytest
import torch
from torch import Tensor, nn

from transfer.distillation import Distillation
from transfer.encoder import Encoder
from transfer.fit_objective import FitObjective, Part
from transfer.gaussian_readout import GaussianReadout
from transfer.losses import TrialCounts, create_loss
from transfer.shifters import MLPShifter

NEURONS = {"a": 5, "b": 3, "c": 4}
TRIALS = {animal: TrialCounts(700 + n, 300 + n) for animal, n in NEURONS.items()}


class SmallCore(nn.Module):
    """A convolution over 3 frames, without padding in time, so that 2 frames of 7 have no features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 4, 3, padding=(0, 1, 1))

    def forward(self, video: Tensor, behavior: Tensor, animal: str | list[str], **_: object) -> Tensor:
        assert isinstance(animal, str) or len(animal) == len(video)
        return self.conv(video).tanh() + behavior[:, :1, 2:, None, None]

    def regularizer(self) -> Tensor:
        return self.conv.weight.square().sum()


def encoder(seed: int = 0, animals: tuple[str, ...] = tuple(NEURONS)) -> Encoder:
    torch.manual_seed(seed)
    model = Encoder(SmallCore())
    for animal in animals:
        model.add_animal(animal, GaussianReadout((4, 6, 8), NEURONS[animal], feature_reg_weight=0.1), MLPShifter())
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def trials(animal: str, count: int, time: int = 7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(NEURONS[animal])
    shapes = {"video": (1, time, 6, 8), "behavior": (2, time), "pupil_center": (2, time)}
    batch = {name: torch.randn(count, *shape, generator=generator) for name, shape in shapes.items()}
    batch["responses"] = torch.rand(count, NEURONS[animal], time, generator=generator)
    batch["valid"] = torch.ones(count, time, dtype=torch.bool)
    return batch | {"index": torch.arange(count)}


@pytest.fixture
def step() -> dict[str, dict[str, Tensor]]:
    return {"a": trials("a", 4), "b": trials("b", 2), "c": trials("c", 3)}


def total(objective: FitObjective, parts: list[Part]) -> tuple[dict[str, float], list[Tensor]]:
    """The summed values and gradients of parts."""
    objective.zero_grad()
    values = [objective(part) for part in parts]
    for each in values:
        each["loss"].backward()
    grads = [parameter.grad for parameter in objective.parameters() if parameter.grad is not None]
    return {name: sum(float(each[name].detach()) for each in values) for name in values[0]}, [
        grad.clone() for grad in grads
    ]


def test_the_loss_is_its_formula(step):
    """Sensorium 2023: sqrt(all trials / batch) times the sum over the last frames, plus penalties per animal."""
    model = encoder()
    objective = FitObjective(model, create_loss("sensorium", TRIALS))
    parts = objective.parts(step)
    assert [list(part["animals"]) for part in parts] == [["a"], ["b"], ["c"]]
    for part, (animal, batch) in zip(parts, step.items(), strict=True):
        predicted = model(batch["video"], animal, batch["behavior"], batch["pupil_center"])
        assert predicted.shape[-1] == 5
        target = batch["responses"][..., 2:]
        poisson = nn.PoissonNLLLoss(log_input=False, full=False, reduction="sum")(predicted, target)
        scale = math.sqrt(TRIALS[animal].all / len(target))
        found = objective(part)
        torch.testing.assert_close(found["response_loss"], scale * poisson)
        torch.testing.assert_close(found["regularizer"], model.regularizer([animal]).detach())
        torch.testing.assert_close(found["loss"].detach(), found["response_loss"] + found["regularizer"])


@pytest.mark.parametrize("name", ["sensorium", "viv1t_closed_loop", "dynamic_vfm", "v1t", "mse", "dwiseneuro"])
@pytest.mark.parametrize("accumulate", [2, 3, 100])
def test_micro_batches_are_the_batch(step, name, accumulate):
    objective = FitObjective(encoder(), create_loss(name, TRIALS))
    whole, expected = total(objective, objective.parts(step))
    parts = objective.parts(step, accumulate)
    assert len(parts) > len(objective.parts(step))
    found, gradients = total(objective, parts)
    assert found == pytest.approx(whole, rel=1e-5)
    assert len(gradients) == len(expected)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_micro_batches_of_mixed_animals_have_nearly_equal_sizes(step):
    objective = FitObjective(encoder(), create_loss("dwiseneuro"))
    sizes = [sum(len(t["index"]) for t in part["animals"].values()) for part in objective.parts(step, 4)]
    assert sorted(sizes) == [2, 2, 2, 3]
    seen = [(a, int(i)) for part in objective.parts(step, 4) for a, t in part["animals"].items() for i in t["index"]]
    assert sorted(seen) == [(animal, i) for animal, t in step.items() for i in range(len(t["index"]))]


def test_a_mixed_batch_is_weighed_by_sample(step):
    """DwiseNeuro: each sample's summed loss, times its weight as a share of the batch's."""
    model = encoder()
    objective = FitObjective(model, create_loss("dwiseneuro"))
    step["b"]["weight"] = torch.tensor([0.5, 3.0])
    (part,) = objective.parts(step)
    expected, weights = 0.0, 0.0
    for animal, batch in step.items():
        predicted = model(batch["video"], animal, batch["behavior"], batch["pupil_center"])
        loss = nn.PoissonNLLLoss(log_input=False, full=False, reduction="none")(predicted, batch["responses"][..., 2:])
        weight = batch.get("weight", torch.ones(len(predicted)))
        expected, weights = expected + (loss.sum((1, 2)) * weight).sum(), weights + weight.sum()
    torch.testing.assert_close(objective(part)["loss"], expected / weights)


def test_padding_does_not_count(step):
    objective = FitObjective(encoder(), create_loss("viv1t", TRIALS))
    batch = step["a"]
    batch["valid"][2, 5:] = False
    (before,) = (objective(part) for part in objective.parts({"a": batch}))
    batch["responses"][2, :, 5:] = float("nan")
    (after,) = (objective(part) for part in objective.parts({"a": batch}))
    assert before["loss"].isfinite()
    torch.testing.assert_close(after["loss"], before["loss"])


def test_images_have_no_frames():
    class ImageCore(nn.Conv2d):
        def forward(self, images: Tensor, **_: object) -> Tensor:
            return super().forward(images)

    model = Encoder(ImageCore(1, 4, 1))
    model.add_animal("a", GaussianReadout((4, 6, 8), 5))
    objective = FitObjective(model, create_loss("v1t", TRIALS))
    batch = {"images": torch.randn(3, 1, 6, 8), "responses": torch.rand(3, 5), "index": torch.arange(3)}
    (part,) = objective.parts({"a": batch})
    assert objective(part)["loss"].isfinite()


def test_a_teacher_fills_the_other_animals_with_its_share(step):
    """Filled entries weigh rho of all; where the student is the teacher, each loses what it would against itself."""
    student, teacher = encoder(0), encoder(1)
    objective = FitObjective(student, create_loss("dwiseneuro"), Distillation(teacher, 0.36))
    (part,) = objective.parts(step)
    found = objective(part)["loss"]
    recorded = FitObjective(student, create_loss("dwiseneuro"))(part)["loss"] * 9
    weight = 0.36 / 0.64 * 9 / (9 * 2)
    filled = torch.zeros(())
    for animal, batch in step.items():
        inputs = batch["video"], batch["behavior"], batch["pupil_center"]
        for other in NEURONS.keys() - {animal}:
            predicted, target = (model(inputs[0], other, *inputs[1:]) for model in (student, teacher))
            filled = filled + nn.PoissonNLLLoss(log_input=False, full=False, reduction="sum")(predicted, target)
    torch.testing.assert_close(found, (recorded + weight * filled) / (9 + 18 * weight))
    assert 18 * weight / (9 + 18 * weight) == pytest.approx(0.36)


def test_micro_batches_with_a_teacher_are_the_batch(step):
    objective = FitObjective(encoder(0), create_loss("dwiseneuro"), Distillation(encoder(1)))
    whole, expected = total(objective, objective.parts(step))
    found, gradients = total(objective, objective.parts(step, 4))
    assert found == pytest.approx(whole, rel=1e-5)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_published_weight_of_a_filled_sample(shared):
    import json

    path = shared / "reference" / "values" / "video" / "metrics" / "reference.json"
    expected = json.loads(path.read_text())["poisson"]["lRomul distill weight for ratio .36 and those weights"]
    weights = torch.tensor([[1, 0], [0, 1], [1, 0], [0.5, 0.25]])
    found = Distillation(encoder()).weight(weights.sum(), int((weights == 0).sum()))
    assert found.item() == pytest.approx(expected)


def test_a_teacher_is_no_part_of_the_checkpoint_and_is_not_trained(step):
    teacher = encoder(1)
    objective = FitObjective(encoder(0), create_loss("dwiseneuro"), Distillation(teacher))
    assert len(objective.state_dict()) == len(encoder().state_dict())
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    objective.train()
    total(objective, objective.parts(step))
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_what_does_not_fit_is_one_line():
    with pytest.raises(ValueError, match="distillation weighs samples, and the loss's scale is train_trials"):
        FitObjective(encoder(), create_loss("v1t", TRIALS), Distillation(encoder(1)))
    with pytest.raises(ValueError, match="the teacher has no animal 'b'"):
        FitObjective(encoder(), create_loss("dwiseneuro"), Distillation(encoder(1, ("a", "c"))))
    with pytest.raises(ValueError, match="the ratio of distillation is 1; it must be above 0 and below 1"):
        Distillation(encoder(), 1)


def test_losses_and_penalties_are_in_full_precision_under_autocast(step):
    objective = FitObjective(encoder(), create_loss("sensorium", TRIALS))
    (part, *_) = objective.parts(step)
    expected = objective(part)
    with torch.autocast("cpu", torch.bfloat16):
        found = objective(part)
    assert found["loss"].dtype == torch.float32
    torch.testing.assert_close(found["regularizer"], expected["regularizer"])
    torch.testing.assert_close(found["loss"], expected["loss"], rtol=0.02, atol=0)
