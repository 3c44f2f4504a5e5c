"""Images as shards hold them: resized and encoded, with their depth maps and signals.

What comes in: an `Item`, and the config's size and format. What goes out: `Encoded`: what a sample's files hold, or why
it has none.
"""

import io
import re
from dataclasses import dataclass, field, replace

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from pretrain.config import ShardsConfig
from pretrain.items import Item, SignalValues, StoredFile, StoredPixels

DEPTH = "depth.png"
SIGNAL = ".signal.npy"
# A batch is padded to its largest image, so that one image of an extreme shape would enlarge all those beside it.
LONGEST_ASPECT = 16


@dataclass(frozen=True)
class Encoded:
    """An image or clip, of this width and height, ready for a shard, or why it could not be read.

    `more` holds further files by extension; `channels` counts those of each signal.
    """

    extension: str = ""
    data: bytes = b""
    problem: str = ""
    size: tuple[int, int] = (0, 0)
    depth: bytes = b""
    more: dict[str, bytes] = field(default_factory=dict)
    channels: dict[str, int] = field(default_factory=dict)
    frame_rate_hz: float | None = None

    def files(self) -> dict[str, bytes]:
        """The sample's files by extension."""
        depth = {DEPTH: self.depth} if self.depth else {}
        return {self.extension: self.data} | depth | self.more


def encode(item: Item, config: ShardsConfig) -> Encoded:
    """One image, with its depth map where the config wants one, and its signals, or what is wrong with any of them.

    A clip likewise.
    """
    if item.clip is not None:
        from pretrain.encode_clip import encode_clip

        return encode_clip(item, config)
    try:
        encoded, original_size = encode_image(item.image, config)
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes; the image is listed
        return Encoded(problem=one_line(error))
    if wants_depth(config):
        try:
            encoded = replace(encoded, depth=encode_depth(item.depth, original_size, encoded.size))
        except Exception as error:
            return Encoded(problem=f"depth: {one_line(error)}")
    return with_signals(encoded, item.signals)


def wants_depth(config: ShardsConfig) -> bool:
    """Whether each image must come with a depth map."""
    return config.depth is not None or config.depth_column is not None


def with_signals(encoded: Encoded, signals: dict[str, SignalValues | None]) -> Encoded:
    """The same with its signals, each float32 in a `.npy` file; or what is wrong with one of them."""
    files, channels = {}, {}
    for name, signal in signals.items():
        try:
            if signal is None:
                raise ValueError("it has none, and others do")
            values = signal.read()
        except Exception as error:  # numpy's reader raises nearly anything on damaged bytes
            return Encoded(problem=f"signal {name}: {one_line(error)}")
        files[name + SIGNAL], channels[name] = npy_bytes(values), len(values)
    return replace(encoded, more=encoded.more | files, channels=channels) if files else encoded


def npy_bytes(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def one_line(error: Exception) -> str:
    """What was wrong, the same words in every run: an object's address in memory is left out."""
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image"
    what = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
    return re.sub(r" at 0x[0-9a-f]+", "", what).replace("\n", " ")


def encode_image(image: bytes | StoredFile | StoredPixels, config: ShardsConfig) -> tuple[Encoded, tuple[int, int]]:
    """Resize an image to the chosen short side and encode it; a sound JPEG that has that size already is kept as it is.

    Returns it with the width and height that it had, standing upright.
    """
    image, data = open_image(image)
    require_aspect(image.size)
    fits = min(image.size) == config.size and image.format == "JPEG" and image.mode in ("RGB", "L")
    stands = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    if fits and stands and config.format == "jpeg" and is_sound_jpeg(data):
        return Encoded("jpg", data, size=image.size), image.size
    image = eight_bit(upright(image))
    resized = resize_short_side(image, config.size)
    if config.format == "raw":
        return Encoded("npy", npy_bytes(np.asarray(resized.convert("RGB"))), size=resized.size), image.size
    buffer = io.BytesIO()
    resized.save(buffer, "JPEG", quality=config.quality)
    return Encoded("jpg", buffer.getvalue(), size=resized.size), image.size


def open_image(image: bytes | StoredFile | StoredPixels) -> tuple[Image.Image, bytes]:
    """An item's image for Pillow, not decoded yet, and the encoded bytes that it was made from, if it was."""
    data = image.read_bytes() if hasattr(image, "read_bytes") else image
    return (Image.open(io.BytesIO(data)), data) if isinstance(data, bytes) else (Image.fromarray(np.asarray(data)), b"")


def require_aspect(size: tuple[int, int]) -> None:
    """Raises ValueError where the long side of this width and height is too long for the short one."""
    if max(size) > LONGEST_ASPECT * min(size):
        raise ValueError(
            f"{size[0]} x {size[1]} pixels, whose long side is more than {LONGEST_ASPECT} times the short one"
        )


def is_sound_jpeg(data: bytes) -> bool:
    """Whether a JPEG is decoded without complaint by what reads shards, which forgives less than Pillow does."""
    try:
        simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError:
        return False
    return True


def upright(image: Image.Image) -> Image.Image:
    """The image, turned as its EXIF data says; it keeps its format, by which 16-bit grey is known."""
    turned = ImageOps.exif_transpose(image)
    turned.format = image.format
    return turned


def encode_depth(
    depth: bytes | StoredFile | StoredPixels | None, image_size: tuple[int, int], size: tuple[int, int]
) -> bytes:
    """A depth map as grey PNG of width and height `size`, by nearest neighbour: a mean of two depths is the depth of
    neither.

    Raises ValueError where there is none, or where its aspect is not that of its image, whose width and height are
    `image_size`.
    """
    if depth is None or (isinstance(depth, bytes) and not depth):
        raise ValueError("the image has none, neither by its name nor in its row")
    values = grey_values(upright(open_image(depth)[0]))
    height, width = values.shape
    # A depth map of lower resolution may have been rounded to whole pixels.
    if abs(width * image_size[1] - height * image_size[0]) > max(image_size):
        raise ValueError(f"{width} x {height} pixels are not the shape of the image, {image_size[0]} x {image_size[1]}")
    rows, columns = (
        (2 * np.arange(side) + 1) * length // (2 * side)
        for side, length in zip((size[1], size[0]), values.shape, strict=True)
    )
    buffer = io.BytesIO()
    Image.fromarray(values[rows[:, None], columns]).save(buffer, "PNG")
    return buffer.getvalue()


def grey_values(image: Image.Image) -> np.ndarray:
    """Depths uint8 or uint16 (height, width) of a grey image; raises ValueError where it has colours."""
    if is_sixteen_bit(image):
        return np.asarray(image).astype(np.uint16)
    channels = np.asarray(eight_bit(image).convert("RGB"))
    if (channels != channels[..., :1]).any():
        raise ValueError("it has colours; save depth as grey with 8 or 16 bits")
    return channels[..., 0]


def is_sixteen_bit(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey by its upper byte, which Pillow would clip at 255; raises ValueError where no range is known."""
    if is_sixteen_bit(image):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r} have no fixed range; save the image with 8 or 16 bits")
    return image


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """Antialiased bilinear resize that keeps the aspect; grey stays grey, everything else becomes RGB."""
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    return image if (width, height) == image.size else image.resize((width, height), Image.Resampling.BILINEAR)
