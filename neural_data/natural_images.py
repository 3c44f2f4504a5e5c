"""Natural image patches made on the spot: crops of photographs, and dead-leaves pictures.

Comes in: how many images, their side in pixels, a seed or generator. Goes out: uint8 (count, size, size, 3),
RGB.

Photographs: the two that come with scikit-learn (china.jpg, flower.jpg; 427 x 640 pixels each), cropped at
random. Dead leaves: discs that occlude one another, radii from a power law r^-3, the model whose pictures
share the scale invariance and the near 1/f^2 power spectrum of natural images (Ruderman, Vision Research
37:3385, 1997; Lee, Mumford and Huang, Int. J. Computer Vision 41:35, 2001). Leaf colours are pixels of the
photographs. Which leaf lies in front of which is known, so dead leaves also come with true depth maps.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np

LABELS = ("china", "flower", "dead leaves")
DEAD_LEAVES_LABEL = LABELS.index("dead leaves")
SPLITS = ("train", "test")

TRAIN_SHARE = 0.75  # of a photograph's width; 480 of 640 pixels, a border between blocks of the JPEG

SMALLEST_LEAF = 1.5  # radius in pixels; smaller leaves would be single pixels
# Expected number of leaves over a pixel: a share exp(-5) = 0.7 % is left bare and keeps the colour behind all leaves.
LEAVES_PER_PIXEL = 5.0
FARTHEST = 255  # depth where no leaf is; that of the foremost leaf is 0
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
LARGEST_PICTURE = 1024  # pixels; a larger one would only cost memory

IMAGES_PER_BLOCK = 256  # made at a time by image_samples: 7 MB at 96 pixels


def photograph_patches(
    count: int, size: int, rng: np.random.Generator, split: str = "train"
) -> tuple[np.ndarray, np.ndarray]:
    """Random crops of two photographs: random photograph, position, scale and left-right flip.

    A crop's side is drawn, uniformly in its logarithm, between `size` and the width of the test part (160
    pixels), so that both splits have the same scales; crops are shrunk with antialiasing. A `size` above 160
    is enlarged, hence blurred. `train` crops lie in the left 3/4 of a photograph, `test` crops in the right
    1/4: they share no pixel.

    Returns uint8 (count, size, size, 3) and int64 labels (count,): 0 china, 1 flower.
    """
    from PIL import Image

    _check(count, size, split)
    parts = [Image.fromarray(_split_part(photograph, split)) for photograph in _photographs()]
    largest = min(min(_split_part(photograph, "test").shape[:2]) for photograph in _photographs())
    side = np.exp(rng.uniform(np.log(min(size, largest)), np.log(largest), count))
    labels = rng.integers(len(parts), size=count)
    room = np.array([part.size for part in parts], dtype=float)[labels] - side[:, None]
    left_top = rng.uniform(size=(count, 2)) * room
    flipped = rng.uniform(size=count) < 0.5
    patches = np.empty((count, size, size, 3), dtype=np.uint8)
    for i, label in enumerate(labels):
        box = (*left_top[i], *(left_top[i] + side[i]))
        patch = np.asarray(parts[label].resize((size, size), Image.Resampling.BILINEAR, box=box))
        patches[i] = patch[:, ::-1] if flipped[i] else patch
    return patches, labels


def photograph_part(number: int, split: str) -> np.ndarray:
    """All pixels of a photograph that belong to a split, uint8 (427, 480 or 160, 3); `number` 0 china, 1 flower."""
    _check(0, 1, split)
    return _split_part(_photographs()[number], split)


def grey(image: np.ndarray) -> np.ndarray:
    """Luma of RGB pixels: uint8 (..., 3) to uint8 (...)."""
    return np.round(image @ LUMA).astype(np.uint8)


def dead_leaves(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Dead-leaves images, radii between 1.5 pixels and `size` pixels.

    For speed, whole pictures of about as many pixels as the images have together are drawn, and each image is
    a crop at a random position of one of them, flipped at random: some images share leaves with others of the
    same call.

    Returns uint8 (count, size, size, 3).
    """
    return dead_leaves_with_depth(count, size, rng)[0]


