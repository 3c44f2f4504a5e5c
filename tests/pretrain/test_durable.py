"""Durable files: whole or absent, never half written under their final name."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.durable import checksum_path, is_intact, remove_leftovers, write_atomically


class Broken(Exception):
    pass


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@settings(deadline=None, max_examples=30)
@given(parts=st.lists(st.binary(max_size=200), max_size=5))
def test_the_file_holds_what_was_written_and_its_digest_is_returned(tmp_path_factory, parts):
    path = tmp_path_factory.mktemp("durable") / "a.bin"
    digest = write_atomically(path, lambda file: [file.write(part) for part in parts], checksum=True)
    data = b"".join(parts)
    assert path.read_bytes() == data
    assert digest == hashlib.sha256(data).hexdigest()
    assert checksum_path(path).read_text() == f"{digest}  a.bin\n"
    assert is_intact(path)
    assert names(path.parent) == ["a.bin", "a.bin.sha256"]


def test_the_checksum_is_one_that_sha256sum_reads(tmp_path):
    write_atomically(tmp_path / "a.bin", lambda file: file.write(b"x" * 1000), checksum=True)
    checked = subprocess.run(["sha256sum", "--check", "a.bin.sha256"], cwd=tmp_path, capture_output=True, text=True)
    assert checked.stdout == "a.bin: OK\n"


def test_a_function_that_raises_leaves_nothing(tmp_path):
    def write(file) -> None:
        file.write(b"half of ")
        raise Broken

    with pytest.raises(Broken):
        write_atomically(tmp_path / "a.bin", write, checksum=True)
    assert names(tmp_path) == []


def test_a_function_that_raises_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "a.bin"
    write_atomically(path, lambda file: file.write(b"earlier"), checksum=True)
    with pytest.raises(Broken):
        write_atomically(path, lambda file: (_ for _ in ()).throw(Broken), checksum=True)
    assert path.read_bytes() == b"earlier"
    assert is_intact(path)


def test_the_final_name_appears_only_when_the_file_is_whole(tmp_path):
    path, seen = tmp_path / "a.bin", []

    def write(file) -> None:
        for _ in range(3):
            file.write(b"part")
            seen.append(path.exists())

    write_atomically(path, write)
    assert seen == [False, False, False]
    assert path.read_bytes() == b"part" * 3


def test_a_kill_while_writing_leaves_the_earlier_file_and_a_removable_rest(tmp_path):
    path = tmp_path / "a.bin"
    write_atomically(path, lambda file: file.write(b"earlier"), checksum=True)
    program = (
        "import os, signal, sys; from pathlib import Path; from pretrain.durable import write_atomically\n"
        "def write(file): file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(Path(sys.argv[1]), write, checksum=True)"
    )
    root = Path(__file__).resolve().parents[2]
    killed = subprocess.run([sys.executable, "-c", program, str(path)], env=os.environ | {"PYTHONPATH": str(root)})
    assert killed.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 3
    assert is_intact(path)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["a.bin", "a.bin.sha256"]
    assert path.read_bytes() == b"earlier"


@settings(deadline=None, max_examples=30)
@given(data=st.binary(min_size=1, max_size=300), place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_flipped_byte_and_any_cut_is_noticed(tmp_path_factory, data, place, flip):
    path = tmp_path_factory.mktemp("durable") / "a.bin"
    write_atomically(path, lambda file: file.write(data), checksum=True)
    changed = bytearray(data)
    changed[int(place * len(data))] ^= flip
    path.write_bytes(changed)
    assert not is_intact(path)
    path.write_bytes(data[: int(place * len(data))])
    assert not is_intact(path)


def test_a_file_without_a_checksum_is_not_intact(tmp_path):
    write_atomically(tmp_path / "a.bin", lambda file: file.write(b"x"))
    assert not is_intact(tmp_path / "a.bin")
