"""The report page: complete, self-contained, escaped, and written whole or not at all.

The functions `make_pretraining` and `make_predictivity` also make run folders to look at by hand.
"""

import base64
import csv
import html
import io
import json
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from transfer import charts, report, report_inputs
from transfer.config import ReportConfig
from transfer.report_parts import show_number
from transfer.report_scores import pooled_rows

LAYERS = ("features.pool1", "features.pool2", "features.relu3", "features.relu4", "features.pool5", "classifier.relu6")
AREAS = ("VISp", "VISl", "VISal", "VISrl", "VISam", "VISpm")
STATUS = {
    "state": "finished",
    "started": "2025-03-02T09:00:00+00:00",
    "updated": "2025-03-02T13:12:00+00:00",
    "versions": {"murine": "0.1.0", "torch": "2.15.0", "python": "3.11.9", "numpy": "2.4.0"},
    "device": "cpu (AMD EPYC, 2 threads)",
}


def make_pretraining(
    folder: Path, steps: int = 600, labels: bool = True, pictures: bool = True, **status: object
) -> Path:
    """A run folder as `murine pretrain` leaves it, with made-up numbers."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    chance = {"knn_chance": 0.1} if labels else {}
    (folder / "status.json").write_text(json.dumps({"kind": "pretrain", **STATUS, **chance, **status}))
    (folder / "config.yaml").write_text("model: alexnet_bn\nobjective: instance_recognition\nepochs: 20\nseed: 1\n")
    columns = ["step", "epoch", "images_seen", "loss", "data_loss", "noise_loss", "lr", "images_per_s"]
    columns += ["knn_accuracy", "rankme", "feature_std"]
    with (folder / "metrics.csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, columns, restval="")
        rows.writeheader()
        for step in range(10, steps + 1, 10):
            done = step / steps
            data, noise = 5.2 * np.exp(-3 * done) + 1.1, 3.1 - 0.4 * done
            position = {"step": step, "epoch": int(20 * done), "images_seen": 256 * step}
            losses = {"loss": data + noise + random.normal(0, 0.08), "data_loss": data, "noise_loss": noise}
            rows.writerow(position | losses | {"lr": 0.003, "images_per_s": 1180 + random.normal(0, 30)})
            if step % 50 == 0:
                probes = {"rankme": 20 + 90 * done, "feature_std": 0.52 + 0.31 * done}
                knn = {"knn_accuracy": 0.1 + 0.34 * done**0.5} if labels else {}
                rows.writerow(position | probes | knn)
    if pictures:
        Image.fromarray(_filters(random)).save(folder / "filters.png")
        Image.fromarray(_views(random)).save(folder / "views.png")
    return folder


def make_predictivity(
    folder: Path,
    layers: Sequence[str] = LAYERS,
    areas: Sequence[str] = AREAS,
    animals: int = 8,
    gain: float = 0.0,
    **status: object,
) -> Path:
    """A run folder as `murine predictivity` leaves it, with made-up numbers."""
    random = np.random.default_rng(1)
    folder.mkdir(parents=True)
    extras = {"recording": "allen_natural_scenes.npz", "checkpoint": "runs/alexnet", "checkpoint_epoch": 200}
    extras |= {"best_layer_score": 0.401}
    (folder / "chosen.csv").write_text(
        "model,area,median,low,high,neurons,layers\ntrained,all,0.401,0.39,0.41,2400,by area\n"
        'trained,VISp,0.41,0.4,0.42,400,"features.7 (8 of 10), features.10 (2)"\n'
    )
    (folder / "differences.csv").write_text(
        "model_a,model_b,area,difference,low,high,neurons\ntrained,random,all,0.132,0.11,0.15,2400\n"
    )
    (folder / "status.json").write_text(json.dumps({"kind": "predictivity", **STATUS, **extras, **status}))
    (folder / "config.yaml").write_text("checkpoint: runs/alexnet\ncomponents: 25\nmin_reliability: 0.5\nsplits: 10\n")
    places = [("all", "all")] + [(area, "all") for area in areas]
    places += [(area, str(501271265 + 7919 * animal)) for area in areas for animal in range(animals)]
    shift = {place: random.normal(0, 0.05 if place[1] != "all" else 0.02) for place in places} | {("all", "all"): 0.0}
    with (folder / "predictivity.csv").open("w", newline="") as file:
        names = ["model", "layer", "features", "area", "animal", "median", "low", "high", "neurons", "excluded_silent"]
        rows = csv.DictWriter(file, [*names, "excluded_unreliable", "excluded_unscored", "reliability"])
        rows.writeheader()
        for model, layer, depth in _models_and_layers(layers):
            level = {"trained": 0.24 + gain, "random": 0.22, "pixels": 0.2}[model]
            curve = {"trained": 0.16, "random": 0.05, "pixels": 0}[model] * np.sin(np.pi * (0.15 + 0.75 * depth))
            for area, animal in places:
                neurons = {"all": 2400 if area == "all" else 400}.get(animal, 48)
                median = level + curve + shift[area, animal] + random.normal(0, 0.004)
                half = 0.9 / neurons**0.5 * 0.6
                numbers = {"median": median, "low": median - half, "high": median + 0.9 * half, "neurons": neurons}
                counts = {"excluded_silent": 3, "excluded_unreliable": 311, "excluded_unscored": 2, "reliability": 0.71}
                row = {"model": model, "layer": layer, "features": 9216, "area": area, "animal": animal}
                rows.writerow(row | numbers | counts)
    return folder


def _models_and_layers(layers: Sequence[str]) -> list[tuple[str, str, float]]:
    steps = np.linspace(0, 1, len(layers))
    pairs = [
        (model, layer, depth) for model in ("trained", "random") for layer, depth in zip(layers, steps, strict=True)
    ]
    return [*pairs, ("pixels", "pixels", 0.0)]


def _filters(random: np.random.Generator, side: int = 11, across: int = 8) -> np.ndarray:
    """A grid of Gabor filters, uint8 (height, width, 3)."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    grid = np.full((across * (side + 1) + 1, across * (side + 1) + 1, 3), 255, np.uint8)
    for row in range(across):
        for column in range(across):
            angle, phase = random.uniform(0, np.pi), random.uniform(0, 2 * np.pi)
            wave = np.cos(6 * (x * np.cos(angle) + y * np.sin(angle)) + phase) * np.exp(-(x**2 + y**2) / 0.4)
            tint = random.uniform(0.3, 1, 3)
            top, left = row * (side + 1) + 1, column * (side + 1) + 1
            grid[top : top + side, left : left + side] = np.uint8(127.5 + 127 * wave[..., None] * tint)
    return grid


