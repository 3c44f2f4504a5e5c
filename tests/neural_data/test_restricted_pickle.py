"""Pickles read as data: what comes back, and that nothing that a stranger wrote is ever imported or called."""

import builtins
import copyreg
import io
import os
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_data.pickle_writer import Call, pickled
from neural_data.pickle_writer import Name as Named
from neural_data.pickled_xarray import NAMES, labelled_array, plain_array
from neural_data.restricted_pickle import LARGE_BYTES, BytesInFile, Name, Record, RefusedPickle, read_pickle
from tests.neural_data.old_pickles import packaged

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


class Evil:
    """Has a pickle call anything when it is loaded."""

    def __init__(self, called, *args):
        self.reduced = (called, args)

    def __reduce__(self):
        return self.reduced


def written(tmp_path, data, name="stranger.pkl"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def refused(path, allowed=NAMES):
    with pytest.raises(ValueError, match=r"\S") as caught:
        read_pickle(path, allowed)
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line
    assert len(line) < 400
    return line


@settings(deadline=None, max_examples=150)
@given(value=PLAIN, protocol=st.integers(3, 4))
def test_plain_data_comes_back(value, protocol, tmp_path_factory):
    path = written(tmp_path_factory.mktemp("plain"), pickle.dumps(value, protocol))
    assert read_pickle(path, ()) == value


def test_shared_parts_stay_shared_and_cycles_end(tmp_path):
    shared = [1]
    loop = [shared, shared]
    loop.append(loop)
    read = read_pickle(written(tmp_path, pickle.dumps(loop, 4)), ())
    assert read[0] is read[1]
    assert read[2] is read


@pytest.mark.parametrize("framed", [False, True])
def test_long_bytes_stay_in_the_file(tmp_path, framed):
    data = np.random.default_rng(0).bytes(LARGE_BYTES + 3)
    path = written(tmp_path, pickled({"short": b"abc", "long": data}, framed=framed))
    read = read_pickle(path, ())
    assert read["short"] == b"abc"
    found = read["long"]
    assert isinstance(found, BytesInFile)
    assert path.read_bytes()[found.start : found.start + found.size] == data


def test_an_object_is_a_record_of_what_would_have_been_called(tmp_path):
    value = Call("xarray.core.variable", "Variable", (), (None, {"_dims": ("x",)}), new=True)
    record = read_pickle(written(tmp_path, pickled([value, Named("numpy", "ndarray")])), NAMES)[0]
    assert isinstance(record, Record)
    assert record.name == "xarray.core.variable.Variable"
    assert record.state == (None, {"_dims": ("x",)})
    with pytest.raises(FileNotFoundError, match=r"absent\.pkl: no such file"):
        read_pickle(tmp_path / "absent.pkl", NAMES)


EVIL = [
    (os.system, "touch {}"),
    (subprocess.call, ["touch", "{}"]),
    (eval, "open('{}', 'w')"),
    (exec, "open('{}', 'w')"),
    (builtins.open, "{}", "w"),
    (builtins.__import__, "stranger_module"),
    (getattr, os, "system"),
    (np.load, "{}"),
    (np.memmap, "{}", "u1", "w+", 0, 3),
    (pickle.loads, b"cos\nsystem\n(S'touch {}'\ntR."),
    (io.open_code, "{}"),
    (copyreg._reconstructor, Evil, object, None),
]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("gadget", EVIL, ids=lambda gadget: gadget[0].__name__)
def test_calls_are_refused_by_name_and_not_made(tmp_path, monkeypatch, gadget, protocol):
    marker = tmp_path / "ran"
    (tmp_path / "stranger_module.py").write_text(f"open({str(marker)!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    called, *args = gadget
    args = [a.format(marker) if isinstance(a, str) else a for a in args]
    args = [[a.format(marker) for a in arg] if isinstance(arg, list) else arg for arg in args]
    try:
        data = pickle.dumps(Evil(called, *args), protocol)
    except TypeError:  # a module cannot be pickled: `os` as text is as good
        data = pickle.dumps(Evil(called, "os", "system"), protocol)
    line = refused(written(tmp_path, data))
    assert called.__name__ in line or "codecs encode" in line  # which is how old protocols write bytes
    assert not marker.exists()
    assert "stranger_module" not in sys.modules


@pytest.mark.parametrize(
    "name",
    [
        ("numpy.f2py", "compile"),
        ("numpy.testing._private.utils", "runstring"),
        ("numpy.core.multiarray", "fromfile"),
        ("xarray.core.dataarray", "DataArray.__init__.__globals__"),
        ("pandas.core.indexes.base", "Index.map"),
        ("pandas.io.pickle", "read_pickle"),
        ("codecs", "encode"),
        ("operator", "attrgetter"),
        ("functools", "partial"),
        ("builtins", "getattr"),
        ("posix", "system"),
        ("", ""),
    ],
)
def test_names_beside_the_allowed_ones_are_refused(tmp_path, name):
    for protocol in (2, 4):
        line = refused(written(tmp_path, pickled(Call(*name, ("x",)), protocol)))
        assert ".".join(name) in line
    line = refused(written(tmp_path, pickled(Named(*name))))
    assert "names" in line


def test_an_allowed_name_is_not_imported(tmp_path):
    path = written(tmp_path, pickled(Named("stranger_module", "thing")))
    assert read_pickle(path, {"stranger_module.thing"}) == Name("stranger_module.thing")
    assert "stranger_module" not in sys.modules


class WithIds(pickle.Pickler):
    def persistent_id(self, value):
        return "somewhere" if value == "stored" else None


def test_ways_around_names_are_refused(tmp_path):
    stream = io.BytesIO()
    WithIds(stream, 4).dump(["stored"])
    assert "BINPERSID" in refused(written(tmp_path, stream.getvalue()))
    # The registry of extensions would give out an object without its name.
    copyreg.add_extension("os", "system", 0x7FFF)
    try:
        data = pickle.PROTO + b"\x04" + pickle.EXT2 + struct.pack("<H", 0x7FFF) + b")R."
        assert "EXT2" in refused(written(tmp_path, data))
    finally:
        copyreg.remove_extension("os", "system", 0x7FFF)
    assert "INST 'os system'" in refused(written(tmp_path, b"(ios\nsystem\n."))
    assert "protocol 5" in refused(written(tmp_path, pickle.dumps([1], 5)))


@pytest.mark.parametrize(
    "body",
    [
        b"\x8c\x02hi)R.",  # calls a text
        b"\x8c\x02hi}b.",  # gives a text state
        b"}}b.",
        b"]}s.",
        b"}]u.",
        b"}(]K\x01u.",
        b"](K\x01K\x02u.",
        b"N.N" + b"(" * 3,
        b"0.",
        b"e.",
        b"h\x07.",
        b"\x85.",
        b"}((K\x01tK\x02u.",  # a tuple as a key
        b")N\x93.",
    ],
)
def test_nonsense_is_one_line(tmp_path, body):
    path = written(tmp_path, pickle.PROTO + b"\x04" + body)
    if body.startswith(b"N."):
        assert read_pickle(path, ()) is None
    else:
        refused(path)


def test_lengths_beyond_the_file_take_no_memory(tmp_path):
    for code in (pickle.BINBYTES8, pickle.BINUNICODE8):
        refused(written(tmp_path, pickle.PROTO + b"\x04" + code + struct.pack("<Q", 2**62) + b"x."))
    refused(written(tmp_path, pickle.PROTO + b"\x04" + pickle.LONG4 + struct.pack("<i", 2**31 - 1) + b"x."))
    refused(written(tmp_path, pickle.PROTO + b"\x04" + pickle.BINUNICODE + struct.pack("<I", LARGE_BYTES) + b"x."))


def test_deep_nesting_does_not_crash(tmp_path):
    deep = read_pickle(written(tmp_path, pickle.PROTO + b"\x04" + b"]" * 200_000 + b"a" * 199_999 + b"."), ())
    assert isinstance(deep, list)
    refused(written(tmp_path, pickle.PROTO + b"\x04)" + b"\x85" * 200_000 + b"b."))


SMALL = {name: packaged(repeats=2, images=2, bins=2)[name] for name in ("stimuli", "neural_data")}


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_damaged_files_are_told_in_one_line(tmp_path_factory, data):
    whole = bytearray(pickled(SMALL))
    where = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        del whole[where:]
    else:
        whole[where] = data.draw(st.integers(0, 255))
    path = written(tmp_path_factory.mktemp("damaged"), bytes(whole))
    lines = []
    try:
        read = read_pickle(path, NAMES)
        if isinstance(read, dict) and set(SMALL) <= set(read):
            labelled_array(read["neural_data"])
            plain_array(read["stimuli"])
    except ValueError as error:
        lines.append(str(error))
    assert not any("\n" in line for line in lines)


def test_a_name_that_holds_a_line_end_is_told_in_one_line(tmp_path):
    whole = pickle.PROTO + b"\x04\x8c\x08nu\nmpy.x\x8c\x04eval\x93."
    with pytest.raises(RefusedPickle, match=r"names nu\?mpy\.x\.eval, which is not among"):
        read_pickle(written(tmp_path, whole), NAMES)


def test_refusals_are_a_kind_of_their_own(tmp_path):
    with pytest.raises(RefusedPickle, match=r"os\.system|posix\.system"):
        read_pickle(written(tmp_path, pickle.dumps(Evil(os.system, "true"), 4)), NAMES)
