"""The `murine` command: exit codes, single lines of error, help, and what help does not import."""

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.config import PretrainConfig
from ray_jobs import help as help_text
from ray_jobs.cli import main
from ray_jobs.config import VERBS, compose
from ray_jobs.keys import all_keys
from tests.pretrain.web_server import serving

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def verbs(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A stand-in for the module whose functions the command calls."""
    module = types.ModuleType("ray_jobs.verbs")
    monkeypatch.setitem(sys.modules, "ray_jobs.verbs", module)
    return module


def raising(error: BaseException) -> Any:
    def run(config: Any) -> None:
        raise error

    return run


def outcome(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    output = capsys.readouterr()
    return code, output.out, output.err


def test_a_verb_gets_the_typed_config(verbs: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    received = []
    verbs.pretrain = received.append
    assert outcome(capsys, "pretrain", "epochs=3", "optimizer.lr=1") == (0, "", "")
    expected = PretrainConfig(epochs=3)
    expected.optimizer.lr = 1.0
    assert received == [expected]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("bad"), 2, ""),
        (KeyboardInterrupt("stopped"), 130, ""),
        (RuntimeError("gloo: Connection closed by peer"), 1, ""),
        (RuntimeError("bad"), 1, "murine pretrain: RuntimeError: bad"),
    ],
)
def test_of_several_processes_the_others_say_what_the_first_cannot_know(
    verbs: types.ModuleType,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    said: str,
) -> None:
    verbs.pretrain = raising(error)
    assert outcome(capsys, "pretrain")[2].startswith("murine pretrain: ")
    monkeypatch.setenv("LOCAL_RANK", "1")
    found, _, complaint = outcome(capsys, "pretrain")
    assert found == code
    assert complaint.startswith(said) if said else complaint == ""


def test_print_config_runs_nothing_and_can_be_fed_back(
    verbs: types.ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    verbs.pretrain = raising(AssertionError("must not run"))
    code, text, complaint = outcome(capsys, "pretrain", "--print-config", "epochs=3", "model_args.pool_size=6")
    assert (code, complaint) == (0, "")
    recipe = tmp_path / "printed.yaml"
    recipe.write_text(text, encoding="utf-8")
    assert compose("pretrain", [f"recipe={recipe}"]) == PretrainConfig(epochs=3, model_args={"pool_size": 6})
    assert outcome(capsys, "pretrain", f"recipe={recipe}", "--print-config")[1] == text


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["pretrain", "optimizer.lrr=1"], "murine pretrain: unknown key 'optimizer.lrr': did you mean 'optimizer.lr'?"),
        (["pretrain", "epochs=0"], "murine pretrain: key 'epochs': 0 is out of range, allowed is 1 or more epochs"),
        (["simulat"], "murine: unknown verb 'simulat': did you mean 'simulate'?"),
        (["simulat", "--help"], "murine: unknown verb 'simulat': did you mean 'simulate'?"),
        (
            ["pretrain", "--prnt-config"],
            "murine pretrain: unknown option '--prnt-config': did you mean '--print-config'?",
        ),
        (["pretrain", "--epochs=3"], "murine pretrain: '--epochs=3': keys have no dashes, write epochs=3"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, complaint = outcome(capsys, *words)
    assert (code, text) == (2, "")
    assert complaint.startswith(line)
    assert complaint.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("unknown model 'alexnet':\n  did you\n\n  mean x?"), 2, "unknown model 'alexnet': did you mean x?"),
        (FileNotFoundError(2, "No such file or directory", "a/b"), 2, "a/b: No such file or directory"),
        (FileNotFoundError("no shards in 'a'"), 2, "no shards in 'a'"),
        (FileExistsError("'a' holds another run"), 2, "'a' holds another run"),
        (ValueError(), 2, "ValueError"),
        (KeyError("b"), 1, "KeyError: 'b' (run again with --debug for the traceback)"),
        (RuntimeError("loss is\nnan"), 1, "RuntimeError: loss is nan (run again with --debug for the traceback)"),
        (
            OSError(28, "No space left on device", "a/b"),
            1,
            "no space left for a/b; free some, and the same command goes on",
        ),
        (OSError(122, "Disk quota exceeded"), 1, "no space left on the disk; free some, and the same command goes on"),
        (
            BrokenPipeError(32, "Broken pipe"),
            1,
            "BrokenPipeError: [Errno 32] Broken pipe (run again with --debug for the traceback)",
        ),
        (KeyboardInterrupt(), 130, "interrupted; the same command resumes"),
    ],
)
def test_what_a_run_raises_becomes_a_line_and_a_code(
    verbs: types.ModuleType, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    verbs.report = raising(error)
    assert outcome(capsys, "report") == (code, "", f"murine report: {line}\n")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -c 'import sys; from ray_jobs.cli import main; sys.exit(main())' --help | head -n 1"
    ended = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout.count("\n"), ended.stderr) == (0, 1, "")


def rows(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, str]:
    """Lines of the table that `murine models` prints, by the name of the model."""
    monkeypatch.setenv("COLUMNS", "1000")
    code, text, complaint = outcome(capsys, "models", *words)
    assert (code, complaint) == (0, "")
    return {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines()[1:]}


def test_models_says_what_a_network_is_and_costs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rows(capsys, monkeypatch, "single_stream") == {
        "single_stream": "64 11,246,632 44.8 M VISp ventral VISpor Nayebi 2023, "
        "https://doi.org/10.1371/journal.pcbi.1011506"
    }


@pytest.mark.parametrize("words", [["single_str*"], ["pattern=single_str*"]])
def test_models_takes_a_pattern_with_or_without_its_key(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(rows(capsys, monkeypatch, *words)) == [
        "single_stream", "single_stream_autoencoder", "single_stream_depth",
    ]  # fmt: skip


def test_models_lists_mouse_visions_names_where_asked_or_where_no_name_of_ours_matches(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(rows(capsys, monkeypatch, "resnet50*")) == ["resnet50"]
    beside = rows(capsys, monkeypatch, "resnet50*", "aliases=true")
    assert list(beside) == ["resnet50", "resnet50_barlow_twins", "resnet50_ir_64x64", "resnet50_ir_preavgpool_64x64"]
    assert beside["resnet50_ir_64x64"].startswith("64 23,508,032 ")
    assert list(rows(capsys, monkeypatch, "*_ir_preavgpool_64x64")) == [
        "resnet18_ir_preavgpool_64x64", "resnet50_ir_preavgpool_64x64",
    ]  # fmt: skip
    assert rows(capsys, monkeypatch, "timm/test_resnet")["timm/test_resnet"].startswith("160 469,688 ")


def test_models_lists_cores_with_the_shape_of_their_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rows(capsys, monkeypatch, "dwiseneuro") == {
        "dwiseneuro": "1 x 16 x 36 x 64 9,076,028 14,347.2 M Baikulov 2023, https://github.com/lRomul/sensorium"
    }
    assert list(rows(capsys, monkeypatch, "*3d")) == ["factorized3d", "full3d"]
    assert rows(capsys, monkeypatch, "backbone")["backbone"].startswith("3 x 64 x 64 any any ")


def test_models_of_which_no_name_matches_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, complaint = outcome(capsys, "models", "nonesuch*")
    assert (code, text) == (2, "")
    assert complaint.startswith("murine models: no model matches 'nonesuch*'; ours: alexnet, ")
    assert complaint.count("\n") == 1


@pytest.mark.parametrize(("error", "code"), [(ValueError("wrong"), 2), (RuntimeError("broken"), 1)])
def test_debug_gives_the_traceback(
    verbs: types.ModuleType, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    verbs.report = raising(error)
    returned, _, complaint = outcome(capsys, "report", "--debug")
    assert returned == code
    assert complaint.startswith("Traceback")
    assert "in run" in complaint
    assert str(error) in complaint.splitlines()[-1]
    assert "run again" not in complaint


@pytest.mark.parametrize("words", [["--help"], ["-h"], []])
def test_help_lists_the_verbs_a_line_each(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, text, complaint = outcome(capsys, *words)
    assert (code, complaint) == (0, "")
    lines = [line.strip() for line in text.splitlines()]
    for verb in VERBS.values():
        assert sum(line.startswith(f"{verb.name} ") and line.endswith(verb.summary) for line in lines) == 1


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, complaint = outcome(capsys, "--version")
    assert (code, complaint) == (0, "")
    assert text.startswith("murine ")


@pytest.mark.parametrize("width", [60, 120])
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "sweep"])
def test_help_of_a_verb_lists_every_key_with_its_notes(verb: str, width: int) -> None:
    text = help_text.verb_help(verb, width, colour=False)
    words = " ".join(text.split())
    assert "\x1b" not in text
    assert VERBS[verb].example in text
    for key in all_keys(VERBS[verb].config_class()):
        if key.is_group:
            continue
        row = next(line for line in text.splitlines() if line.startswith(f"{key.path} "))
        assert key.type_name.split()[0] in row
        if width == 60:  # there each meaning has lines of its own
            assert " ".join(key.meaning.split()) in words
            assert key.allowed in words


def test_a_narrow_terminal_gets_narrow_help_and_colour_only_if_asked() -> None:
    text = help_text.verb_help("pretrain", 60, colour=False)
    keys = text.split("Recipes")[0]
    assert max(map(len, keys.splitlines())) <= 60
    assert "\x1b[" in help_text.verb_help("pretrain", 120, colour=True)


def test_help_keeps_brackets_defaults_and_ranges() -> None:
    pretrain = " ".join(help_text.verb_help("pretrain", 160, colour=False).split())
    assert "optimizer.decay_epochs list of integers [120,160] 0 or more epochs" in pretrain
    assert "views.size integer 64 8 to 1024 pixels side of a view" in pretrain
    assert " alexnet_bn_ir " in pretrain
    assert "`murine recipes verb=pretrain` says what each one is" in pretrain
    assert "run folders of `pretrain`, `fit`, `predictivity` and `score`" in help_text.verb_help("report", 160, False)


def test_help_of_a_sweep_refers_to_the_other_verbs() -> None:
    text = help_text.verb_help("sweep", 120, colour=False)
    for stage in ("pretrain", "predictivity"):
        row = next(line for line in text.splitlines() if line.startswith(f"{stage}.*"))
        assert f"as in `murine {stage} --help`" in row
    assert "optimizer.momentum" not in text
    for own in ("grid", "cpus_per_trial", "gpus_per_trial", "max_concurrent", "out"):
        assert any(line.startswith(f"{own} ") for line in text.splitlines())


def test_a_recipe_is_described_by_its_first_comment(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("epochs: 3\n# what it is\n# more\n", encoding="utf-8")
    assert help_text.describe_recipe(path) == "what it is"
    path.write_text("epochs: 3\n", encoding="utf-8")
    assert help_text.describe_recipe(path) == ""


@pytest.mark.parametrize("words", [["--help"], ["pretrain", "--help"], ["sweep", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    heavy = ["torch", "pandas", "omegaconf", "ray", "sklearn", "matplotlib", "numpy"]
    script = (
        "import sys; from ray_jobs.cli import main\n"
        f"code = main({words!r})\n"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")
    assert "murine" in done.stdout


def test_recipes_are_described_by_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "six_stream_sim*"]) == 0
    shown = capsys.readouterr().out
    assert "six_stream_simclr" in shown
    assert "SimSiam" in shown
    assert "alexnet" not in shown
    assert main(["recipes", "six_stream_simclrr"]) == 2
    assert "did you mean 'six_stream_simclr'?" in capsys.readouterr().err


def test_views_of_a_recipe_are_drawn(tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "views.png"
    assert main(["views", "recipe=alexnet_bn_simclr", f"data.shards={tiny_shards}", f"out={out}"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_a_server_that_fails_ends_shards_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    from pretrain import storage

    monkeypatch.setattr(storage, "WAIT_S", 0.001)
    (tmp_path / "photos").mkdir()
    for number in range(8):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(b"")
    with serving(tmp_path) as server:
        server.handler.lasts = 4
        words = [f"source={server.url}/photos", f"out={tmp_path / 'out'}", "max_unreadable=1"]
        assert main(["shards", *words]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"murine shards: OSError: {server.url}/photos/")
    assert "cannot be read, tried 6 times: the server answers 503 Service Unavailable" in line


def test_shards_of_clips_say_what_they_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "walk.npy", np.zeros((10, 12, 16), np.uint8))
    np.save(tmp_path / "walk.behavior.npy", np.zeros((2, 10)))
    out = tmp_path / "shards"
    words = [f"source={tmp_path / 'walk.npy'}", f"out={out}", "size=12", "frame_rate_hz=30", "clip_frames=4"]
    assert main(["shards", *words]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}: 2 clips, behavior (2), no labels, 1 shards\n"
    assert "2 frames at the ends of the clips fill no clip of 4 frames" in captured.err
    assert main(["shards", f"verify={out}"]) == 0
    assert "every shard is as the index says" in capsys.readouterr().out
