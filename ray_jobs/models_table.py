"""The table of all models in `docs/models.md`: what each is, costs and sees, and where it is from.

What comes in: names of backbones and of cores of encoding models. What goes out: a row of Markdown for each. Parameters
and multiply-adds are counted, receptive fields and causality are found by trying (`pretrain.models.receptive_field`).
"""

import fnmatch
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pretrain.models import ALIASES, create_model, list_models, model_info
from pretrain.models.backbone_core import run_to
from pretrain.models.cores import CORES, CoreInfo, list_cores
from pretrain.models.multiply_adds import multiply_adds, multiply_adds_of
from pretrain.models.receptive_field import is_causal, receptive_field

COLUMNS = (
    "model", "parameters", "multiply-adds", "input", "sees in space", "sees in time", "causal", "source",
    "published weights",
)  # fmt: skip
NUMBERS = 2  # the columns of numbers, after the name
# It has no size of its own.
ANY_BACKBONE = "backbone"
# Clips are long enough for what a frame sees, or to tell that it sees all of them.
LONGEST_CLIP = 32
# Convolved through the Fourier transform where there are more frames and the precision is single.
RECURRENT, RECURRENT_CLIP = "gru_*", 12
TRIES = 4  # of backbones, whose units are rectified
NOTHING = "-"
HEADER = """# Models

Every backbone and every core of an encoding model. `murine models table=docs/models.md` writes this file in some
minutes; `murine models [pattern]` prints names, sizes and layers.

Input is the published one: channels x pixels, or channels x frames x height x width. Multiply-adds are those of one
such input. What a model sees is what one place in the middle of its output depends on, rows x columns of pixels, and
frames; of a backbone, of the first and the last of its layers for fits that have maps. Causal is that frames of the
output stay what they are when later frames of the input change. Of mouse-vision's published weights, the number of
names under which the network is known there is given (`aliases=true` lists them).
"""


def write_table(path: str | Path, names: Sequence[str] | None = None) -> None:
    """Write the file with a row for each of `names`, by default of all models."""
    names = [*list_models(), *list_cores()] if names is None else names
    aligned = [" --- "] + [" ---: "] * NUMBERS + [" --- "] * (len(COLUMNS) - NUMBERS - 1)
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'|'.join(aligned)}|", *map(row, names)]
    Path(path).write_text(HEADER + "\n" + "\n".join(lines) + "\n")


def row(name: str) -> str:
    """The line of one model."""
    cells = of_core(CORES[name]) if name in CORES else of_backbone(name)
    return f"| `{name}` | {' | '.join(cells)} |"


def of_backbone(name: str) -> tuple[str, ...]:
    """What follows the name."""
    info = model_info(name)
    torch.manual_seed(0)
    model = create_model(name)
    shape = (1, 3, info.input_size, info.input_size)
    layers = layers_with_maps(model.eval(), info.fit_layers, torch.zeros(shape))
    space = " to ".join(dict.fromkeys(seen_by(model, layer, shape) for layer in (layers[0], layers[-1])))
    names = sum(alias.model == name for alias in ALIASES.values())
    size = f"3 x {info.input_size} x {info.input_size}"
    adds = millions(multiply_adds(model, info.input_size))
    read = f"mouse-vision's ({names})" if names else NOTHING
    return f"{count(model):,}", adds, size, space, NOTHING, NOTHING, info.paper, read


def seen_by(model: nn.Module, layer: str, shape: tuple[int, ...]) -> str:
    """Pixels that a place of a layer sees."""
    field = receptive_field(model, [shape], lambda made, images: run_to(made, layer, images), TRIES)
    return f"{in_space(field.rows, field.columns, shape)} (`{layer}`)"


def of_core(info: CoreInfo) -> tuple[str, ...]:
    """What follows the name."""
    size = " x ".join(map(str, info.input))
    if info.name == ANY_BACKBONE:
        return *[NOTHING] * 2, size, "as its layer", "as its input", "yes, also inflated", info.paper, "the backbone's"
    torch.manual_seed(0)
    core = info.build()
    adds = millions(multiply_adds_of(core, *info.stimulus_shapes()))
    recurrent = fnmatch.fnmatch(info.name, RECURRENT)
    frames = min(RECURRENT_CLIP if recurrent else LONGEST_CLIP, info.input[1]) if info.video else None
    shapes = info.stimulus_shapes(frames)
    field = receptive_field(core, shapes, dtype=torch.float64 if recurrent else torch.float32)
    causal = is_causal(core, shapes, stride_in_time(core, info)) if info.video else None
    return (
        f"{count(core):,}",
        adds,
        size,
        in_space(field.rows, field.columns, shapes[0]),
        in_time(field.frames, frames, causal) if info.video else NOTHING,
        ("yes" if causal else "no") if info.video else NOTHING,
        info.paper,
        info.weights or NOTHING,
    )


def layers_with_maps(model: nn.Module, layers: Sequence[str], images: Tensor) -> list[str]:
    """Those layers that give maps of more than one place."""
    with torch.no_grad():
        found = {layer: run_to(model, layer, images) for layer in layers}
    return [layer for layer, maps in found.items() if maps.ndim == 4 and min(maps.shape[2:]) > 1]


def stride_in_time(core: nn.Module, info: CoreInfo) -> int:
    """Frames of the input from one of the output to the next."""
    _, frames, height, width = info.input
    once, twice = (core.output_shape(times * frames, height, width)[1] for times in (1, 2))
    return frames // (twice - once)


def in_space(rows: tuple[int, int], columns: tuple[int, int], shape: tuple[int, ...]) -> str:
    """Pixels, or that there are no others."""
    if (rows, columns) == ((0, shape[-2] - 1), (0, shape[-1] - 1)):
        return "all"
    return " x ".join(str(last - first + 1) for first, last in (rows, columns))


def in_time(frames: tuple[int, int], length: int, causal: bool) -> str:
    """Frames, or that there are no others, or none earlier."""
    first, last = frames
    if first == 0:
        return "all before" if causal else "all" if last == length - 1 else f"all before, {last - length // 2} after"
    return f"{last - first + 1} frames"


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def millions(multiply_adds: int) -> str:
    return f"{multiply_adds / 1e6:,.1f} M"
