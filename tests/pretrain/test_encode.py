"""Images as shards hold them: pixels and sizes, depth maps, and what is no image."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from pretrain.config import ShardsConfig
from pretrain.encode import LONGEST_ASPECT, encode
from pretrain.sources import Item
from tests.pretrain.made_images import depth_png, encoded, gradient

ORIENTATION = 0x0112


def stored(data: bytes | np.ndarray | Path, **keys: object) -> np.ndarray:
    """The pixels that a shard holds of an image."""
    found = encode(Item("image", data), ShardsConfig(**keys))
    assert not found.problem, found.problem
    if found.extension == "npy":
        return np.load(io.BytesIO(found.data), allow_pickle=False)
    return np.asarray(Image.open(io.BytesIO(found.data)))


@settings(deadline=None, max_examples=60)
@given(width=st.integers(1, 300), height=st.integers(1, 300), size=st.integers(8, 64), raw=st.booleans())
def test_the_short_side_and_the_aspect_of_any_size(width, height, size, raw):
    assume(max(width, height) <= LONGEST_ASPECT * min(width, height))
    pixels = stored(gradient(width, height), size=size, format="raw" if raw else "jpeg")
    assert min(pixels.shape[:2]) == size
    assert abs(pixels.shape[1] - size * width / min(width, height)) <= 0.5
    assert abs(pixels.shape[0] - size * height / min(width, height)) <= 0.5
    assert pixels.shape[2] == 3


def test_resizing_is_antialiased_bilinear():
    pixels = np.random.default_rng(0).integers(0, 256, (120, 90, 3), np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((30, 40), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(stored(pixels, size=30, format="raw"), expected)


def test_a_jpeg_that_fits_is_kept_byte_by_byte():
    config = ShardsConfig(size=40)
    for mode in ("RGB", "L"):
        data = encoded(gradient(40, 61), mode=mode, quality=33)
        assert encode(Item("x", data), config).data == data
    larger = encoded(gradient(41, 61), quality=33)
    assert encode(Item("x", larger), config).data != larger


def test_a_jpeg_is_only_kept_where_the_reader_takes_it():
    whole = encoded(gradient(61, 40))
    scan = whole.index(b"\xff\xda")
    for name, damaged in (
        ("bytes before the end", whole[:-2] + b"more" + whole[-2:]),
        ("bytes before a marker", whole[:scan] + b"\0\0\0" + whole[scan:]),
        ("a bit of its pixels", whole[: scan + 27] + bytes([whole[scan + 27] ^ 16]) + whole[scan + 28 :]),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            simplejpeg.decode_jpeg(damaged, colorspace="RGB")
        found = encode(Item("x", damaged), ShardsConfig(size=40))
        assert not found.problem, name
        assert simplejpeg.decode_jpeg(found.data, colorspace="RGB").shape == (40, 61, 3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_turned_as_exif_says(kind):
    upright = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60) * 27
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = 6
    Image.fromarray(np.rot90(upright).copy()).save(buffer, kind, exif=exif)
    found = stored(buffer.getvalue(), size=40, format="raw")
    np.testing.assert_array_equal(found, np.repeat((upright >> 8).astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, fits):
    upright = Image.fromarray(gradient(60, 40))
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    lying = upright.transpose(turns[orientation]) if orientation in turns else upright
    pixels = stored(encoded(lying, exif=exif, quality=95), size=40 if fits else 20)
    assert pixels.shape == ((40, 60, 3) if fits else (20, 30, 3))
    difference = np.abs(pixels.astype(float) - np.asarray(upright.resize(pixels.shape[1::-1])))
    assert difference.mean() < 3


def test_kinds_of_pixels_become_grey_or_colour():
    pixels = gradient(40, 40)
    colour, grey = pixels.astype(float), np.asarray(Image.fromarray(pixels).convert("L"), float)
    for kind, mode, expected in (
        ("PNG", "RGB", colour),
        ("PNG", "RGBA", colour),
        ("PNG", "L", grey),
        ("PNG", "LA", np.repeat(grey[..., None], 3, 2)),
        ("GIF", "P", colour),
        ("PNG", "P", colour),
        ("WEBP", "RGB", colour),
        ("TIFF", "CMYK", colour),
        ("BMP", "RGB", colour),
    ):
        found = stored(encoded(pixels, kind, mode), size=40)
        assert found.shape == expected.shape, (kind, mode)
        assert np.abs(found - expected).mean() < 12, (kind, mode)


def test_sixteen_bit_grey_keeps_its_tones():
    tones = np.linspace(0, 65535, 40 * 40).reshape(40, 40).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(tones).save(buffer, kind)
        assert np.abs(stored(buffer.getvalue(), size=40) - tones / 257.0).max() < 8


def test_pixels_without_a_range_are_listed_as_unreadable():
    buffer = io.BytesIO()
    Image.fromarray(np.linspace(0, 1, 1600, dtype=np.float32).reshape(40, 40)).save(buffer, "TIFF")
    assert "no fixed range" in encode(Item("x", buffer.getvalue()), ShardsConfig()).problem


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_damage_to_a_file_escapes_the_count_of_unreadable_images():
    rng, outcomes = random.Random(0), {"read": 0, "unreadable": 0}
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    whole = [encoded(gradient(20, 16), kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP")]
    whole += [encoded(gradient(20, 16), kind, mode) for kind, mode in (("GIF", "P"), ("BMP", "RGB"), ("PPM", "L"))]
    for data in whole:
        for _ in range(60):
            damaged = bytearray(data)
            for _ in range(rng.randint(1, 6)):
                damaged[rng.randrange(min(len(data), rng.choice((40, 200, 10**6))))] = rng.randrange(256)
            found = encode(Item("x", bytes(damaged)), ShardsConfig(size=16))
            outcomes["unreadable" if found.problem else "read"] += 1
            assert "\n" not in found.problem
    assert min(outcomes.values()) > 50


def test_a_truncated_jpeg_is_unreadable_also_where_it_would_be_kept():
    data = encoded(gradient(40, 40))
    for length in (len(data) // 2, len(data) - 30):
        assert "truncated" in encode(Item("x", data[:length]), ShardsConfig(size=40)).problem.lower()


def test_what_is_listed_is_the_same_in_every_run():
    depth = {"depth": b"no depth"}
    for item, problem in (
        (Item("x", b"no image"), "it is not an image"),
        (Item("x", encoded(gradient(9, 9)), **depth), "depth: it is not an image"),
    ):
        assert encode(item, ShardsConfig(size=9, depth="d" if item.depth else None)).problem == problem


@pytest.mark.parametrize("kind", ["jpeg", "raw"])
def test_an_image_of_an_extreme_shape_is_unreadable(kind):
    config = ShardsConfig(size=8, format=kind)
    for width, height in ((128, 8), (8, 128), (16, 1)):
        assert not encode(Item("x", encoded(gradient(width, height))), config).problem
    for width, height in ((129, 8), (8, 129), (1, 600)):
        line = f"{width} x {height} pixels, whose long side is more than 16 times the short one"
        assert encode(Item("x", encoded(gradient(width, height))), config).problem == line


def stored_depth(data: bytes, depth: bytes | np.ndarray | None, **keys: object) -> np.ndarray:
    """The depth map that a shard holds beside an image, of the image's height and width."""
    config = ShardsConfig(depth="a folder", **keys)
    found = encode(Item("image", data, depth=depth), config)
    assert not found.problem, found.problem
    image = (
        np.load(io.BytesIO(found.data))
        if keys.get("format") == "raw"
        else np.asarray(Image.open(io.BytesIO(found.data)))
    )
    values = np.asarray(Image.open(io.BytesIO(found.depth), formats=("PNG",)))
    assert values.shape == image.shape[:2]
    return values


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", ["jpeg", "raw"])
def test_depth_of_the_stored_size_is_kept_exactly(kind, dtype):
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (30, 40), dtype)
    # Once the JPEG is kept as it is, once the image is encoded anew.
    for image in (encoded(gradient(40, 30)), encoded(gradient(40, 30), "PNG"), gradient(40, 30)):
        for depth in (depth_png(values), values, depth_png(values, "TIFF")):
            found = stored_depth(image, depth, size=30, format=kind)
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, values)


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(8, 200), height=st.integers(8, 200), size=st.integers(8, 64),
    share=st.sampled_from([1, 1 / 2, 2, 1 / 3]),
)  # fmt: skip
def test_depth_takes_the_size_of_its_image_by_nearest_neighbour(width, height, size, share):
    assume(max(width, height) <= LONGEST_ASPECT * min(width, height))
    shape = (max(1, round(height * share)), max(1, round(width * share)))
    image = encoded(gradient(width, height))
    for axis, values in enumerate(np.indices(shape, np.uint16)):
        found = stored_depth(image, values, size=size)
        stored = found.shape[axis]
        # Where the centre of each stored pixel lies in the depth image, and the centre of the pixel it was taken from.
        wanted = (np.arange(stored) + 0.5) * shape[axis] / stored
        taken = found.astype(float) + 0.5
        assert np.abs(np.moveaxis(taken, axis, -1) - wanted).max() <= 0.5 + 1e-9


