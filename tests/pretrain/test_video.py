"""Encoded videos: every frame is the right one, whatever container and codec, and nothing else is opened."""

import importlib.util
import io
import sys
from fractions import Fraction
from types import ModuleType

import numpy as np
import pytest

from pretrain import video
from pretrain.video import MISSING, NoDecoder, video_facts, video_frames

# The start of a video is enough for what is looked up before anything is decoded.
START = b"\0\0\0\x18ftypisom"

KINDS = {
    "h264.mp4": {},
    "open_gop.mp4": {"bf": "3", "x264-params": "open-gop=1:keyint=10"},
    "mpeg4.mp4": {"codec": "mpeg4", "bf": "2"},
    "h264.mkv": {},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "mjpeg.mov": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "h264.avi": {"bf": "2"},
    "grey.mkv": {"codec": "ffv1", "pixels": "gray"},
}


@pytest.fixture(params=["pyav", "torchcodec"])
def decoder(request, monkeypatch) -> ModuleType:
    pytest.importorskip("av" if request.param == "pyav" else "torchcodec")
    module = __import__(f"pretrain.video_{request.param}", fromlist=["find_facts"])
    monkeypatch.setattr(video, "decoder", lambda: module)
    return module


@pytest.mark.parametrize("name", KINDS)
def test_any_frame_is_reached_exactly(write_video, frame_number, decoder, tmp_path, name):
    if name == "h264.avi" and decoder.__name__.endswith("torchcodec"):
        pytest.skip("torchcodec does not decode AVI files whose codec reorders frames")
    path = write_video(tmp_path / name, frames=40, **KINDS[name])
    for file in (path, io.BytesIO(path.read_bytes())):
        facts = video_facts(file)
        assert (facts.frames, facts.frame_rate_hz, facts.height, facts.width) == (40, 25, 48, 64)
        frames = list(video_frames(file, facts))
        assert [frame_number(frame) for frame in frames] == list(range(40))
        assert frames[0].shape == ((48, 64) if name.startswith("grey") else (48, 64, 3))
        for numbers in ([0], range(9, 13), range(10, 40, 6), [11, 13, 15], [39], [0, 1, 9, 25, 26, 39], [5, 31, 32]):
            found = list(video_frames(file, facts, numbers))
            assert [frame_number(frame) for frame in found] == list(numbers)
            for frame, number in zip(found, numbers, strict=True):
                np.testing.assert_array_equal(frame, frames[number])


def test_groups_of_pictures_that_nothing_is_wanted_of_are_passed_over():
    pytest.importorskip("av")
    from pretrain.video_pyav import runs_from_keyframes

    times, keys = np.array([3, 4, 12, 40, 69, 70, 95]), np.arange(0, 100, 10)
    assert list(runs_from_keyframes(times, keys)) == [(0, [3, 4, 12]), (40, [40]), (60, [69, 70]), (90, [95])]
    assert list(runs_from_keyframes(times[:2], keys)) == [(0, [3, 4])]


