"""A file appears when it is whole, and not before; what is there is never touched."""

import pytest

from neural_data.whole_file import whole_file


def test_it_appears_at_the_end(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with whole_file(path) as unfinished:
        unfinished.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]


def fail(path):
    with whole_file(path) as unfinished:
        unfinished.write_text("half")
        raise OSError("the disk is full")


def test_it_vanishes_where_writing_fails(tmp_path):
    with pytest.raises(OSError, match="the disk is full"):
        fail(tmp_path / "a.txt")
    assert not list(tmp_path.iterdir())


def test_what_is_there_stays(tmp_path):
    (tmp_path / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"a\.txt: exists already; name a new file"):
        fail(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "mine"
