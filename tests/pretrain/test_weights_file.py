"""Files of torch's: both formats, from any device, with NumPy's values in them, and none of them runs code."""

import os
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.weights_file import UnreadNumpyValue, read_weights


def written(path: Path, state: object, legacy: bool) -> Path:
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    return path


def renamed_globals(path: Path, old: bytes, new: bytes) -> None:
    """Replace a line of text in the pickle of either format."""
    if not zipfile.is_zipfile(path):
        path.write_bytes(path.read_bytes().replace(old, new))
        return
    with zipfile.ZipFile(path) as archive:
        members = [(item.filename, archive.read(item)) for item in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(name, data.replace(old, new) if name.endswith("data.pkl") else data)


@pytest.mark.parametrize("legacy", [True, False])
def test_tensors_and_plain_values_come_back(tmp_path, legacy):
    weights = OrderedDict({"a.weight": torch.randn(3, 4), "a.count": torch.tensor(7), "half": torch.randn(5).half()})
    state = {"state_dict": weights, "epoch": 199, "results": {"losses": [0.5, 1e300], "note": "fine"}}
    found = read_weights(written(tmp_path / "w.pt", state, legacy))
    assert {key: found[key] for key in ("epoch", "results")} == {key: state[key] for key in ("epoch", "results")}
    assert list(found["state_dict"]) == list(weights)
    for name, value in weights.items():
        assert torch.equal(found["state_dict"][name], value)
        assert found["state_dict"][name].dtype == value.dtype


@pytest.mark.parametrize("legacy", [True, False])
def test_weights_saved_on_a_graphics_processor_are_read_on_the_cpu(tmp_path, legacy):
    weights = torch.arange(6.0)
    path = written(tmp_path / "w.pt", {"a": weights}, legacy)
    renamed_globals(path, b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:3")
    assert b"cuda:3" in path.read_bytes()
    found = read_weights(path)["a"]
    assert found.device.type == "cpu"
    assert torch.equal(found, weights)


@pytest.mark.parametrize("numpy_1", [True, False])
@pytest.mark.parametrize("legacy", [True, False])
def test_numpy_values_are_passed_over(tmp_path, legacy, numpy_1):
    """As NumPy 1 and NumPy 2 pickle them."""
    results = {"losses": [np.float64(0.5), np.float32(2)], "best": np.int64(3), "curve": np.arange(3.0)}
    path = written(tmp_path / "w.pt", {"results": results, "weight": torch.ones(2), "epoch": 7}, legacy)
    if numpy_1:
        renamed_globals(path, b"numpy._core.multiarray", b"numpy.core.multiarray")
    found = read_weights(path)
    assert found["epoch"] == 7
    assert torch.equal(found["weight"], torch.ones(2))
    values = [*found["results"]["losses"], found["results"]["best"], found["results"]["curve"]]
    assert all(type(value) is UnreadNumpyValue for value in values)


class Reduced:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path, form):
    path, mark = tmp_path / "evil.pt", tmp_path / "ran"
    state = {"model_state_dict": Reduced(os.mkdir, str(mark))}
    if form == "plain":
        path.write_bytes(pickle.dumps(state))
    else:
        written(path, state, form == "legacy")
    with pytest.raises(ValueError, match="cannot be read as weights") as error:
        read_weights(path)
    assert "\n" not in str(error.value)
    assert not mark.exists()
    pickle.loads(pickle.dumps(state))
    assert mark.exists(), "the file would have run code, were it unpickled"


def test_what_could_run_is_named(tmp_path):
    for call, name in ((Reduced(eval, "1"), "eval"), (Reduced(os.system, ":"), f"{os.name}.system")):
        path = written(tmp_path / "evil.pt", {"a": call}, legacy=False)
        with pytest.raises(ValueError, match=f"it holds {re.escape(name)}, which could run code"):
            read_weights(path)


def test_a_forged_numpy_dtype_does_not_reach_numpy(tmp_path):
    """Unpickled, this array of objects without NumPy's own marks crashes the process when it is looked at."""

    class Forged:
        def __reduce__(self) -> tuple:
            return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)

    class Pointers:
        def __reduce__(self) -> tuple:
            make = np.arange(1).__reduce__()[0]
            return make, (np.ndarray, (0,), b"b"), (1, (1,), Forged(), False, b"\x41" * 8)

    path = written(tmp_path / "evil.pt", {"results": Pointers(), "weight": torch.ones(2)}, legacy=False)
    assert type(read_weights(path)["results"]) is UnreadNumpyValue


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=60), start=st.sampled_from([b"", b"\x80\x02", b"PK\x03\x04", b"\x80\x02}q\x00"]))
def test_any_bytes_are_refused_in_one_line(tmp_path_factory, data, start):
    path = tmp_path_factory.mktemp("bytes") / "w.pt"
    path.write_bytes(start + data)
    with pytest.raises(ValueError, match=r"cannot be read as weights: .") as error:
        read_weights(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_file_that_was_cut_short_is_refused(tmp_path, legacy):
    path = written(tmp_path / "w.pt", {"a": torch.randn(500)}, legacy)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match="cannot be read as weights"):
        read_weights(path)


def test_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_weights(Path("absent.pt"))