def _views(random: np.random.Generator, side: int = 64, rows: int = 6, across: int = 7) -> np.ndarray:
    """Rows of one smooth picture and its tinted crops, uint8 (height, width, 3)."""
    sheet = np.full((rows * (side + 4) + 4, across * (side + 4) + 4, 3), 255, np.uint8)
    for row in range(rows):
        coarse = random.uniform(0, 255, (6, 6, 3)).astype(np.uint8)
        picture = Image.fromarray(coarse).resize((2 * side, 2 * side), Image.Resampling.BICUBIC)
        for column in range(across):
            x, y = random.integers(0, side, 2) if column else (0, 0)
            view = picture.crop((x, y, x + side, y + side)) if column else picture.resize((side, side))
            tint = random.uniform(0.6, 1, 3) if column else np.ones(3)
            top, left = row * (side + 4) + 4, column * (side + 4) + 4
            sheet[top : top + side, left : left + side] = np.uint8(np.asarray(view) * tint)
    return sheet


@pytest.fixture
def pretraining(tmp_path: Path) -> Path:
    return make_pretraining(tmp_path / "alexnet-run")


@pytest.fixture
def predictivity(tmp_path: Path) -> Path:
    return make_predictivity(tmp_path / "scores-run", layers=LAYERS[:3], areas=AREAS[:2], animals=3)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A predictivity run and its page, for tests that only read them; the page goes to a folder that is new."""
    folder = make_predictivity(tmp_path_factory.mktemp("a") / "run", layers=LAYERS[:3], areas=AREAS[:2], animals=3)
    return folder, written(folder, out=str(folder.parent / "pages" / "page.html"))


def written(*runs: Path, **keys: str) -> str:
    """The page of some runs, with the text of the template's own style left out."""
    page = report.report(ReportConfig([str(run) for run in runs], **keys)).read_text(encoding="utf-8")
    return re.sub(r"<style>.*?</style>", "", page, flags=re.S)


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def rewrite(folder: Path, name: str, rows: list[dict[str, str]]) -> None:
    with (folder / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_page_fetches_nothing_and_holds_its_pictures(pretraining: Path, predictivity: Path) -> None:
    out = report.report(ReportConfig([str(run) for run in (predictivity, pretraining, predictivity)]))
    page = out.read_text(encoding="utf-8")
    assert not re.search(r"https?:|ftp:|@import|<(script|link|iframe|object)|url\((?!#)", page)
    targets = re.findall(r'\b(?:src|href)="([^"]*)"', page)
    assert all(target.startswith(("data:image/", "#")) for target in targets)
    embedded = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="[^"]{10,}"', page)
    assert [base64.b64decode(text) for text in embedded] == [
        (pretraining / name).read_bytes() for name in ("filters.png", "views.png")
    ]
    # Twice by layer, model against model, by animal, two areas; both compared; 3 losses, 3 probes, speed, rate.
    assert len(re.findall(r'<svg [^>]*role="img" aria-label="[^"]{10,}', page)) == 2 * 5 + 1 + 8
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) > 100
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]+)"', page) + re.findall(r"url\(#([^)]+)\)", page)
    assert len(used) > 100
    assert set(used) <= set(ids)


def test_every_number_of_the_table_is_on_the_page(scores: tuple[Path, str]) -> None:
    predictivity, page = scores
    cells = re.findall(r"<tr>(.*?)</tr>", page)
    shown = {tuple(html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)) for row in cells}
    rows = rows_of(predictivity, "predictivity.csv")
    assert len(rows) == (2 * 3 + 1) * (1 + 2 + 6)
    for row in rows:
        names = [charts.model_name(row["model"]), row["layer"]]
        names += [row[name] for name in ("area", "animal") if row[name] != "all"]
        numbers = [f"{int(row['features']):,}"] + [show_number(float(row[name])) for name in ("median", "low", "high")]
        numbers += [f"{int(row['neurons']):,}", "3", "311", "2", "0.710"]
        assert tuple(names + numbers) in shown


