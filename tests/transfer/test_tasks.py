"""Transfer tasks: known answers, the same numbers as scikit-learn by hand, images streamed, runs that resume."""

import dataclasses
import json
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV
from sklearn.svm import LinearSVC

from pretrain.checkpoint import BackboneSpec, load_trained_backbone, save_checkpoint
from pretrain.models import create_model, model_info
from transfer import tasks as module
from transfer.config import TasksConfig
from transfer.features import extract_features, prepare_stimuli
from transfer.task_data import TaskData
from transfer.tasks import image_batches, task_layers, tasks
from transfer.textures import open_textures

MODEL = "timm/test_resnet"
GRID = [1e-4, 1e-1, 1e2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a network that was never trained, for 32-pixel images."""
    torch.manual_seed(7)
    backbone = create_model(MODEL, num_classes=0)
    info = model_info(MODEL)
    spec = BackboneSpec(MODEL, {"num_classes": 0}, 32, list(info.mean), list(info.std))
    folder = tmp_path_factory.mktemp("run")
    state = {"epoch": 1, "model": asdict(spec), "backbone": backbone.state_dict()}
    save_checkpoint(folder / "checkpoints", 1, state, keep=1)
    return folder


def texture(name: str, rng: np.random.Generator) -> np.ndarray:
    """Stripes, dots or noise, uint8 (60, 80, 3), at a random place and contrast."""
    y, x = np.mgrid[:60, :80] + rng.uniform(0, 20, 2)[:, None, None]
    noise = rng.normal(size=(60, 80))
    pattern = {"stripes": np.sin(x / 2), "dots": 2 * (np.hypot(y % 20 - 10, x % 20 - 10) < 6) - 1, "noise": noise}[name]
    grey = 128 + rng.uniform(30, 80) * pattern + 20 * rng.normal(size=(60, 80))
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, 2)


@pytest.fixture(scope="module")
def dtd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three textures of 20 images each, and splits 1 and 2 of 7 train, 7 validation and 6 test images of each."""
    folder = tmp_path_factory.mktemp("dtd")
    rng = np.random.default_rng(0)
    (folder / "labels").mkdir()
    for name in ("stripes", "dots", "noise"):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(20):
            Image.fromarray(texture(name, rng)).save(folder / "images" / name / f"{name}_{number:04d}.jpg", quality=95)
    for split in (1, 2):
        order = rng.permutation(20)
        for part, numbers in (("train", order[:7]), ("val", order[7:14]), ("test", order[14:])):
            lines = [f"{name}/{name}_{number:04d}.jpg" for name in ("dots", "noise", "stripes") for number in numbers]
            (folder / "labels" / f"{part}{split}.txt").write_text("\n".join(lines))
    return folder


def config(out: Path, checkpoint: Path, data: Path, **keys: Any) -> TasksConfig:
    tiny = {"c_values": GRID, "folds": 3, "jobs": 1, "accelerator": "cpu", "layers": ["layer1", "layer4"]}
    return TasksConfig(**({"checkpoint": str(checkpoint), "data": str(data), "out": str(out)} | tiny | keys))


@pytest.fixture(scope="module")
def textures_run(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, dtd: Path) -> TasksConfig:
    """The config of a finished run on textures; 12 components, so that both layers are reduced."""
    made = config(tmp_path_factory.mktemp("runs") / "textures", checkpoint, dtd, components=12, baselines=True)
    tasks(made)
    return made


def test_textures_are_told_apart(textures_run):
    table = pd.read_parquet(Path(textures_run.out) / "tasks.parquet")
    keys = table[["model", "layer", "split"]].itertuples(index=False, name=None)
    assert list(keys) == list(product(("trained", "random"), ("layer1", "layer4"), (1, 2)))
    trained, random = (table[table["model"] == model]["validation"].to_list() for model in ("trained", "random"))
    assert trained != random
    assert (table.loc[table["layer"] == "layer4", "test_acc"] > 0.9).all()
    assert table["test_acc"].mean() > 0.9
    assert (table["train_acc"] >= table["test_acc"]).mean() > 0.5
    facts = table[["target", "variable", "train_images", "test_images", "classes", "components"]].drop_duplicates()
    assert facts.values.tolist() == [["texture", "texture", 42, 18, 3, 12]]
    assert table["test_r"].isna().all()
    pd.testing.assert_frame_equal(pd.read_csv(Path(textures_run.out) / "tasks.csv"), table)
    status = json.loads((Path(textures_run.out) / "status.json").read_text())
    assert (status["state"], status["kind"], status["images"], status["readouts"]) == ("finished", "tasks", 60, 8)


def test_the_numbers_are_those_of_scikit_learn_by_hand(textures_run, dtd):
    table = pd.read_parquet(Path(textures_run.out) / "tasks.parquet").set_index(["model", "layer", "split"])
    trained = load_trained_backbone(textures_run.checkpoint)
    torch.manual_seed(textures_run.seed)
    models = {"trained": trained.backbone, "random": create_model(MODEL, num_classes=0)}
    data = open_textures(dtd)
    inputs = torch.cat([prepare_stimuli(data.read(row)[None], trained.spec) for row in range(data.count)])
    classes = data.targets[0].values
    for model, layer, split in table.index:
        train, test = data.splits[split]
        features = extract_features(models[model], inputs, [layer])[layer].flatten(1).double().numpy()
        reduce = PCA(12, svd_solver="full").fit(features[train])
        of_train, of_test = reduce.transform(features[train]), reduce.transform(features[test])
        machine = LinearSVC(dual=False, tol=1e-10, max_iter=100_000)
        found = GridSearchCV(machine, {"C": GRID}, cv=3).fit(of_train, classes[train])
        row = table.loc[(model, layer, split)]
        assert row["C"] == found.best_params_["C"]
        assert row["validation"] == pytest.approx(found.best_score_)
        assert row["train_acc"] == pytest.approx(found.score(of_train, classes[train]))
        assert row["test_acc"] == pytest.approx(found.score(of_test, classes[test]))
        assert row["features"] == features.shape[1]
    assert table["C"].nunique() > 1


def test_a_finished_readout_is_read_back_and_a_missing_one_is_made_again(textures_run, monkeypatch):
    out = Path(textures_run.out)
    before = pd.read_parquet(out / "tasks.parquet")
    read: list[list[str]] = []
    original = module.task_features

    def counting(backbone, data, spec, layers, jobs):
        read.append(layers)
        return original(backbone, data, spec, layers, jobs)

    monkeypatch.setattr(module, "task_features", counting)
    tasks(textures_run)
    assert read == []
    (out / "pieces" / "trained-layer4-texture-texture-2.parquet").unlink()
    (out / "tasks.parquet").unlink()
    untouched = out / "pieces" / "trained-layer4-texture-texture-1.parquet"
    written = untouched.stat().st_mtime_ns
    tasks(textures_run)
    assert read == [["layer4"]]
    assert untouched.stat().st_mtime_ns == written
    pd.testing.assert_frame_equal(pd.read_parquet(out / "tasks.parquet"), before)


def test_layers_that_do_not_fit_into_memory_together_are_read_in_turn(textures_run, tmp_path, monkeypatch):
    read = []
    original = module.task_features

    def counting(backbone, data, spec, layers, jobs):
        read.append(layers)
        return original(backbone, data, spec, layers, jobs)

    monkeypatch.setattr(module, "task_features", counting)
    monkeypatch.setattr(module, "FEATURE_BYTES", 1)
    tasks(dataclasses.replace(textures_run, out=str(tmp_path / "other")))
    assert read == [["layer1"], ["layer4"]] * 2
    found, expected = (pd.read_parquet(Path(path) / "tasks.parquet") for path in (tmp_path / "other", textures_run.out))
    pd.testing.assert_frame_equal(found, expected)


def test_other_images_or_another_checkpoint_are_refused(textures_run, dtd):
    path = dtd / "labels" / "test2.txt"
    text = path.read_text()
    path.write_text(text.rpartition("\n")[0])
    try:
        with pytest.raises(FileExistsError, match="holds scores of data_sha256"):
            tasks(textures_run)
    finally:
        path.write_text(text)


def test_features_that_are_not_finite_are_one_line(checkpoint, dtd, tmp_path):
    trained = load_trained_backbone(checkpoint)
    weights = trained.backbone.state_dict()
    next(iter(weights.values()))[:] = torch.nan
    state = {"epoch": 1, "model": asdict(trained.spec), "backbone": weights}
    save_checkpoint(tmp_path / "checkpoints", 1, state, keep=1)
    with pytest.raises(ValueError, match="layer 'layer1' gives values that are not finite; are the weights damaged"):
        tasks(config(tmp_path / "run", tmp_path, dtd))


def test_images_are_decoded_one_batch_ahead_and_no_more(monkeypatch):
    read = []
    pixels = np.random.default_rng(0).integers(0, 256, (23, 40, 50, 3), np.uint8)

    def reading(row: int) -> np.ndarray:
        read.append(row)
        return pixels[row]

    monkeypatch.setattr(module, "BATCH", 5)
    info = model_info(MODEL)
    spec = BackboneSpec(MODEL, {}, 32, list(info.mean), list(info.std))
    batches = image_batches(TaskData(23, reading, (), {}, ""), spec, threads=3)
    found = []
    for number, batch in enumerate(batches):
        found.append(batch)
        assert len(read) <= min(23, 5 * (number + 2))
    assert [len(batch) for batch in found] == [5, 5, 5, 5, 3]
    assert torch.equal(torch.cat(found), prepare_stimuli(pixels, spec))


@pytest.fixture(scope="module")
def hvm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 grey images of 4 objects in 2 categories; an image is a sum of patterns, weighted by what is to be told."""
    rng = np.random.default_rng(0)
    count = 160
    category, instance = np.arange(count) // 80, np.arange(count) // 40
    names = ("rotation_xy", "rotation_xz", "rotation_yz", "translation_y", "translation_z", "size")
    numbers = {name: rng.uniform(-1, 1, count) for name in names}
    y, x = np.mgrid[:32, :32] / 32 * 2 * np.pi
    waves = np.stack([np.sin(i * x + j * y) for i, j in ((1, 0), (0, 1), (1, 1), (2, 0), (0, 2), (2, 1))])
    shape = np.stack([np.sin(1 * x + 2 * y), np.sin(2 * x + 2 * y)])
    weights = np.stack(list(numbers.values()), 1)
    objects = np.stack([category * 2.0 - 1, instance % 2 * 2.0 - 1], 1)
    images = 128 + 14 * (weights @ waves.reshape(6, -1)) + 18 * (objects @ shape.reshape(2, -1))
    path = tmp_path_factory.mktemp("hvm") / "hvm.h5"
    with h5py.File(path, "w") as file:
        file["images"] = images.reshape(count, 32, 32).round().clip(0, 255).astype(np.uint8)
        file["image_meta/category"] = [("Animals", "Boats")[number] for number in category]
        file["image_meta/object_name"] = [("bear", "dog", "ferry", "yacht")[number] for number in instance]
        for name, values in numbers.items():
            file[f"image_meta/{name}"] = values
    return path


def test_objects_and_what_is_linear_in_the_image_are_told(hvm, checkpoint, tmp_path):
    """The first convolution is linear in the image."""
    made = config(
        tmp_path / "run", checkpoint, hvm, task="hvm", layers=["conv1"], own_splits=2, c_values=[1e-2, 1.0, 1e4]
    )
    table = pd.read_parquet(tasks(made) / "tasks.parquet")
    assert len(table) == 2 * (1 + 1 + 2 + 3 + 2 + 1)
    assert set(table.loc[table["target"] == "identity", "variable"]) == {"Animals", "Boats"}
    classes = table[table["classes"] > 0]
    assert classes.groupby("target")["classes"].unique().map(list).to_dict() == {
        "category": [2], "instance": [4], "identity": [2],
    }  # fmt: skip
    assert (classes["test_acc"] > 0.9).all()
    numbers = table[table["classes"] == 0]
    assert (numbers["test_acc"] > 0.95).all()
    assert (numbers["test_r"] > 0.97).all()
    assert set(numbers.loc[numbers["target"] == "pose", "variable"]) == {"rotation_xy", "rotation_xz", "rotation_yz"}
    sizes = table.groupby("target")[["train_images", "test_images"]].first()
    assert sizes.loc["category"].tolist() == [128, 32]
    assert sizes.loc["identity"].tolist() == [64, 16]


def test_given_splits_and_chosen_targets(hvm, checkpoint, tmp_path):
    rows = np.random.default_rng(0).permutation(160)
    np.savez(tmp_path / "splits.npz", train_3=rows[:100], test_3=rows[100:], train_4=rows[:60], test_4=rows[60:])
    keys = {"task": "hvm", "targets": ["size"], "split_file": str(tmp_path / "splits.npz"), "layers": ["conv1"]}
    table = pd.read_parquet(tasks(config(tmp_path / "all", checkpoint, hvm, **keys)) / "tasks.parquet")
    assert table[["target", "split", "train_images", "test_images"]].values.tolist() == [
        ["size", 3, 100, 60],
        ["size", 4, 60, 100],
    ]
    one = pd.read_parquet(tasks(config(tmp_path / "one", checkpoint, hvm, splits=[4], **keys)) / "tasks.parquet")
    pd.testing.assert_frame_equal(one, table[table["split"] == 4].reset_index(drop=True))


def test_layers_are_the_fit_layers_and_the_pooled_one_of_streams(checkpoint):
    assert task_layers(load_trained_backbone(checkpoint)) == list(model_info(MODEL).fit_layers)
    with torch.device("meta"):
        streams = create_model("dual_stream", num_classes=0)
    trained = dataclasses.replace(load_trained_backbone(checkpoint), backbone=streams)
    trained = dataclasses.replace(trained, spec=dataclasses.replace(trained.spec, name="dual_stream"))
    assert task_layers(trained) == ["VISp", "ventral", "dorsal", "VISpor", "VISam", "avgpool"]


@pytest.mark.parametrize(
    ("keys", "error", "line"),
    [
        ({"checkpoint": None}, ValueError, "checkpoint is not set; see `murine tasks --help`"),
        ({"data": None}, ValueError, "data is not set"),
        ({"data": "absent"}, FileNotFoundError, "absent is not the folder of DTD"),
        ({"splits": [1, 3]}, ValueError, "there is no split 3; there are 1, 2"),
        ({"targets": ["size"]}, ValueError, "targets is a key of task=hvm"),
        ({"split_file": "a.npz"}, ValueError, "split_file is a key of task=hvm"),
        ({"layers": ["layer9"]}, ValueError, "the model has no layer 'layer9'; nearest: layer"),
        ({"folds": 15}, ValueError, "a class has 14 train images, fewer than folds=15; lower folds"),
    ],
)
def test_mistakes_are_one_line(keys, error, line, checkpoint, dtd, tmp_path):
    with pytest.raises(error, match=line) as caught:
        tasks(dataclasses.replace(config(tmp_path / "run", checkpoint, dtd, layers=["layer4"]), **keys))
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run").exists() == ("folds" in keys)
