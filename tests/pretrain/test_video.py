"""Encoded videos: every frame is the right one, whatever container and codec, and nothing else is opened."""

import io
from types import ModuleType

import numpy as np
import pytest

from pretrain import video
from pretrain.video import MISSING, video_facts, video_frames

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
    from pretrain.video_pyav import runs_from_keyframes

    times, keys = np.array([3, 4, 12, 40, 69, 70, 95]), np.arange(0, 100, 10)
    assert list(runs_from_keyframes(times, keys)) == [(0, [3, 4, 12]), (40, [40]), (60, [69, 70]), (90, [95])]
    assert list(runs_from_keyframes(times[:2], keys)) == [(0, [3, 4])]


def test_a_frame_rate_need_not_be_whole(write_video, tmp_path):
    from fractions import Fraction

    facts = video_facts(write_video(tmp_path / "a.mp4", rate=Fraction(30000, 1001)))
    assert facts.frame_rate_hz == pytest.approx(29.97, abs=0.001)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "webm"])
def test_the_frame_rate_is_that_of_the_frames_whatever_the_file_states(decoder, tmp_path, suffix):
    from fractions import Fraction

    import av

    times_ms = np.cumsum([0, *([100, 33] * 10)])
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
    assert facts.frames == 21
    assert facts.frame_rate_hz == pytest.approx(20 / 1.33, rel=0.05)  # torchcodec counts the last frame too


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.webm", "a.avi"])
def test_a_frame_rate_that_times_are_rounded_from_is_exact(write_video, tmp_path, name):
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


def test_a_playlist_that_looks_like_a_video_is_not_followed(write_video, tmp_path):
    import av

    write_video(tmp_path / "secret.mp4")
    (tmp_path / "list.mp4").write_text(f"#EXTftypM3U\n#EXTM3U\n#EXTINF:10,\n{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n")
    with pytest.raises((ValueError, av.error.FFmpegError)):
        video_facts(tmp_path / "list.mp4")


def test_a_video_that_ends_early_is_said(write_video, tmp_path):
    whole = write_video(tmp_path / "a.mkv", frames=40)
    facts = video_facts(whole)
    cut = io.BytesIO(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"it gave \d+ frames of 40"):
        list(video_frames(cut, facts))


def test_without_a_decoder_one_line_says_what_to_install(write_video, tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4")
    monkeypatch.setattr(video.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="videos need PyAV or torchcodec") as error:
        video_facts(path)
    assert str(error.value) == MISSING