def test_headline_names_the_best_layer_and_the_baselines(scores: tuple[Path, str]) -> None:
    predictivity, page = scores
    rows = [row for row in rows_of(predictivity, "predictivity.csv") if (row["area"], row["animal"]) == ("all", "all")]
    best = {
        model: max((row for row in rows if row["model"] == model), key=lambda row: float(row["median"]))
        for model in ("trained", "random", "pixels")
    }
    lead = re.search(r'<p class="lead">(.*?)</p>', page)[1]
    assert best["trained"]["layer"] in lead
    assert [float(number) for number in re.findall(r"0\.\d{3}", lead)] == [
        round(float(number), 3)
        for number in (
            *(best["trained"][name] for name in ("median", "low", "high")),
            best["random"]["median"], best["pixels"]["median"], 0.401,
        )
    ]  # fmt: skip
    assert "2,400 neurons were scored and 316 left out" in page
    assert "split-half reliability below 0.5" in page


def test_text_from_files_is_escaped(tmp_path: Path) -> None:
    hostile = '<img src=x onerror="alert(1)">&'
    fit = make_predictivity(tmp_path / "<b>&run", layers=[hostile, "$x^2$"], areas=[hostile + "A", "V1"], animals=1,
                            recording=hostile, device=hostile, state=hostile, versions={hostile: hostile})  # fmt: skip
    train = make_pretraining(tmp_path / "train", message=hostile, state="failed")
    (train / "config.yaml").write_text(json.dumps({"model": hostile}))
    rewrite(train, "metrics.csv", [row | {hostile: "1"} for row in rows_of(train, "metrics.csv")])
    page = written(fit, train, title=hostile)
    attributes, tags = [], set()
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, pairs: (tags.add(tag), attributes.extend(name for name, _ in pairs))
    parser.feed(page)
    assert not tags & {"b", "script"}
    assert "svg" in tags
    assert not [name for name in attributes if name.startswith("on")]
    assert page.count("&lt;img src=x") > 20
    svgs = re.findall(r"<svg .*?</svg>", page, flags=re.S)
    assert len(svgs) > 8
    for svg in svgs:
        assert all(element.tag != "img" for element in ElementTree.fromstring(svg).iter())
    assert any("$x^2$" in svg for svg in svgs)