def test_grey_depth_is_read_from_any_mode_and_colours_are_refused():
    values = np.random.default_rng(0).integers(0, 256, (20, 20), np.uint8)
    image = encoded(gradient(20, 20))
    for mode in ("L", "RGB", "RGBA", "LA"):
        np.testing.assert_array_equal(stored_depth(image, depth_png(values, mode=mode), size=20), values)
    found = encode(Item("x", image, depth=encoded(gradient(20, 20), "PNG")), ShardsConfig(size=20, depth="d"))
    assert found.problem == "depth: it has colours; save depth as grey with 8 or 16 bits"


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_depth_lies_as_its_image_does_where_exif_turns_the_image(orientation):
    upright = Image.fromarray(gradient(60, 40))
    lying = {3: upright.rotate(180), 6: upright.rotate(90, expand=True)}.get(orientation, upright)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    values = np.asarray(upright)[..., 0]
    np.testing.assert_array_equal(stored_depth(encoded(lying, exif=exif), depth_png(values), size=40), values)


@pytest.mark.parametrize(
    ("depth", "line"),
    [
        (None, "the image has none, neither by its name nor in its row"),
        (b"", "the image has none, neither by its name nor in its row"),
        (b"no image", "depth: it is not an image"),
        (depth_png(np.zeros((40, 40), np.uint8))[:60], "depth: "),
        (depth_png(np.zeros((60, 40), np.uint8)), "40 x 60 pixels are not the shape of the image, 60 x 40"),
        (depth_png(np.zeros((20, 33), np.uint8)), "33 x 20 pixels are not the shape of the image, 60 x 40"),
        (depth_png(np.zeros((40, 60), np.float32), "TIFF"), "mode 'F' have no fixed range"),
        (Path("absent.png"), "depth: FileNotFoundError"),
    ],
)
def test_an_image_without_a_right_depth_map_is_unreadable(depth, line):
    found = encode(Item("x", encoded(gradient(60, 40)), depth=depth), ShardsConfig(size=40, depth="d"))
    assert line in found.problem
    assert not found.data
    assert not encode(Item("x", encoded(gradient(60, 40)), depth=depth), ShardsConfig(size=40)).problem
