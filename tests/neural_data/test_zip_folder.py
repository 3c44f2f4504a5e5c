"""Folders and zips of arrays: the same arrays whichever way they lie, and one line for each that is damaged."""

import pickle
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from neural_data.zip_folder import MAPPED_BYTES, ZipFolder, disk_folder, zip_members

KINDS = st.sampled_from([np.uint8, np.int64, np.float32, np.float64, ">f8", "U5"])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "x" / "data").mkdir(parents=True)
    return tmp_path / "x"


def opened(folder):
    """The folder as it is, in a zip, and in a compressed zip."""
    for name, method in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(folder.parent / f"{name}.zip", "w", method) as handle:
            for file in folder.rglob("*.npy"):
                handle.write(file, f"deep/x/{file.relative_to(folder)}")
    zips = [folder.parent / f"{name}.zip" for name in ("stored", "deflated")]
    return [disk_folder(folder, ("data",)), *(ZipFolder(path, "deep/x/", zip_members(path)) for path in zips)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(values=arrays(KINDS, array_shapes(min_side=0, max_dims=4, max_side=6)), fortran=st.booleans())
def test_any_array_any_way(folder, values, fortran):
    np.save(folder / "data" / "a.npy", np.asarray(values, order="F" if fortran else "C"))
    for found in opened(folder):
        np.testing.assert_array_equal(found.array("data/a.npy"), values)
        if values.size:
            np.testing.assert_array_equal(found.first_line("data/a.npy"), values[(0,) * (values.ndim - 1)])
        assert found.header("data/a.npy").shape == values.shape
        assert found.name == "x"


@pytest.mark.parametrize("order", ["C", "F"])
def test_large_arrays_are_mapped_not_read(folder, order):
    values = np.random.default_rng(0).standard_normal((300, 5, 400))
    assert values.nbytes > MAPPED_BYTES
    np.save(folder / "data" / "a.npy", np.asarray(values, order=order))
    for found in opened(folder):
        array = found.array("data/a.npy", scattered=True)
        np.testing.assert_array_equal(array, values)
        np.testing.assert_array_equal(found.first_line("data/a.npy"), values[0, 0])
        assert not array.flags.writeable
        mapped = not isinstance(found, ZipFolder) or not found.deflated
        assert array.flags.owndata is False
        assert (type(array.base).__name__ == "mmap") == mapped
        again = pickle.loads(pickle.dumps(found))
        np.testing.assert_array_equal(again.array("data/a.npy"), values)


def test_numbers_without_axes(folder):
    np.save(folder / "data" / "a.npy", np.float32(113.5))
    for found in opened(folder):
        assert found.array("data/a.npy") == np.float32(113.5)


def test_which_files_there_are(folder):
    for name in ("data/0.npy", "data/deep/er/1.npy", "data/._0.npy", "data/.hidden/2.npy", "else/3.npy"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, np.zeros(3))
    (folder / "data" / "notes.txt").write_text("x")
    (folder / "data" / "linked").symlink_to(folder / "else")
    assert sorted(disk_folder(folder, ("data", "meta")).files) == [
        "data/0.npy",
        "data/deep/er/1.npy",
        "data/linked/3.npy",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found a file that is no array"),
        (b"\x89PNG\r\n", "found a file that is no array"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': oops}\n", "found a damaged header"),
        (b"\x93NUMPY\x07\x00\x10\x00{'descr': oops}\n", "found a damaged header"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "found a damaged header"),
        (
            b"\x93NUMPY\x01\x00\x40\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (-2, 3)}".ljust(64),
            r"found shape \(-2, 3\), expected a shape without negative",
        ),
    ],
)
def test_files_that_are_no_arrays(folder, content, message):
    (folder / "data" / "a.npy").write_bytes(content)
    for found in opened(folder):
        with pytest.raises(ValueError, match=rf"{found.path}: data/a.npy: {message}") as error:
            found.array("data/a.npy")
        assert "\n" not in str(error.value)


def test_objects_and_records_are_refused(folder):
    np.save(folder / "data" / "a.npy", np.array([{}], object), allow_pickle=True)
    np.save(folder / "data" / "b.npy", np.zeros(2, [("x", float)]))
    for found in opened(folder):
        with pytest.raises(ValueError, match=r"a\.npy: found Python objects, expected numbers or text; objects could"):
            found.array("data/a.npy")
        with pytest.raises(ValueError, match=r"b\.npy: found \[\('x', '<f8'\)\], expected numbers"):
            found.first_line("data/b.npy")


@pytest.mark.parametrize("size", [(10, 10), (400, 400)])
def test_arrays_that_are_cut_off(folder, size):
    np.save(folder / "data" / "a.npy", np.zeros(size))
    whole = (folder / "data" / "a.npy").read_bytes()
    (folder / "data" / "a.npy").write_bytes(whole[:-1])
    for found in opened(folder):
        with pytest.raises(ValueError, match=rf"found {len(whole) - 1} bytes, expected {len(whole)} \(it was cut off"):
            found.array("data/a.npy")


def test_files_that_vanish(folder):
    np.save(folder / "data" / "a.npy", np.zeros((400, 400)))
    found = disk_folder(folder, ("data",))
    found.header("data/a.npy")
    (folder / "data" / "a.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"data/a\.npy: no such file"):
        found.array("data/a.npy")
    with pytest.raises(FileNotFoundError, match=r"data/b\.npy: no such file"):
        found.array("data/b.npy")


@pytest.mark.parametrize("name", ["../a.npy", "/etc/a.npy", "x/data/../../a.npy", "x\\..\\a.npy", "C:/a.npy"])
def test_members_that_lead_out_of_the_zip(tmp_path, name):
    member = zipfile.ZipInfo("placeholder")
    member.filename = name
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as handle:
        handle.writestr(member, b"x")
    with pytest.raises(ValueError, match=r"a\.zip: .*: found a path that leads out of the archive, expected"):
        zip_members(tmp_path / "a.zip")


def test_links_doubles_passwords_and_other_methods_are_refused(tmp_path):
    def refused(found):
        with pytest.raises(ValueError, match=f"found {found}"):
            zip_members(tmp_path / "a.zip")

    link = zipfile.ZipInfo("x/link.npy")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as handle:
        handle.writestr(link, b"/etc/passwd")
    refused("a link")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as handle:
        handle.writestr("x/a.npy", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            handle.writestr("x/a.npy", b"2")
    refused("a member that is there twice")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_LZMA) as handle:
        handle.writestr("x/a.npy", b"1")
    refused("a compression other than deflate")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as handle:
        handle.writestr("x/a.npy", b"1")
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag of a password, in the directory
    (tmp_path / "a.zip").write_bytes(data)
    refused("a member with a password")
    (tmp_path / "a.zip").write_bytes(data[:-30])
    refused("a damaged zip")


def test_damage_inside_a_zip_is_found(folder):
    np.save(folder / "data" / "a.npy", np.arange(500.0))
    _, _, deflated = opened(folder)
    archive = folder.parent / "deflated.zip"
    data = bytearray(archive.read_bytes())
    data[deflated._place("data/a.npy") + 300] ^= 0xFF
    archive.write_bytes(data)
    with pytest.raises(ValueError, match=r"data/a\.npy: found damaged data \(.*, expected what was put into the zip"):
        deflated.array("data/a.npy")
    data[:4] = b"oops"
    archive.write_bytes(data)
    with pytest.raises(ValueError, match="found no member where the zip says"):
        ZipFolder(archive, "deep/x/", zip_members(archive)).array("data/a.npy")


def test_a_member_never_becomes_larger_than_the_zip_promises(folder):
    """A bomb: 10 MB of zeros behind a directory that promises 4 kB."""
    archive = folder.parent / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as handle:
        handle.writestr("a.npy", bytes(10_000_000))
    data = archive.read_bytes()
    archive.write_bytes(data.replace(struct.pack("<I", 10_000_000), struct.pack("<I", 4096)))
    found = ZipFolder(archive, "", zip_members(archive))
    assert found.files == {"a.npy": 4096}
    assert len(found._inflated("a.npy", 4096)) == 4096
    with pytest.raises(ValueError, match="CRC"):
        found._inflated("a.npy")


def test_hidden_members_are_passed_over(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as handle:
        for name in ("x/a.npy", "__MACOSX/x/._a.npy", "x/.DS_Store", "x/data/"):
            handle.writestr(name, b"")
    assert list(zip_members(tmp_path / "a.zip")) == ["x/a.npy"]