def test_page_of_a_pretraining_only(pretraining: Path) -> None:
    page = written(pretraining)
    assert "No predictivity run is part of this page." in page
    assert "No pretraining run" not in page
    for title in ("Loss", "Data loss", "Noise loss", "kNN accuracy", "RankMe", "Feature spread", "Speed"):
        assert f"<h4>{title}</h4>" in page
    assert "44 %" in page  # 0.1 + 0.34 at the last probe
    assert "chance is 10 %" in page
    assert "alexnet_bn" in page
    assert "2.15.0" in page
    assert "AMD EPYC" in page


def test_page_of_a_predictivity_only(scores: tuple[Path, str]) -> None:
    page = scores[1]
    assert page.startswith("<!DOCTYPE html>")
    assert "No pretraining run is part of this page." in page
    for title in ("Predictivity by layer", "Predictivity by area and animal", *AREAS[:2]):
        assert f"<h4>{title}</h4>" in page
    assert "<img" not in page
    assert "min_reliability: 0.5" in page


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    unlabelled = make_pretraining(tmp_path / "unlabelled", labels=False, pictures=False, state="running")
    page = written(unlabelled)
    assert "Not measured in this run: kNN accuracy" in page
    assert "there is no filters.png" in page
    assert "there is no views.png" in page
    assert "had not finished" in page
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "status.json").write_text('{"kind": "predictivity", "state": "failed", "message": "no checkpoint"}')
    page = written(bare)
    assert "This run failed: no checkpoint" in page
    assert "There is no predictivity.csv" in page
    assert "There is no config.yaml" in page
    (bare / "status.json").write_text('{"kind": "pretrain", "state": "running"}')
    (bare / "metrics.csv").write_text("")
    assert "There are no training curves" in written(bare)


def test_values_that_are_not_numbers_are_counted(pretraining: Path) -> None:
    rows = rows_of(pretraining, "metrics.csv")
    logged = [row for row in rows if row["loss"]]
    for row in logged[-7:]:
        row["loss"] = "nan"
    logged[0]["loss"] = "inf"
    rewrite(pretraining, "metrics.csv", rows)
    assert f"Loss: 8 of {len(logged)} logged values are not finite numbers." in written(pretraining)


def test_long_curves_are_averaged_and_say_so(tmp_path: Path) -> None:
    page = written(make_pretraining(tmp_path / "long", steps=12_000, pictures=False))
    assert "Each point is the mean of 3 logged rows." in page  # 1200 rows, at most 400 points
    assert len(page) < 1_500_000


def test_several_runs_are_compared(tmp_path: Path) -> None:
    fits = [
        make_predictivity(tmp_path / name / "run", layers=LAYERS[:2], areas=AREAS[:1], animals=1, gain=gain)
        for name, gain in (("a", 0.0), ("b", 0.2))
    ]
    trains = [make_pretraining(tmp_path / f"train{number}", steps=20, pictures=False) for number in (1, 2)]
    page = written(*fits, *trains)
    assert "2 predictivity runs</h2>" in page
    assert "2 pretraining runs</h2>" in page
    assert '<a href="#run-2">run (2)</a> is the best of 2 predictivity runs' in page
    assert "<h4>Runs compared</h4>" in page


