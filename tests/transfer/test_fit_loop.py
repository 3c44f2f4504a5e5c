"""A fit in the training loop: parts, judge, AutoClip, averages; killed anywhere and resumed, bit for bit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pretrain.autoclip import AutoClip
from pretrain.average import make_average
from pretrain.checkpoint import newest_checkpoint, read_checkpoint
from pretrain.config import AverageConfig, CheckpointConfig
from pretrain.loop import Training, TrainingStopped
from pretrain.run_folder import RunFolder
from pretrain.task import Task
from transfer.cutmix import CutMix
from transfer.encoder import Encoder
from transfer.fit_objective import FitObjective
from transfer.fit_optimizer import make_fit_optimizer
from transfer.fit_schedule import FitSchedule
from transfer.gaussian_readout import GaussianReadout
from transfer.losses import TrialCounts, create_loss
from transfer.plateau import EarlyStopping, make_plateau
from transfer.shifters import MLPShifter

NEURONS = {"a": 4, "b": 3}
STEPS_PER_EPOCH, EPOCHS = 3, 9
# What is measured before the first step and after each epoch: the plateau acts several times.
MEASURED = [0.05, 0.1, 0.3, 0.2, 0.2, 0.35, 0.1, 0.1, 0.1, 0.1]


@dataclass(frozen=True)
class Spec:
    """Stands for the description of an encoder."""

    name: str = "small"


class SmallCore(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.dropout = nn.Conv3d(1, 3, 3, padding=(0, 1, 1)), nn.BatchNorm3d(3), nn.Dropout(0.2)

    def forward(self, video: Tensor, **_: object) -> Tensor:
        return self.dropout(self.norm(self.conv(video)))


def batch_of(step: int) -> dict[str, dict[str, Tensor]]:
    """Clips of two animals, a pure function of the step."""
    generator = torch.Generator().manual_seed(step)
    shapes = {"video": (1, 6, 5, 7), "pupil_center": (2, 6)}
    found = {}
    for animal, neurons in NEURONS.items():
        found[animal] = {name: torch.randn(4, *shape, generator=generator) for name, shape in shapes.items()}
        found[animal]["responses"] = torch.rand(4, neurons, 6, generator=generator)
        found[animal]["index"] = torch.arange(4) + 10 * step
    return found


SETTINGS: dict[str, dict] = {
    "viv1t": {"loss": "viv1t", "judge": lambda: make_plateau("viv1t", 2, 4)},
    "neuralpredictors": {"loss": "sensorium", "judge": lambda: make_plateau("neuralpredictors", 2, 3)},
    "closed_loop": {"loss": "viv1t_closed_loop", "optimizer": "schedule_free_adamw", "autoclip": True,
                    "judge": lambda: EarlyStopping(3)},
    "dwiseneuro": {"loss": "dwiseneuro", "decay": 0.9, "cutmix": True, "accumulate": 2},
}  # fmt: skip


def training(folder: Path, settings: dict, saved_minutes: float = 1e-9) -> Training:
    """A fit of the tiny encoder in a folder, as far as it is there."""
    torch.manual_seed(0)
    encoder = Encoder(SmallCore())
    for animal, neurons in NEURONS.items():
        encoder.add_animal(animal, GaussianReadout((3, 5, 7), neurons, init_sigma=0.2), MLPShifter())
    trials = {animal: TrialCounts(50, 20 + number) for number, animal in enumerate(NEURONS)}
    objective = FitObjective(encoder, create_loss(settings["loss"], trials))
    optimizer = make_fit_optimizer(encoder, settings.get("optimizer", "adamw"), 0.01, 0.1, lr_of={"core": 0.02})
    judge = settings["judge"]() if "judge" in settings else None
    schedule = FitSchedule("plateau" if judge else "constant", STEPS_PER_EPOCH, EPOCHS, min_lr=1e-6, judge=judge)
    cutmix = CutMix(seed=1) if settings.get("cutmix") else lambda batch, step: batch

    def prepared(step: int, timer: object) -> Iterator[dict]:
        return (cutmix(batch_of(number), number) for number in range(step, STEPS_PER_EPOCH * EPOCHS))

    task = Task(
        objective=objective,
        optimizer=optimizer,
        spec=Spec(),
        prepared=prepared,
        set_lr=schedule,
        measure=lambda backbone, note: measured(backbone, run),
        measure_due=lambda step: step % STEPS_PER_EPOCH == 0,
        epochs=EPOCHS,
        steps_per_epoch=STEPS_PER_EPOCH,
        batch_size=8,
        seed=1,
        log_every=1,
        clip_norm=0.0,
        saving=CheckpointConfig(every_minutes=saved_minutes),
        open_trackers=lambda step: [],
        parts=lambda batch: objective.parts(batch, settings.get("accumulate", 1)),
        autoclip=AutoClip() if settings.get("autoclip") else None,
        judge=judge,
        average=make_average(encoder, AverageConfig(decay=settings.get("decay", 0.0), warmup=False), optimizer),
        title="fit",
        samples="trials",
    )
    folder.mkdir(exist_ok=True)
    run = Training(task, Fabric(accelerator="cpu", devices=1), RunFolder(folder, "fit"))
    return run


def measured(backbone: nn.Module, run: Training) -> dict[str, float]:
    """The script's value, and a sum of the weights that were measured."""
    total = sum(value.double().sum().item() for value in backbone.state_dict().values())
    return {"single_trial_correlation": MEASURED[run.step // STEPS_PER_EPOCH], "weights": total}


def tensors(value: object, name: str = "") -> dict[str, object]:
    """Every value in a nested checkpoint, by its path."""
    if isinstance(value, dict | list | tuple):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for part, each in parts for key, leaf in tensors(each, f"{name}/{part}").items()}
    return {name: value}


def final(folder: Path) -> tuple[dict[str, object], pd.DataFrame]:
    table = pd.read_csv(folder / "metrics.csv")
    state = tensors(read_checkpoint(newest_checkpoint(folder / "checkpoints")))
    return state, table.drop(columns=["trials_per_s", *table.filter(regex="_ms$").columns])


def require_same(folder: Path, other: Path) -> None:
    """Weights, averages, the optimiser's state, what judge and AutoClip know, and metrics are equal bit for bit."""
    (one, rows), (two, other_rows) = final(folder), final(other)
    assert one.keys() == two.keys()
    for name in one:
        equal = torch.equal(one[name], two[name]) if isinstance(one[name], Tensor) else one[name] == two[name]
        assert equal, name
    pd.testing.assert_frame_equal(rows, other_rows, check_exact=True)


class Crash(Exception):
    """Stands for a kill: nothing of ours handles it."""


def crash_at(monkeypatch: pytest.MonkeyPatch, method: str, calls: set[int]) -> None:
    """Let the given calls of a method, counted over all runs, crash after their work."""
    original, count = getattr(Training, method), [0]

    def crashing(self: Training, *arguments: object) -> object:
        result = original(self, *arguments)
        count[0] += 1
        if count[0] in calls:
            raise Crash
        return result

    monkeypatch.setattr(Training, method, crashing)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an uninterrupted fit, which is saved only where epochs end."""
    folders: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name) / "whole"
            training(folders[name], SETTINGS[name], saved_minutes=1000).train()
        return folders[name]

    return run


OTHER_KILLS = [("train_step", {1, 6, 13}), ("measure", {1, 3}), ("save", {4, 9}), ("finish_epoch", {2, 4})]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    ("method", "calls"),
    [("train_step", {5, 12}), *(pytest.param(*kill, marks=pytest.mark.slow) for kill in OTHER_KILLS)],
)
def test_killed_anywhere_and_run_again_gives_the_same_numbers(whole, tmp_path, monkeypatch, name, method, calls):
    expected = whole(name)
    crash_at(monkeypatch, method, calls)
    for _ in calls:
        with pytest.raises(Crash):
            training(tmp_path / "killed", SETTINGS[name]).train()
    training(tmp_path / "killed", SETTINGS[name]).train()
    require_same(expected, tmp_path / "killed")


def test_a_plateau_puts_weights_back_lowers_the_rate_and_ends(whole):
    folder = whole("viv1t")
    rows = final(folder)[1].set_index("step")
    probes = rows[rows["weights"].notna()]
    # Best after epochs 2 and 5; after 4 and 7 and 9 the weights are put back, and the rate falls.
    assert probes["single_trial_correlation"].tolist() == MEASURED[1:]
    lr = rows["lr"].dropna()
    assert lr[[12, 13, 21, 22]].tolist() == pytest.approx([0.02, 0.006, 0.006, 0.0018])
    state = read_checkpoint(newest_checkpoint(folder / "checkpoints"))
    best = read_checkpoint(folder / "checkpoints" / "best.pt")
    assert best["epoch"] == 5
    assert all(torch.equal(value, best["backbone"][key]) for key, value in state["backbone"].items())


def test_early_stopping_ends_a_fit_that_stays_ended(whole):
    run = training(whole("closed_loop"), SETTINGS["closed_loop"])
    assert run.step == 8 * STEPS_PER_EPOCH
    assert run.finished


def test_neuralpredictors_measures_before_the_first_step(whole):
    rows = final(whole("neuralpredictors"))[1]
    assert rows["step"].tolist()[0] == 0
    assert rows["single_trial_correlation"].dropna().tolist()[0] == MEASURED[0]


def test_schedule_free_checkpoints_have_the_averages_beside_the_weights(whole):
    """What is measured and saved as average is what the optimiser's own `eval()` gives."""
    run = training(whole("closed_loop"), SETTINGS["closed_loop"])
    state = read_checkpoint(newest_checkpoint(whole("closed_loop") / "checkpoints"))
    run.task.optimizer.eval()
    for key, value in run.task.objective.backbone.state_dict().items():
        assert torch.equal(value, state["average"][key]), key
    moved = [key for key, value in state["backbone"].items() if not torch.equal(value, state["average"][key])]
    assert "core.conv.weight" in moved


def test_a_loss_that_is_not_finite_names_the_animals_trials(tmp_path):
    run = training(tmp_path / "broken", SETTINGS["viv1t"])
    original = run.task.prepared

    def broken(step: int, timer: object) -> Iterator[dict]:
        for batch in original(step, timer):
            batch["b"]["responses"] *= float("nan")
            yield batch

    run.task.prepared = broken
    with pytest.raises(TrainingStopped, match=r"the loss is nan at step 1, whose batch held a/video .* of the trials a "
                       r"000000000, .*; b 000000000, .*or look at these trials"):  # fmt: skip
        run.train()
