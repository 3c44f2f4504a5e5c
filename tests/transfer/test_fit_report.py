"""Sections of fits and scores: every chart is there, says its numbers, and stands beside its protocol."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from tests.transfer.fitted_runs import FACTORIZED, fitted_run, simulated_videos
from transfer.config import ReportConfig
from transfer.fit_report import add_fit, add_score, compare_scores, positions_of
from transfer.fitted import load_fitted
from transfer.predict import predict
from transfer.predict_config import PredictConfig, ScoreConfig
from transfer.report import report
from transfer.report_inputs import Run
from transfer.report_parts import Section
from transfer.score import score
from transfer.windows import WindowPlan


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    mice = simulated_videos(folder / "mice")
    found = {}
    for seed in (0, 1):
        fit = fitted_run(folder / f"fit{seed}", mice, FACTORIZED, "sensorium2023", WindowPlan(20), seed)
        predicted = predict(PredictConfig(runs=[str(fit)], out=str(folder / f"p{seed}"), accelerator="cpu"))
        config = ScoreConfig(predictions=str(predicted), out=str(folder / f"score{seed}"), first_frame=10)
        found |= {f"fit{seed}": fit, f"score{seed}": score(config)}
    return found


def section_of(folder: Path, kind: str, **status: object) -> Section:
    return Section(f"run-{folder.name}", folder.name, Run(folder, kind, status, "", {}))


def test_a_score_section(runs):
    section = section_of(runs["score0"], "score")
    add_score(section)
    titles = [picture.title for picture in section.figures]
    assert titles == ["Single-trial correlation", "Correlation to average", "Distribution over neurons"]
    assert "by the protocol organisers+" in section.headline
    assert "response space per_frame_std" in section.headline
    table = pd.read_csv(runs["score0"] / "scores.csv")
    one = table[(table["animal"] == "all") & (table["metric"] == "single_trial_correlation")]
    assert section.score == pytest.approx(one["value"].iloc[-1])
    assert {tile["label"] for tile in section.tiles} == {"train", "oracle"}
    assert len(section.panels) == 4
    assert all("; ceiling, as estimated: " in panel.note for panel in section.panels)
    ids = [
        element.attrib["id"]
        for picture in section.figures + section.panels
        for element in ElementTree.fromstring(str(picture.image)).iter()
        if "id" in element.attrib
    ]
    assert len(ids) == len(set(ids))
    assert len(section.tables[0].rows) == 6


def test_traces_are_means_over_repeats(runs):
    table = pd.read_csv(runs["score0"] / "traces.csv")
    assert set(table["which"]) == {"best", "median"}
    assert (table["low"] <= table["measured"]).all()
    assert table["frame"].min() == 10
    best = table[table["which"] == "best"].groupby("animal")["score"].first()
    neurons = pd.read_csv(runs["score0"] / "neurons.csv")
    expected = neurons[neurons["tier"] == "oracle"].groupby("animal")["single_trial_correlation"].max()
    np.testing.assert_allclose(best, expected, rtol=1e-6)


def test_a_fit_section(runs):
    rows = "step,epoch,loss,single_trial_correlation\n1,0,3.0,\n2,1,2.5,0.12\n"
    (runs["fit0"] / "metrics.csv").write_text(rows)
    section = section_of(runs["fit0"], "fit", scores={"a": 0.25, "b": 0.35}, score_options={"first_frame": 50})
    add_fit(section)
    assert section.score == pytest.approx(0.3)
    assert "first frame 50" in section.headline
    assert [panel.title for panel in section.panels] == ["Loss", "Single trial correlation"]
    assert [figure.title.split(":")[0] for figure in section.figures] == ["Receptive fields on the cortex"] * 2


def test_positions_are_those_of_the_readouts(runs):
    found = positions_of(runs["fit0"])
    encoder = load_fitted(runs["fit0"]).encoder
    for animal, (coordinates, positions) in found.items():
        assert coordinates.shape == positions.shape == (6, 2)
        np.testing.assert_allclose(positions, encoder.positions(animal).numpy())


def test_two_models_neuron_by_neuron(runs):
    sections = [section_of(runs[name], "score") for name in ("score0", "score1")]
    (picture,) = compare_scores(sections)
    assert picture.title == "score1 against score0"
    assert "of 24 scores of neurons are higher in score1" in picture.note


def test_a_page_of_fits_and_scores(runs, tmp_path):
    out = tmp_path / "report.html"
    folders = [runs["score0"], runs["score1"]]
    page = report(ReportConfig(runs=[str(folder) for folder in folders], out=str(out))).read_text()
    for words in (
        "score1 against score0",
        "Distribution over neurons",
        "best neuron",
        "organisers+: trial length statistics",
    ):
        assert words in page


def test_what_is_missing_is_said(runs, tmp_path):
    with pytest.raises(ValueError, match=r"has no scores\.csv; run `murine score` to its end"):
        add_score(section_of(tmp_path, "score"))
    (tmp_path / "protocol.json").write_text(json.dumps({"name": "x"}))
    section = section_of(tmp_path, "fit")
    add_fit(section)
    assert section.warnings == ["There are no learning curves: metrics.csv is absent or has no rows yet."]
