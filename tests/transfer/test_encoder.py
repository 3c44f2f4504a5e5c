"""The encoder: its parts in order, many animals, parts that are dropped, frozen, or not computed."""

import pytest
import torch
from torch import Tensor, nn

from transfer.activations import ELUPlusOne
from transfer.encoder import Encoder
from transfer.factorized_readout import FactorizedReadout
from transfer.gaussian_readout import GaussianReadout
from transfer.shifters import MLPShifter

NEURONS = {"a": 5, "b": 3}


class SmallCore(nn.Module):
    """A convolution over 3 frames and 3 x 3 pixels, without padding in time, and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv3d(1, 4, 3, padding=(0, 1, 1)), nn.BatchNorm3d(4)

    def forward(self, video: Tensor, behavior: Tensor | None = None, **_: object) -> Tensor:
        features = self.norm(self.conv(video))
        return features if behavior is None else features + behavior[:, :1, 2:, None, None]

    def regularizer(self) -> Tensor:
        return self.conv.weight.square().sum()


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    model = Encoder(SmallCore())
    for animal, neurons in NEURONS.items():
        model.add_animal(animal, GaussianReadout((4, 6, 8), neurons), MLPShifter())
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"stimuli": (4, 1, 7, 6, 8), "behavior": (4, 2, 7), "pupil_center": (4, 2, 7)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_parts_in_their_order(encoder, batch):
    encoder.eval()
    found = encoder(**batch, animal="a")
    assert found.shape == (4, 5, 5)
    features = encoder.core(batch["stimuli"], batch["behavior"])
    shift = encoder.shifters["a"](batch["pupil_center"][..., 2:])
    expected = ELUPlusOne()(encoder.readouts["a"](features, shift))
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, encoder(**batch | {"pupil_center": -batch["pupil_center"]}, animal="a"))


def test_a_mixed_batch_is_each_animal_alone(encoder, batch):
    encoder.eval()
    found = encoder(**batch, animal=["a", "b", "a", "b"])
    assert {animal: tuple(responses.shape) for animal, responses in found.items()} == {"a": (2, 5, 5), "b": (2, 3, 5)}
    torch.testing.assert_close(found["b"], encoder(**batch, animal="b")[[1, 3]])


def test_only_readouts_of_the_animals_in_a_batch_are_computed(encoder, batch, monkeypatch):
    def fail(*_: object) -> None:
        raise AssertionError("b is not in the batch")

    monkeypatch.setattr(encoder.readouts["b"], "forward", fail)
    encoder(**batch, animal=["a"] * 4)["a"].sum().backward()
    assert all(parameter.grad is None for parameter in encoder.readouts["b"].parameters())


def test_animals_come_and_go_and_the_others_stay(encoder, batch):
    encoder.eval()
    before = encoder(**batch, animal="b")
    encoder.remove_animal("a")
    encoder.add_animal("c", GaussianReadout((4, 6, 8), 2))
    assert encoder.animals == ["b", "c"]
    torch.testing.assert_close(encoder(**batch, animal="b"), before)
    assert encoder(**batch, animal="c").shape == (4, 2, 5)
    assert not any(".a." in key for key in encoder.state_dict())


def test_neurons_are_dropped_from_the_animal_and_its_state(encoder, batch):
    encoder.eval()
    before = encoder(**batch, animal="a")
    encoder.keep_neurons("a", torch.tensor([4, 1]))
    torch.testing.assert_close(encoder(**batch, animal="a"), before[:, [4, 1]])
    encoder.keep_neurons("a", torch.tensor([False, True]))
    torch.testing.assert_close(encoder(**batch, animal="a"), before[:, [1]])


def test_a_readout_is_fitted_alone(encoder, batch):
    encoder.freeze_core()
    encoder.train()
    before = {key: value.clone() for key, value in encoder.core.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], 0.1)
    encoder(**batch, animal="a").sum().backward()
    optimizer.step()
    for key, value in encoder.core.state_dict().items():
        assert torch.equal(value, before[key]), "statistics of batch norm too"
    assert encoder.readouts["a"]._features.grad is not None
    encoder.freeze_core(False)
    assert encoder.core.training
    assert all(parameter.requires_grad for parameter in encoder.core.parameters())


def test_an_activation_of_its_own(encoder, batch):
    encoder.eval()
    encoder.add_animal("raw", encoder.readouts["a"], activation=nn.Identity())
    encoder.shifters["raw"] = encoder.shifters["a"]
    torch.testing.assert_close(ELUPlusOne()(encoder(**batch, animal="raw")), encoder(**batch, animal="a"))


def test_penalties_of_the_core_and_of_some_animals(encoder):
    alone = encoder.core.regularizer() + encoder.readouts["b"].regularizer()
    torch.testing.assert_close(encoder.regularizer(["b"]), alone)
    torch.testing.assert_close(encoder.regularizer(), alone + encoder.readouts["a"].regularizer())


def test_images_have_no_frames():
    model = Encoder(ImageCore())
    model.add_animal("a", GaussianReadout((2, 6, 8), 5))
    assert model(torch.randn(3, 1, 6, 8), "a").shape == (3, 5)


class ImageCore(nn.Conv2d):
    """A convolution of images."""

    def __init__(self) -> None:
        super().__init__(1, 2, 3, padding=1)

    def forward(self, images: Tensor, **_: object) -> Tensor:
        return super().forward(images)


@pytest.mark.parametrize(
    ("act", "line"),
    [
        (lambda model, batch: model(**batch, animal="z"), "the encoder has no animal 'z'; it has a, b"),
        (lambda model, batch: model(**batch, animal=["a", "z", "a", "a"]), "the encoder has no animal 'z'"),
        (lambda model, batch: model.add_animal("a", model.readouts["b"]), "animal 'a' is there already"),
        (lambda model, batch: model.add_animal("a.1", model.readouts["b"]), "animal 'a.1' holds a dot"),
        (lambda model, batch: model.remove_animal("z"), "the encoder has no animal 'z'"),
        (lambda model, batch: model(batch["stimuli"], "a"), "animal 'a' has a shifter, which needs pupil_center"),
        (
            lambda model, batch: model(**batch | {"pupil_center": batch["pupil_center"][..., :4]}, animal="a"),
            "a signal has 4 frames, fewer than the features, which have 5",
        ),
    ],
)
def test_a_mistake_is_one_line(encoder, batch, act, line):
    with pytest.raises(ValueError, match=line) as caught:
        act(encoder, batch)
    assert "\n" not in str(caught.value)


def test_positions_are_points_of_the_map_moved_by_the_mean_gaze(encoder, batch):
    """An impulse in the features where a neuron is said to look is what its rate depends on most."""
    encoder.eval()
    positions = encoder.positions("a")
    assert positions.shape == (5, 2)
    shift = encoder.shifters["a"](torch.zeros(1, 2), None)
    torch.testing.assert_close(positions, encoder.readouts["a"].mu[0, :, 0].clamp(-1, 1) + shift)
    features = torch.zeros(1, 4, 1, 6, 8, requires_grad=True)
    rates = encoder.respond(features, "a", pupil_center=torch.zeros(1, 2, 1))
    inside = (positions.abs() < 1).all(1)
    assert inside.any()
    for neuron in inside.nonzero().flatten():
        (gradient,) = torch.autograd.grad(rates[0, neuron, 0], features, retain_graph=True)
        row, column = divmod(int(gradient.abs().sum((0, 1, 2)).argmax()), 8)
        expected = (positions[neuron] + 1) / 2 * torch.tensor([7, 5])
        assert (torch.tensor([column, row]) - expected).abs().max() <= 0.5 + 1e-4


def test_readouts_without_points_have_no_positions():
    model = Encoder(SmallCore())
    model.add_animal("a", FactorizedReadout((4, 6, 8), 3))
    assert model.positions("a") is None
