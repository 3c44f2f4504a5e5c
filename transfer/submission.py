"""Submission files of the Sensorium competitions from predictions, and a look at files that are there.

What comes in: a `SubmissionConfig`. What goes out: of 2022 a csv per tier (`submission_2022.py`), of 2023 a parquet
file per tier (`submission_2023.py`) and the zip archives that were uploaded; every file is checked against the
recordings before it is done. Or, with `check`, one line on what a file holds, or an error with the first thing that is
wrong in it.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path

from neural_data.recording import Recording
from pretrain.progress import say
from transfer.fit_recordings import open_animals
from transfer.predict_config import SubmissionConfig
from transfer.prediction_folder import Predictions, open_predictions
from transfer.scored_animals import Scored, protocol_of, scored_animals
from transfer.submission_2022 import FILES as FILES_2022
from transfer.submission_2022 import ImageRow, check_2022, evaluate_2022, trial_ids, write_2022
from transfer.submission_2023 import ARCHIVES, TrialRow, check_2023, write_2023
from transfer.submission_2023 import FILES as FILES_2023
from transfer.unit_ids import unit_ids

VIDEO_PROTOCOL = "dwiseneuro_submission"
UPLOAD_BYTES = 5e9


def submission(config: SubmissionConfig) -> list[Path]:
    """Write the files, and return their paths.

    Raises:
        ValueError, FileNotFoundError: one line on what is wrong with the config, the predictions or the data.
    """
    if config.predictions is None:
        raise ValueError("predictions is not set; name the run folder of `murine predict`, or check=<file>")
    predictions = open_predictions(config.predictions)
    animals = scored_animals(config, predictions, protocol_of(config, predictions.dynamic, VIDEO_PROTOCOL))
    files = FILES_2023 if predictions.dynamic else FILES_2022
    tiers = tiers_of(config, predictions, animals, files)
    folder = Path(config.out).expanduser() if config.out else predictions.path / "submission"
    folder.mkdir(parents=True, exist_ok=True)
    write = write_videos if predictions.dynamic else write_images
    return write(config, folder, animals, tiers)


def tiers_of(
    config: SubmissionConfig, predictions: Predictions, animals: dict[str, Scored], files: dict[str, str]
) -> list[str]:
    """The competition's tiers that become files. Raises ValueError where one was not predicted, or none was."""
    predicted = {tier for scored in animals.values() for tier in scored.rows["tier"].unique()}
    if wrong := [tier for tier in config.tiers if tier not in files]:
        raise ValueError(f"tiers: {wrong[0]!r} is none of the competition's, {', '.join(files)}")
    if absent := [tier for tier in config.tiers if tier not in predicted]:
        raise ValueError(f"{predictions.path}: tier {absent[0]} was not predicted")
    tiers = config.tiers or [tier for tier in files if tier in predicted]
    if not tiers:
        raise ValueError(f"{predictions.path}: none of the tiers {', '.join(files)} was predicted")
    return tiers


def write_videos(config: SubmissionConfig, folder: Path, animals: dict[str, Scored], tiers: list[str]) -> list[Path]:
    """A parquet file per tier with the trials of all mice, and the archives of those that go together."""
    protocol = next(iter(animals.values())).protocol
    say(f"frames and response space of {protocol.name}: {protocol.options()}")
    paths = {tier: folder / FILES_2023[tier] for tier in tiers}
    for tier, path in paths.items():
        rows = (row for scored in animals.values() for row in video_rows(scored, tier))
        write_2023(path, rows, config.compression_level)
        say(check_2023(path, {scored.recording.name: scored.recording for scored in animals.values()}))
    archives = {folder / name: [paths[tier] for tier in of if tier in paths] for name, of in ARCHIVES.items()}
    return [*paths.values(), *(archived(path, files) for path, files in archives.items() if files and config.zip)]


def video_rows(scored: Scored, tier: str) -> Iterator[TrialRow]:
    """The rows of one mouse."""
    ids = unit_ids(scored.recording)
    of_tier = scored.rows[scored.rows["tier"] == tier]
    for row, start, stop in of_tier[["row", "start", "stop"]].itertuples(index=False):
        yield TrialRow(scored.recording.name, int(row), scored.predicted(int(row), slice(start, stop)), ids)


def archived(path: Path, files: list[Path]) -> Path:
    """A zip of files that are compressed already, written whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            archive.write(file, file.name)
    temporary.replace(path)
    if path.stat().st_size > UPLOAD_BYTES:
        say(f"{path}: has {path.stat().st_size / 1e9:.1f} GB, above the upload's 5 GB; raise compression_level")
    return path


def write_images(config: SubmissionConfig, folder: Path, animals: dict[str, Scored], tiers: list[str]) -> list[Path]:
    """A csv per tier of each mouse, in a folder of its own where there are several mice."""
    paths = []
    for name, scored in animals.items():
        own = folder / name if len(animals) > 1 else folder
        own.mkdir(exist_ok=True)
        for tier in (tier for tier in tiers if (scored.rows["tier"] == tier).any()):
            write_2022(own / FILES_2022[tier], image_rows(scored, tier))
            say(check_2022(own / FILES_2022[tier], scored.recording))
            paths.append(own / FILES_2022[tier])
    return paths


def image_rows(scored: Scored, tier: str) -> Iterator[ImageRow]:
    """The rows of one mouse."""
    ids = unit_ids(scored.recording)
    known = trial_ids(scored.recording)
    of_tier = scored.rows[scored.rows["tier"] == tier]
    for row in of_tier["row"].tolist():
        predicted = scored.predicted(row, slice(0, 1))[:, 0]
        yield ImageRow(known["trial"].iat[row], int(known["image"].iat[row]), predicted, ids)


def check(config: SubmissionConfig) -> list[str]:
    """Look at a file that is there: one line on what is in it, and with `truth` one per score.

    Raises:
        ValueError, FileNotFoundError: one line with the first thing that is wrong.
    """
    path = Path(config.check).expanduser()
    images = path.suffix == ".csv"
    recordings = known_recordings(config)
    if images and recordings and len(recordings) > 1:
        raise ValueError(f"{path}: is of one mouse; say which with animals=[...] ({', '.join(recordings)})")
    if images:
        lines = [check_2022(path, next(iter(recordings.values())) if recordings else None)]
    else:
        lines = [check_2023(path, recordings)]
    if config.truth is None:
        return lines
    if not images:
        raise ValueError("truth: ground truths are known of 2022 only; score predictions with `murine score`")
    scores = evaluate_2022(path, Path(config.truth).expanduser())
    return lines + [f"{name}: {value:.6f}" for name, value in scores.items()]


def known_recordings(config: SubmissionConfig) -> dict[str, Recording] | None:
    """The recordings that a checked file must be of, by folder name; None where none are named."""
    if config.recording is None and config.predictions is None:
        return None
    if config.recording is not None:
        paths = [config.recording]
    else:
        facts = open_predictions(config.predictions).facts["animals"].values()
        paths = list(dict.fromkeys(each["recording"] for each in facts))
    found = open_animals(paths, config.animals)
    return {animal.recording.name: animal.recording for animal in found.values()}
