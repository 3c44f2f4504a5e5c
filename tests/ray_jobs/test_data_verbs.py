"""`murine data`: words, the question, a real download from a served copy of the folder, and what it says."""

import functools
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from neural_data.download import LOCK
from neural_data.sensorium_writer import write_sensorium_video
from pretrain.progress import progress
from ray_jobs.cli import main
from ray_jobs.config import DataConfig, compose
from ray_jobs.data_verbs import MEGABYTE, Megabytes
from ray_jobs.keys import ConfigError
from tests.neural_data.mice import VIDEO, video_mouse

ROOT = Path(__file__).resolve().parents[2]
SCENES = [f"natural_scene_templates/natural_scene_{number}.tiff" for number in range(118)]
SCAN = "dynamic29156-11-10-Video-8744edeac3b4d1ce16b680916b5267ce.zip"


SLOW_SCAN = "dynamic29228-2-10-Video-8744edeac3b4d1ce16b680916b5267ce.zip"


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; the slow scan stops after its first part until it `may_go_on`."""

    may_go_on = threading.Event()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        while piece := source.read(500_000):
            outputfile.write(piece)
            if SLOW_SCAN in self.path:
                self.may_go_on.wait(60)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a served folder with what stands for two scans, one slow, and for the natural scenes."""
    folder = tmp_path_factory.mktemp("mirror")
    (folder / SLOW_SCAN).write_bytes(b"slow" * 1_000_000)
    (folder / SCAN).write_bytes(b"zip" * 1000)
    for name in SCENES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def outcome(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["data", *words])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_words_become_a_typed_config():
    assert compose("data", ["fetch", "allen", "session_1", "out=here", "yes=true"]) == DataConfig(
        "fetch", ["allen", "session_1"], "here", True
    )
    assert compose("data", ["out=x", "info", "a/b"]) == DataConfig("info", ["a/b"], "x")
    assert compose("data", ["action=info", "a/b"]) == compose("data", ["info", "what=[a/b]"])
    assert compose("data", ["list"]) == DataConfig("list")
    with pytest.raises(ConfigError, match="key 'what' is given twice"):
        compose("data", ["info", "a", "what=[b]"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "say what to do: fetch, list, info, convert"),
        (
            ["fech", "allen"],
            "key 'action': 'fech' is not one of fetch, list, info, convert, prepare: did you mean 'fetch'?",
        ),
        (["fetch"], "fetch: say what, for example"),
        (["fetch", "alen"], "no source 'alen': did you mean 'allen'?"),
        (["fetch", "sensorium2023", "K"], "sensorium2023: nothing is called 'K' (there are A, B, C"),
        (["fetch", "allen", "calcium_packaged", "ot=x"], "unknown key 'ot': did you mean 'out'?"),
        (["list", "alen*"], "no data set matches 'alen*'"),
        (["info"], "info takes one path, given 0: `murine data info <path>`"),
        (["convert", "a", "b", "out=c"], "convert takes one path, given 2"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(words, line, capsys):
    code, text, complaint = outcome(capsys, *words)
    assert (code, text) == (2, "")
    assert complaint.startswith(f"murine data: {line}")
    assert complaint.count("\n") == 1


def test_help_shows_the_words(capsys):
    assert main(["data", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("murine data <list|fetch|info|convert|prepare> ... key=value ...\n")
    assert "murine data fetch sensorium2022 [<scan> ...]" in text


def test_list_has_sizes_and_licences(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    code, text, _ = outcome(capsys, "list")
    assert code == 0
    rows = {" ".join(line.split()[:2]): line for line in text.splitlines()}
    assert "32  80.5 GB  Allen Institute terms of use" in rows["allen brain_observatory_1.1"]
    assert "CC BY-NC-ND 4.0" in text
    code, text, _ = outcome(capsys, "list", "allen", "session_71*")
    assert [line.split()[1] for line in text.splitlines()[1:-1]] == ["session_715093703", "session_719161530"]


def test_fetch_brings_the_files_and_says_what_and_where(capsys, mirror, tmp_path):
    words = ("fetch", "allen", "natural_scenes", f"out={tmp_path / 'allen'}", f"mirror={mirror}")
    code, text, said = outcome(capsys, *words, "yes=true")
    assert (code, text.splitlines()) == (0, [str(tmp_path / "allen" / name) for name in SCENES])
    assert all((tmp_path / "allen" / name).read_text() == name for name in SCENES)
    assert "licence: Allen Institute terms of use, http://www.alleninstitute.org/legal/terms-use/" in said
    assert f"into: {tmp_path / 'allen'}, where " in said
    size = sum(map(len, SCENES)) / 1000
    assert f"files: 118, {size:.3g} kB; 118 are missing, {size:.3g} kB to come" in said
    code, again, said = outcome(capsys, *words)
    assert (code, again) == (0, text)
    assert f"118, {size:.3g} kB; 0 are missing, 0 B to come" in said


def test_a_scan_goes_to_the_folder_of_its_source(capsys, mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("MURINE_DATA", str(tmp_path))
    code, text, said = outcome(capsys, "fetch", "sensorium2023", "A", f"mirror={mirror}", "yes=true")
    assert (code, text) == (0, f"{tmp_path / 'sensorium2023' / SCAN}\n")
    assert "licence: CC BY-NC-ND 4.0" in said
    assert (tmp_path / "sensorium2023" / LOCK).read_text().startswith(f"{SCAN} sha256:")


def test_without_a_terminal_the_answer_must_be_given(capsys, mirror, tmp_path):
    code, text, said = outcome(capsys, "fetch", "sensorium2023", "A", f"mirror={mirror}", f"out={tmp_path / 'new'}")
    assert (code, text) == (2, "")
    assert said.endswith("murine data: fetch: 3 kB are to come and nobody can be asked; say yes=true\n")
    assert not (tmp_path / "new").exists()


def run_here(*words: str) -> list[str]:
    """The words that run `murine` in another process, from this source."""
    return [sys.executable, "-c", f"import sys; from ray_jobs.cli import main; sys.exit(main({list(words)!r}))"]


def test_an_interrupted_fetch_says_so_and_goes_on(capsys, mirror, tmp_path):
    words = ("fetch", "sensorium2023", "B", f"mirror={mirror}", f"out={tmp_path}", "yes=true")
    # A shell has its background jobs ignore SIGINT, tests among them, and what they start would.
    heeding = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        run_here("data", *words), cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heeding
    )
    part, deadline = tmp_path / f"{SLOW_SCAN}.part", time.monotonic() + 60
    while time.monotonic() < deadline and not (part.exists() and part.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    Handler.may_go_on.set()
    assert process.returncode == 130
    assert said.endswith("murine data: interrupted; the same command resumes\n")
    assert part.exists()
    assert outcome(capsys, *words)[:2] == (0, f"{tmp_path / SLOW_SCAN}\n")
    assert (tmp_path / SLOW_SCAN).read_bytes() == b"slow" * 1_000_000
    assert not part.exists()


@pytest.mark.parametrize(("answer", "comes"), [(b"y\n", True), (b"n\n", False), (b"\n", False), (b"\x04", False)])
def test_at_a_terminal_it_asks(mirror, tmp_path, answer, comes):
    words = ["data", "fetch", "sensorium2023", "A", f"mirror={mirror}", f"out={tmp_path / 'new'}"]
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    run = subprocess.run(run_here(*words), cwd=ROOT, stdin=theirs, capture_output=True, text=True)
    os.close(ours)
    os.close(theirs)
    assert run.returncode == 0, run.stderr
    assert "Download 3 kB? [y/n] (n): " in run.stderr
    assert (tmp_path / "new" / SCAN).exists() is comes
    assert (run.stdout == f"{tmp_path / 'new' / SCAN}\n") is comes
    assert ("nothing was downloaded" in run.stderr) is not comes


def test_what_the_source_does_not_have_is_one_line(capsys, mirror, tmp_path):
    code, text, said = outcome(capsys, "fetch", "allen", "experiment_501271265", f"mirror={mirror}", f"out={tmp_path}")
    assert (code, text) == (2, "")
    address = f"{mirror}/ophys_experiment_data/501271265.nwb"
    assert said == f"murine data: {address}: the server answers 404 File not found: it has no such file\n"


def test_bytes_are_shown_as_megabytes():
    with progress("any", 5) as meter:
        shown = Megabytes(meter)
        for count in (MEGABYTE // 2, MEGABYTE // 2, 3 * MEGABYTE + 1, -2 * MEGABYTE):
            shown.advance(count)
        assert meter.done == 2


def test_convert_needs_a_folder(capsys):
    code, _, said = outcome(capsys, "convert", "any.pkl")
    assert (code, said.count("\n")) == (2, 1)
    assert "convert: out is not set; name the folder" in said


def test_a_simulated_package_is_converted_by_the_commands_that_it_names(capsys, tmp_path):
    small = ("animals=2", "neurons_per_area=6", "stimuli=12", "repeats=4", "areas=[VISp]", "seed=3")
    code = main(["simulate", "format=packaged", *small, f"out={tmp_path / 'package'}"])
    printed = capsys.readouterr().out
    assert code == 0
    words = printed.split("`")[1].replace("<folder>", str(tmp_path / "open")).split()
    assert words[:3] == ["murine", "data", "convert"]
    assert outcome(capsys, *words[2:])[0] == 0
    code, found, _ = outcome(capsys, "info", str(tmp_path / "open"))
    assert code == 0
    assert "2 animals" in found
    assert "12 grey stimuli" in found


def test_info_says_what_is_in_a_recording(capsys, tiny_recording):
    code, text, _ = outcome(capsys, "info", str(tiny_recording))
    assert code == 0
    assert text.startswith("tiny: 2 animals (")
    assert "30 grey stimuli of 32 x 32 pixels" in text


def test_info_about_no_path_is_one_line(capsys, tmp_path):
    code, text, said = outcome(capsys, "info", str(tmp_path / "absent"))
    assert (code, text, said.count("\n")) == (2, "", 1)
    assert str(tmp_path / "absent") in said


def test_prepare_writes_each_recording_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recordings = tmp_path / "mice"
    for name in (VIDEO, VIDEO.replace("29515", "29516")):
        write_sensorium_video(video_mouse(), recordings / name)
    words = ["data", "prepare", str(recordings), f"out={tmp_path / 'prepared'}"]
    assert main(words) == 0
    written = capsys.readouterr().out.split()
    assert [Path(line).name for line in written] == sorted(path.name for path in recordings.iterdir())
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "prepared").rglob("*.bin")}
    assert main(words) == 0
    assert capsys.readouterr().out.split() == written
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "prepared").rglob("*.bin")} == times
    assert main(["data", "info", str(tmp_path / "prepared")]) == 0
    assert "12 x 16 pixels" in capsys.readouterr().out


def test_prepare_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "prepare", str(tmp_path)]) == 2
    assert "prepare: out is not set" in capsys.readouterr().err
    assert main(["data", "prepare", str(tmp_path / "nothing"), f"out={tmp_path}"]) == 2
    assert "no such file or folder" in capsys.readouterr().err
