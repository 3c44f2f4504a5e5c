"""A folder is whole or absent, and nothing that is there is overwritten."""

from pathlib import Path

import pytest

from neural_data.whole_folder import whole_folder


def test_what_was_written_is_there_at_the_end(tmp_path):
    folder = tmp_path / "deep" / "er"
    with whole_folder(folder) as unfinished:
        (unfinished / "a.txt").write_text("a")
        assert not folder.exists()
    assert [path.name for path in folder.parent.iterdir()] == ["er"]
    assert (folder / "a.txt").read_text() == "a"


def test_nothing_is_left_of_what_failed(tmp_path):
    def stop(folder: Path) -> None:
        with whole_folder(folder) as unfinished:
            (unfinished / "a.txt").write_text("a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_taken_and_no_other(tmp_path):
    (tmp_path / "empty").mkdir()
    with whole_folder(tmp_path / "empty") as unfinished:
        (unfinished / "a.txt").write_text("a")
    for taken in ("empty", "empty/a.txt"):
        with (
            pytest.raises(ValueError, match="exists already; name a new or an empty folder"),
            whole_folder(tmp_path / taken),
        ):
            pass