def test_mistakes_are_named_in_one_line(tmp_path: Path, predictivity: Path) -> None:
    def message(kind: type[Exception], *runs: Path, **keys: str) -> str:
        with pytest.raises(kind) as caught:
            report.report(ReportConfig([str(run) for run in runs], **keys))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "runs is empty" in message(ValueError)
    assert str(tmp_path / "absent") in message(FileNotFoundError, tmp_path / "absent")
    assert f"runs=[{predictivity}]" in message(ValueError, tmp_path)  # the folder above: names the runs in it
    assert "is a folder" in message(ValueError, predictivity, out=str(tmp_path))
    (predictivity / "predictivity.csv").write_text("model,layer\ntrained,conv1\n")
    assert "lacks the columns area, animal, median, low, high" in message(ValueError, predictivity)
    (predictivity / "config.yaml").write_text("a: [1,\nb: }")
    assert "config.yaml cannot be read as YAML" in message(ValueError, predictivity)
    (predictivity / "status.json").write_text('{"kind": "tasks"}')
    assert "kind is 'tasks'" in message(ValueError, predictivity)
    (predictivity / "status.json").write_text("{")
    assert "cannot be read as JSON" in message(ValueError, predictivity)


def test_repeated_rows_are_refused(predictivity: Path) -> None:
    rows = rows_of(predictivity, "predictivity.csv")
    rewrite(predictivity, "predictivity.csv", [*rows, rows[0]])
    with pytest.raises(ValueError, match="1 rows that repeat"):
        report.report(ReportConfig([str(predictivity)]))


def test_page_is_written_whole_or_not_at_all(predictivity: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name for path in predictivity.iterdir()}
    out = report.report(ReportConfig([str(predictivity)]))
    assert out == predictivity / "report.html"
    assert {path.name for path in predictivity.iterdir()} == before | {"report.html"}
    out.write_text("the page of yesterday")
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        report.report(ReportConfig([str(predictivity)]))
    assert out.read_text() == "the page of yesterday"
    assert {path.name for path in predictivity.iterdir()} == before | {"report.html"}


def test_large_picture_is_shrunk_and_a_broken_one_refused(pretraining: Path) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (900, 900, 3), np.uint8)
    Image.fromarray(noise).save(pretraining / "views.png")
    assert (pretraining / "views.png").stat().st_size > report_inputs.LARGEST_PICTURE
    address = report_inputs.read_picture(pretraining / "views.png")
    encoded = base64.b64decode(address.removeprefix("data:image/jpeg;base64,"))
    assert len(encoded) <= report_inputs.LARGEST_PICTURE
    with Image.open(io.BytesIO(encoded)) as picture:
        assert picture.size[0] == picture.size[1] > 500
    (pretraining / "views.png").write_bytes((pretraining / "filters.png").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"views\.png cannot be read as a PNG picture"):
        report.report(ReportConfig([str(pretraining)]))


def test_picture_for_the_readme(predictivity: Path, pretraining: Path, tmp_path: Path) -> None:
    path = report.predictivity_picture(predictivity, tmp_path / "predictivity.png")
    with Image.open(path) as picture:
        assert picture.size[0] >= 900
        pixels = np.asarray(picture.convert("RGB"))
    assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    trained = [int(charts.LIGHT["trained"][place : place + 2], 16) for place in (1, 3, 5)]
    assert (pixels == trained).all(axis=-1).sum() > 100
    with pytest.raises(FileNotFoundError, match=r"no predictivity\.csv"):
        report.predictivity_picture(pretraining, path)


def test_chart_takes_colours_and_font_from_the_page(predictivity: Path) -> None:
    table = report_inputs.read_scores(predictivity)
    svg = charts.to_svg(charts.by_layer(pooled_rows(table)), "p", "words")
    assert "var(--chart-trained)" in svg
    assert "var(--font)" in svg
    assert "DejaVu" not in svg
    assert not any(code in svg for code in charts.LIGHT.values())
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert LAYERS[0] in svg  # as text


@given(st.lists(st.tuples(*[st.floats(-1, 1) | st.just(math.nan)] * 3), min_size=1, max_size=5))
def test_score_limits_hold_every_score_and_zero(numbers: list[tuple[float, float, float]]) -> None:
    low, high = charts.score_limits(pd.DataFrame(numbers, columns=["median", "low", "high"]))
    finite = [number for row in numbers for number in row if math.isfinite(number)]
    assert low <= min([0, *finite])
    assert high > low
    assert high >= max([0, *finite])
    assert low == 0 or min(finite) < 0
