"""Labelled arrays out of pickles: the layouts of old and new releases, and what belongs to none of them."""

import base64
import pickle
import zlib

import numpy as np
import pytest

from neural_data.pickle_writer import Call, Name, array, dtype, pickled
from neural_data.pickled_xarray import NAMES, labelled_array, plain_array
from neural_data.pickled_xarray_writer import data_array, index, multi_index, slots, variable
from neural_data.restricted_pickle import LARGE_BYTES, read_pickle
from tests.neural_data.old_pickles import NEUROPIXELS_DIMS, packaged, write_packaged

# A dictionary like mouse-vision's, pickled by xarray 2026.9 and pandas 3.1, whose text has an array class of its own.
NEW_RELEASES = (
    "c-oCt&2Jk;6!*8CI7Lw#P*g=ERD6U2mP4Q)wBUS+G+kk!l`3&)R%?6Ath-sSc4tjoh+Gayi8STXK@t2BNI8)zcO=f7xTWIA1rA8u"
    "%A1+zWD`3{SF(SZ@q2H7^WJaX%Y)Pp{|?5~vnD2aHemKj=-"
    "7h4<c2F=yI@wEJ}JN!vn}7Z+JX<6KB+d{fcasSiN}Jcm8IZWx28=V3nR8J=HnIdP}~xeM%+jm2_x}P&@@liSlc7gEfG$M&F{2DlE"
    "=Rh<#PGvGkDaO5o4mVIX@JOCz7djCYu`=%nR7!d6$H~<(M^#S%SZ~s$N-8EaeuG99V$AXOYdD--"
    "@z4T*j<A&47q9&%&{qek~AcoB6io1cHx5gS9N!tvE#RGfQrbtlsIaqwy@pd>MqNk<XzJw)C^zFM;M~79=NF!j0LQ<uT$P3Z?TxU*"
    "HM*N;EIm`{aeE@tC8YiW_+y2?`Yp&d3K%mwaWaH_B{hv?Va@ZpqiC6l<EISy?eU(5+Vj7RAl^;kZ^tEP<#hkaDdRU^*UdfHizo<m"
    "v5|0Jhd4^Coet&6+&+n*KFc_rbxmYl2?D^U~MW1bu^E>@MG-MLJC{(W`QCt(Q+y^BF}Nv3|Vh95wbS(T}MCJ~xoUIH;O{ZXJu+En"
    ">2!sdXL(CMcP(lbAt8>XC}jsor{=$X({L4!Qh#<mbhw_gQJ@<@LWl-}%0ToR_1Vmm{3hp=-0ChuI`Quf_C<ypzW&N)!JyO8o3$;-"
    "xO}%Y5)4778QdkQRYEaTg+;UY1{yx(qvrPm<BH@T@$EtiL+yDXEgOTg0;7I#gbs4?I$ZLb|=N_&K}@rejxvg1R0c_A%4++N);hdU"
    "o}mL(KAm>IrjJ^&Y9oYjFnMx(@l<&<r4**g0;FXZ}f*B|XRz{<hF<U>UE?Xwwyoo&PjV#i;M0I-"
    "7UpZM(B{+Yt&p0ivsH=wr3)AcT%)`NVpz6iGGx^rL*9lr;WU>ZZsKUDInpG&j((2v5UxB)XJ+D=1se)bTpejW`L7SiPffh+m~aEP"
    "k><{4|4D{FyW$d?0B04Ei$&x(wq5x`(F!h;Gqsx=Yl-cv@*xl=1F_2X_YykKCI3hda$4eM%qo@!NV1zpXxg+b8&S&~Lks-"
    "|h*1b@bcq_2a{V=h%!|PTlm)6=J!9PVijsh{CA7Dl(EAN=L<`I+|9`@3{V>q?Nsg`+sVkL8GF;gWgcN4|&eS*&}-"
    "g9p~qIrXZ1bD>4Klqc5*Uad-"
    "X|c@ky`j1rz!j)E?z^BavZX!_{W7>B=Uu`waRXuKlf3uU(4YgX50%i7FSW?|zzEco!zPI^E~`*yT%sD1bNStU9A=K(3NDPa~tJ4M"
    "hz2WnamwFnz;Nv|yp+ZuKigfKGI6fMKN-"
    "2YFbF?7KFn95Dc(#a2#<(r%64#NHCZ>(5sMnev97;yw~6mbl30`UUktB9{7P9k1Jd>gTVSVWvcd>3&V@jb-"
    "%5icQLM!bS}74ZYaYlznoKScZpv4l9I@d09N7T2>gTCpHYYDn3#ec8%S;eSaH$n*"
)