@pytest.mark.parametrize("first", [5, 9, 10])
def test_frames_of_a_video_cut_by_an_edit_list_are_the_right_ones_or_none(
    write_video, frame_number, decoder, tmp_path, first
):
    """Of groups of ten frames, frame 9 is shown before a keyframe at 10 and needs the group before it."""
    av = pytest.importorskip("av")
    options = {"bf": "3", "x264-params": "open-gop=1:keyint=10:scenecut=0:b-adapt=0"}
    whole = write_video(tmp_path / "whole.mp4", frames=40, **options)
    with av.open(str(whole)) as given, av.open(str(tmp_path / "cut.mp4"), "w") as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.size:
                before = round(first / 25 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - before, packet.dts - before, stream
                made.mux(packet)
    if first == 9 and decoder.__name__.endswith("torchcodec"):
        with pytest.raises(ValueError, match=r"frame at 0\.04 s for the first, which is at 0 s.*; install PyAV"):
            video_facts(tmp_path / "cut.mp4")
        return
    facts = video_facts(tmp_path / "cut.mp4")
    assert facts.frame_rate_hz == 25
    found = [frame_number(frame) for frame in video_frames(tmp_path / "cut.mp4", facts)]
    assert found == list(range(first, 40))


def test_a_frame_rate_need_not_be_whole(write_video, decoder, tmp_path):
    facts = video_facts(write_video(tmp_path / "a.mp4", rate=Fraction(30000, 1001)))
    assert facts.frame_rate_hz == pytest.approx(29.97, abs=0.001)


TIMES_MS = {
    "uneven": np.cumsum([0, *([100, 33] * 10)]),
    "late": 500 + 40 * np.arange(20),
    "hole": np.concatenate([40 * np.arange(10), 2000 + 40 * np.arange(10)]),
}


@pytest.mark.parametrize("times_ms", TIMES_MS.values(), ids=TIMES_MS)
@pytest.mark.parametrize("suffix", ["mkv", "mp4", "webm"])
def test_the_frame_rate_is_that_of_the_frames_whatever_the_file_states(decoder, tmp_path, suffix, times_ms):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / f"a.{suffix}"), "w") as container:
        stream = container.add_stream("libvpx-vp9" if suffix == "webm" else "libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time_ms in times_ms:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), time_ms % 256, np.uint8), format="rgb24")
            frame.pts, frame.time_base = int(time_ms), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    facts = video_facts(tmp_path / f"a.{suffix}")
    assert facts.frames == len(times_ms)
    assert facts.frame_rate_hz == pytest.approx(1000 * (len(times_ms) - 1) / (times_ms[-1] - times_ms[0]))


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.webm", "a.avi"])
def test_a_frame_rate_that_times_are_rounded_from_is_exact(write_video, decoder, tmp_path, name):
    codec = {"webm": "libvpx-vp9", "avi": "mjpeg"}.get(name[2:], "libx264")
    for rate in (30, 60, 7):
        pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        assert video_facts(write_video(tmp_path / name, rate=rate, codec=codec, pixels=pixels)).frame_rate_hz == rate


def test_a_playlist_under_a_videos_name_is_not_followed(write_video, tmp_path):
    write_video(tmp_path / "secret.mp4")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n"
    for text in (playlist, f"ffconcat version 1.0\nfile '{tmp_path}/secret.mp4'\n"):
        (tmp_path / "list.mp4").write_text(text)
        with pytest.raises(ValueError, match="it is no MP4, QuickTime, Matroska, WebM or AVI file"):
            video_facts(tmp_path / "list.mp4")


def test_a_playlist_that_looks_like_a_video_is_not_followed(write_video, decoder, tmp_path):
    write_video(tmp_path / "secret.mp4")
    (tmp_path / "list.mp4").write_text(f"#EXTftypM3U\n#EXTM3U\n#EXTINF:10,\n{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n")
    with pytest.raises(ValueError, match=r"\A.*Invalid data found when processing input.*\Z"):
        video_facts(tmp_path / "list.mp4")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.mkv", r"\A(it gave \d+ frames of 40|torchcodec cannot decode it \(.*\))\Z"),
        ("a.avi", r"\A(it gave \d+ frames of 40|.*Invalid data found.*)\Z"),
    ],
)
def test_a_video_that_ends_early_is_said(write_video, decoder, tmp_path, name, said):
    codec = {"codec": "mjpeg", "pixels": "yuvj420p"} if name == "a.avi" else {}
    whole = write_video(tmp_path / name, frames=40, **codec)
    facts = video_facts(whole)
    cut = io.BytesIO(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ValueError, match=said):
        list(video_frames(cut, facts))


def test_without_a_decoder_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(video.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NoDecoder) as error:
        video_facts(io.BytesIO(START))
    assert str(error.value) == MISSING


@pytest.mark.parametrize(
    "loaded", ["raise RuntimeError('Could not load libtorchcodec.\\n' + 'a\\n' * 999)", "ffmpeg_major_version = None"]
)
def test_a_torchcodec_without_ffmpeg_is_tried_once_and_said_in_one_line(monkeypatch, tmp_path, loaded):
    (tmp_path / "torchcodec").mkdir()
    counted = f"open({str(tmp_path / 'tries')!r}, 'a').write('tried ')"
    (tmp_path / "torchcodec" / "__init__.py").write_text(f"{counted}\n{loaded}\n")
    (tmp_path / "torchcodec" / "decoders.py").write_text("")
    real = [name for name in sys.modules if name.split(".")[0] == "torchcodec"]
    for name in [*real, "torchcodec", "torchcodec.decoders"]:
        monkeypatch.setitem(sys.modules, name, None)  # so that what was there, or nothing, comes back at the end
        del sys.modules[name]
    monkeypatch.syspath_prepend(tmp_path)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(video.importlib.util, "find_spec", lambda name: None if name == "av" else find_spec(name))
    video.problem_of_torchcodec.cache_clear()
    said = r"\Atorchcodec cannot load FFmpeg's libraries \(.*\); install ffmpeg .* or PyAV: pip install .*\Z"
    try:
        for _ in range(2):
            with pytest.raises(NoDecoder, match=said):
                video_facts(io.BytesIO(START))
    finally:
        video.problem_of_torchcodec.cache_clear()
    assert (tmp_path / "tries").read_text() == "tried "