def dead_leaves_with_depth(count: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The images of `dead_leaves`, and how far away what each pixel shows is.

    Depth is the place of a leaf among all leaves of the whole picture, from 0, in front, to 255, behind all; leaves
    that are many to one step share it. Brightness and size of a leaf tell nothing about it, only what hides what.

    Returns uint8 (count, size, size, 3) and uint8 (count, size, size).
    """
    _check(count, size, "train")
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    depths = np.empty((count, size, size), dtype=np.uint8)
    largest = max(LARGEST_PICTURE, 2 * size)
    per_picture = (largest // size) ** 2
    for first in range(0, count, per_picture):
        in_block = min(per_picture, count - first)
        # Twice the size at least, so that two crops of one picture differ.
        side = min(largest, max(2, int(np.ceil(np.sqrt(in_block)))) * size)
        picture, depth = _dead_leaves_picture(side, float(size), rng)
        corners = rng.integers(0, side - size + 1, size=(in_block, 2))
        flipped = rng.uniform(size=in_block) < 0.5
        for i, (top, left) in enumerate(corners):
            rows, columns = slice(top, top + size), slice(left, left + size)
            step = -1 if flipped[i] else 1
            images[first + i] = picture[rows, columns][:, ::step]
            depths[first + i] = depth[rows, columns][:, ::step]
    return images, depths


def image_samples(count: int, size: int, seed: int, split: str = "train") -> Iterator[tuple[str, np.ndarray, int]]:
    """A mixture in random order, one half photographs and one half dead leaves, made in blocks of 256.

    Yields (key without dots, uint8 (size, size, 3), label), label 0 china, 1 flower, 2 dead leaves. The same
    (count, size, seed, split) gives the same samples.
    """
    _check(count, size, split)
    for first in range(0, count, IMAGES_PER_BLOCK):
        rng = np.random.default_rng([seed, SPLITS.index(split), first])
        in_block = min(IMAGES_PER_BLOCK, count - first)
        of_photographs = (in_block + 1) // 2
        patches, photograph_labels = photograph_patches(of_photographs, size, rng, split)
        leaves = dead_leaves(in_block - of_photographs, size, rng)
        images = np.concatenate([patches, leaves])
        labels = np.concatenate([photograph_labels, np.full(len(leaves), DEAD_LEAVES_LABEL)])
        for place, i in enumerate(rng.permutation(in_block)):
            yield f"{split}{first + place:08d}", images[i], int(labels[i])


def depth_samples(
    count: int, size: int, seed: int, split: str = "train"
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Dead leaves with their depth, made in blocks of 256.

    Yields (key without dots, uint8 (size, size, 3), depth uint8 (size, size)). The same (count, size, seed, split)
    gives the same samples.
    """
    _check(count, size, split)
    for first in range(0, count, IMAGES_PER_BLOCK):
        rng = np.random.default_rng([seed, SPLITS.index(split), first])
        images, depths = dead_leaves_with_depth(min(IMAGES_PER_BLOCK, count - first), size, rng)
        for place, (image, depth) in enumerate(zip(images, depths, strict=True)):
            yield f"{split}{first + place:08d}", image, depth


def _check(count: int, size: int, split: str) -> None:
    if count < 0 or size < 1:
        raise ValueError(f"count must be at least 0 and size at least 1 pixel, found {count} and {size}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, found {split!r}")


@cache
def _photographs() -> tuple[np.ndarray, ...]:
    """uint8 (427, 640, 3) each, in the order of the labels."""
    from sklearn.datasets import load_sample_image

    return load_sample_image("china.jpg"), load_sample_image("flower.jpg")


def _split_part(photograph: np.ndarray, split: str) -> np.ndarray:
    """The pixels that belong to a split. It is cut out before any resizing, whose filter would reach across
    the border."""
    border = int(photograph.shape[1] * TRAIN_SHARE)
    return np.ascontiguousarray(photograph[:, :border] if split == "train" else photograph[:, border:])


def _dead_leaves_picture(side: int, largest: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One picture, uint8 (side, side, 3), painted from the hindmost leaf to the foremost, and its depth, uint8."""
    from PIL import Image, ImageDraw

    radius, centre, colours = _draw_leaves(side, largest, rng)
    bare = len(radius)
    # Numbers of leaves are painted, not colours, so that colour and depth of a pixel are those of one leaf.
    numbers = Image.new("I", (side, side), bare)
    draw = ImageDraw.Draw(numbers)
    boxes = np.round(np.hstack([centre - radius[:, None], centre + radius[:, None] - 1])).astype(int).tolist()
    for number, box in enumerate(boxes):
        draw.ellipse(box, fill=number)
    before = np.append(np.arange(bare)[::-1], bare)  # how many leaves lie in front of each, and of the bare ground
    depth = np.round(before * FARTHEST / max(bare, 1)).astype(np.uint8)
    seen = np.asarray(numbers)
    return colours[seen], depth[seen]


def _draw_leaves(side: int, largest: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Radii (leaves,) and centres (leaves, 2; x, y) in pixels from the hindmost leaf to the foremost, and uint8 colours
    (leaves + 1, 3), the last one that of the bare ground."""
    smallest = min(SMALLEST_LEAF, largest / 2)
    # Centres also lie outside of the picture, as far as a leaf can reach into it.
    field = side + 2 * largest
    spread = smallest**-2 - largest**-2
    mean_area = np.pi * 2 * np.log(largest / smallest) / spread
    leaves = rng.poisson(LEAVES_PER_PIXEL * field**2 / mean_area)
    radius = (smallest**-2 - rng.uniform(size=leaves) * spread) ** -0.5  # inverse of the power law's distribution
    centre = rng.uniform(-largest, side + largest, size=(leaves, 2))
    visible = np.all((centre + radius[:, None] > 0) & (centre - radius[:, None] < side), axis=1)
    radius, centre = radius[visible], centre[visible]
    palette = np.concatenate([photograph.reshape(-1, 3) for photograph in _photographs()])
    return radius, centre, palette[rng.integers(len(palette), size=len(radius) + 1)]