def read(tmp_path, value, **how):
    path = tmp_path / "value.pkl"
    path.write_bytes(value if isinstance(value, bytes) else pickled(value, **how))
    return read_pickle(path, NAMES)


def test_new_releases(tmp_path):
    packed = read(tmp_path, zlib.decompress(base64.b85decode("".join(NEW_RELEASES))))
    data = labelled_array(packed["neural_data"])
    assert data.dims == NEUROPIXELS_DIMS
    np.testing.assert_array_equal(data.values, np.arange(36.0).reshape(2, 3, 2, 3))
    np.testing.assert_array_equal(plain_array(packed["stimuli"]), np.arange(12).reshape(3, 2, 2))
    labels = {name: values.tolist() for name, (dims, values) in data.coordinates.items() if dims == ("units",)}
    assert labels.pop("run_pval_ns") == pytest.approx([0.1, 0.2, np.nan], nan_ok=True)
    assert labels == {
        "unit_id": [951, 952, 953],
        "specimen_id": [71, 71, 82],
        "visual_area": ["VISp", "VISl", "VISp"],
    }
    np.testing.assert_allclose(data.coordinates["splithalf_r_mean"][1], [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])


def test_the_installed_xarray(tmp_path):
    xarray, pandas = pytest.importorskip("xarray"), pytest.importorskip("pandas")
    values = np.random.default_rng(0).normal(size=(3, 4))
    units = pandas.MultiIndex.from_arrays([[1, 2, 3, 4], [5.0, np.nan, 7.0, 8.0]], names=["unit_id", "p"])
    made = xarray.DataArray(values, dims=["trials", "units"], coords={"trials": [1, 2, 3]})
    made = made.assign_coords(xarray.Coordinates.from_pandas_multiindex(units, "units"))
    data = labelled_array(read(tmp_path, pickle.dumps(made, 4)))
    np.testing.assert_array_equal(data.values, values)
    np.testing.assert_array_equal(data.coordinates["p"][1], [5.0, np.nan, 7.0, 8.0])


@pytest.mark.parametrize("codes", ["codes", "labels"])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("protocol", [3, 4])
def test_old_releases(tmp_path, codes, frozen, protocol):
    package = packaged(codes=codes, frozen=frozen)
    packed = read_pickle(write_packaged(tmp_path / "old.pkl", package, protocol=protocol), NAMES)
    data = labelled_array(packed["neural_data"])
    assert data.dims == NEUROPIXELS_DIMS
    np.testing.assert_array_equal(data.values, package["values"])
    np.testing.assert_array_equal(plain_array(packed["stimuli"]), package["stimuli"])
    for name, values in package["units"].items():
        dims, found = data.coordinates[name]
        assert dims == ("units",)
        assert found.tolist() == pytest.approx(values.tolist(), nan_ok=True)
    np.testing.assert_array_equal(data.coordinates["splithalf_r_std"][1], 0.1 * package["reliability"])
    assert "units" not in data.coordinates


