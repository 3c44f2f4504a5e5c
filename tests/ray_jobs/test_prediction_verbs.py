"""`murine predict`, `score` and `submission` in turn, as commands."""

from pathlib import Path

import pytest

from ray_jobs.cli import DONE, MISTAKE, main
from tests.transfer.fitted_runs import DWISENEURO, WINDOW, fitted_run, simulated_videos


def test_from_a_fit_to_checked_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mice = simulated_videos(tmp_path / "mice", animals=1, lost_frames=0.0)
    run = fitted_run(tmp_path / "run", mice, DWISENEURO, "dwiseneuro", WINDOW)
    predicted, scores, files = (tmp_path / name for name in ("predicted", "scores", "files"))
    assert main(["predict", f"runs=[{run}]", f"out={predicted}", "accelerator=cpu"]) == DONE
    assert capsys.readouterr().out.strip() == str(predicted)
    assert main(["score", f"predictions={predicted}", "first_frame=10", f"out={scores}"]) == DONE
    out = capsys.readouterr().out
    for text in (
        "Scores by the protocol organisers+",
        "response_space per_frame_std",
        "oracle",
        "single trial",
        str(scores),
    ):
        assert text in out
    assert main(["submission", f"predictions={predicted}", f"out={files}", "first_frame=10"]) == DONE
    paths = capsys.readouterr().out.split()
    assert [Path(path).name for path in paths][-1] == "predictions_main.zip"
    assert main(["submission", f"check={paths[0]}", f"recording={mice}"]) == DONE
    assert "1 mice, 6 trials, 39 frames of each, 6 neurons" in capsys.readouterr().out
    assert main(["submission", f"check={paths[-1]}"]) == MISTAKE
    assert "is no parquet file" in capsys.readouterr().err