@pytest.mark.parametrize("framed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_large_arrays_are_memory_maps_of_the_pickle(tmp_path, framed, order):
    values = np.asarray(np.random.default_rng(0).normal(size=(3, LARGE_BYTES // 16, 4)), order=order)
    found = plain_array(read(tmp_path, [b"x", array(values)], framed=framed)[1])
    assert isinstance(found, np.memmap)
    assert not found.flags.writeable
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    "values",
    [
        np.arange(6, dtype=">i2").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(["VISp", "VISrl"]),
        np.array([[True, False]]),
        np.array([["a", None], [3, 2.5]], object),
        np.zeros((0, 4), np.float32),
        np.float64(3.0)[None][0:1].reshape(()),
    ],
)
def test_arrays_of_many_kinds(tmp_path, values):
    found = plain_array(read(tmp_path, array(values)))
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numbers_of_numpy_inside_of_arrays(tmp_path, module):
    number = Call(module, "scalar", (dtype(np.dtype("<i8")), (7).to_bytes(8, "little")))
    # Protocol 2 has no bytes, and wrote them as text to encode.
    text = Call("_codecs", "encode", ((7).to_bytes(8, "little").decode("latin1"), "latin1"))
    older = Call(module, "scalar", (dtype(np.dtype("<i8")), text))
    made = array(np.array([None, None], object))
    made.state = (*made.state[:4], [number, older])
    assert plain_array(read(tmp_path, made)).tolist() == [7, 7]


def test_ranges_and_lists_of_pandas(tmp_path):
    parts = {"name": None, "start": 2, "stop": 8, "step": 2}
    base = "pandas.core.indexes.base"
    counted = Call(base, "_new_Index", (Name("pandas.core.indexes.range", "RangeIndex"), parts))
    frozen = Call("pandas.core.indexes.frozen", "FrozenList", ([counted],))
    columns = {"levels": frozen, "labels": [np.array([0, 2, -1], np.int8)], "sortorder": None, "names": ["n"]}
    made = Call(base, "_new_Index", (Name("pandas.core.indexes.multi", "MultiIndex"), columns))
    adapter = slots("indexing", "PandasIndexAdapter", array=made, _dtype=dtype(np.dtype("O")))
    coords = {"units": slots("variable", "IndexVariable", _dims=("units",), _data=adapter)}
    state = {"_coords": coords, "_variable": variable(("units",), np.arange(3.0))}
    data = labelled_array(read(tmp_path, slots("dataarray", "DataArray", **state)))
    np.testing.assert_array_equal(data.coordinates["n"][1], [2.0, 6.0, np.nan])


def with_state(changed, made=None):
    made = made or array(np.arange(3.0))
    made.state = changed(made.state)
    return made


DATETIMES = Call("numpy", "dtype", ("M8", 0, 1), (4, "<", None, None, None, -1, -1, 0, ({}, (b"ns", 1, 1, 1))))
RECORDS = Call("numpy", "dtype", ("V8", 0, 1), (3, "|", None, ("x",), {"x": (1, 0)}, 8, 1, 16))
WRONG_ARRAYS = {
    "too few bytes": (with_state(lambda s: (*s[:4], s[4][:-1])), "does not come with its bytes"),
    "too large": (with_state(lambda s: (s[0], (2**62, 2**62), *s[2:])), "does not come with its bytes"),
    "negative": (with_state(lambda s: (s[0], (-3,), *s[2:])), "shape"),
    "no shape": (with_state(lambda s: (s[0], None, *s[2:])), "shape"),
    "objects as bytes": (with_state(lambda s: (*s[:2], dtype(np.dtype("O")), *s[3:])), "items of an array"),
    "dates": (with_state(lambda s: (*s[:2], DATETIMES, *s[3:])), "dtype 'M8'"),
    "records": (with_state(lambda s: (*s[:2], RECORDS, *s[3:])), "dtype 'V8'"),
    "subarray": (
        with_state(lambda s: (*s[:2], with_state(lambda d: (3, "<", (1, 2), *d[3:]), dtype(np.dtype("f8"))), *s[3:])),
        "unknown state",
    ),
    "no state": (Call("numpy.core.multiarray", "_reconstruct", (Name("numpy", "ndarray"),)), "state of an array"),
    "another class": (
        Call("numpy.core.multiarray", "_reconstruct", (Name("pandas", "Index"),), (1, (0,), None, False, b"")),
        "class pandas.Index",
    ),
    "no array": ({"a": 1}, "found dict, expected an array"),
    "objects in it": (with_state(lambda s: (*s[:4], [b"x", {}]), array(np.array([1, 2], object))), "found bytes"),
}


@pytest.mark.parametrize("case", WRONG_ARRAYS)
def test_arrays_that_are_none(tmp_path, case):
    made, expected = WRONG_ARRAYS[case]
    value = read(tmp_path, made)
    with pytest.raises(ValueError, match=expected):
        plain_array(value)


def small(**changed):
    units = changed.pop("units", {"unit_id": np.array([1, 2])})
    labels = changed.pop("labels", {"trials": np.arange(3)})
    return data_array(("trials", "units"), np.zeros((3, 2)), labels, units, **changed)


def bad_codes():
    made = multi_index({"unit_id": np.array([1, 2])})
    made.args[1]["codes"] = [array(np.array([0, 2], np.int8))]
    coords = {
        "units": slots(
            "variable", "IndexVariable", _dims=("units",), _data=slots("indexing", "PandasIndexAdapter", array=made)
        )
    }
    return slots("dataarray", "DataArray", _coords=coords, _variable=variable(("units",), np.zeros(2)))


WRONG_LABELS = {
    "lengths": (small(labels={"trials": np.arange(4)}), "coordinate trials has shape"),
    "path": (small(extra={"../../x": (("trials",), np.zeros(3))}), "letters, digits and underscores"),
    "codes": (bad_codes(), "codes that point outside"),
    "dims": (slots("dataarray", "DataArray", _coords={}, _variable=variable(("a",), np.zeros((2, 2)))), "2 axes"),
    "names": (slots("dataarray", "DataArray", _coords={}, _variable=variable((1, 2), np.zeros((2, 2)))), "names"),
    "no coords": (slots("dataarray", "DataArray", _variable=variable(("a",), np.zeros(2))), "_coords"),
    "variable": (variable(("a",), np.zeros(2)), "expected an xarray.DataArray"),
    "array": (array(np.zeros(2)), "expected an xarray.DataArray"),
    "index": (
        slots(
            "dataarray",
            "DataArray",
            _coords={
                "a": slots(
                    "variable", "IndexVariable", _dims=("a",), _data=slots("indexing", "PandasIndexAdapter", array=3)
                )
            },
            _variable=variable(("a",), np.zeros(2)),
        ),
        "expected a pandas index",
    ),
    "range": (
        slots(
            "dataarray",
            "DataArray",
            _coords={
                "a": slots(
                    "variable",
                    "IndexVariable",
                    _dims=("a",),
                    _data=slots(
                        "indexing",
                        "PandasIndexAdapter",
                        array=Call(
                            "pandas.core.indexes.base",
                            "_new_Index",
                            (Name("pandas", "RangeIndex"), {"start": 0, "stop": 10**15, "step": 1}),
                        ),
                    ),
                )
            },
            _variable=variable(("a",), np.zeros(2)),
        ),
        "RangeIndex of",
    ),
}


@pytest.mark.parametrize("case", WRONG_LABELS)
def test_labelled_arrays_that_are_none(tmp_path, case):
    made, expected = WRONG_LABELS[case]
    value = read(tmp_path, made)
    with pytest.raises(ValueError, match=expected) as caught:
        labelled_array(value)
    assert "\n" not in str(caught.value)


def test_plain_index(tmp_path):
    made = slots("indexing", "PandasIndexAdapter", array=index(np.array(["b", "a"], object), "area"))
    coords = {"area": slots("variable", "IndexVariable", _dims=("area",), _data=made)}
    state = {"_coords": coords, "_variable": variable(("area",), np.arange(2.0))}
    data = labelled_array(read(tmp_path, slots("dataarray", "DataArray", **state)))
    assert data.coordinates["area"][1].tolist() == ["b", "a"]
