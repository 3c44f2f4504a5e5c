"""Weights of V1T as its authors publish them, under our names.

What comes in: `ckpt/model_state.pt` as read, or the state dict in it, and `args.yaml` beside it. What goes out: the
same tensors by the names of a whole model of ours (`core`, `readouts.<animal>`, `shifters.<animal>`), and the arguments
that build its core. Keys and settings are those of https://github.com/bryanlimy/V1T."""

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pretrain.models.v1t import most_square
from pretrain.published_names import OurWeights

CORE, CROPPER = "core.", "core.image_cropper."
# Patterns of published names below `core.`, and ours; layers of the patch projection differ with the patch mode.
IN_CORE = (
    (r"patch_embedding\.cls_token", r"patch_embedding.class_token"),
    (r"patch_embedding\.pos_embedding", r"patch_embedding.positions"),
    (r"transformer\.blocks\.(\d+)\.mha\.layer_norm\.(\w+)", r"blocks.\1.attention.norm.\2"),
    (r"transformer\.blocks\.(\d+)\.mha\.to_qkv\.(\w+)", r"blocks.\1.attention.to_qkv.\2"),
    (r"transformer\.blocks\.(\d+)\.mha\.projection\.0\.(\w+)", r"blocks.\1.attention.projection.\2"),
    (r"transformer\.blocks\.(\d+)\.mha\.scale", r"blocks.\1.attention.scale"),
    (r"transformer\.blocks\.(\d+)\.mlp\.model\.(\d)\.(\w+)", r"blocks.\1.mlp.\2.\3"),
    (r"transformer\.blocks\.(\d+)\.b-mlp\.models\.([^.]+)\.0\.(\w+)", r"blocks.\1.behavior.networks.\2.0.\3"),
    (r"transformer\.blocks\.(\d+)\.b-mlp\.models\.([^.]+)\.3\.(\w+)", r"blocks.\1.behavior.networks.\2.2.\3"),
)
AROUND_CORE = (
    (r"image_cropper\.image_shifter\.([^.]+)\.mlp\.(\d)\.(\w+)", CROPPER + r"shifters.\1.\2.\3"),
    (r"core_shifter\.([^.]+)\.(mlp\.\d\.\w+)", r"shifters.\1.\2"),
    (r"readouts\.([^.]+)\.features", r"readouts.\1._features"),
    (r"readouts\.([^.]+)\.(_mu|sigma|bias|source_grid|mu_transform\.\d\.\w+)", r"readouts.\1.\2"),
)
# What the published modules keep as buffers and ours know: weights of regularisers, the grid of the crop, constants.
CONSTANT = re.compile(r"(.+\.)?(reg_scale|keep_prop|max_value|mask|max_shift)|elu1\.one|image_cropper\.grid")
PROJECTION = re.compile(r"patch_embedding\.projection\.(\d)\.(\w+)")
SCALE = re.compile(r"transformer\.blocks\.\d+\.mha\.scale")


def from_published(state: Mapping[str, Any]) -> OurWeights:
    """All weights of a published model by our names: `core.*`, `readouts.<animal>.*`, `shifters.<animal>.*`.

    Args:
        state: `ckpt/model_state.pt` as read, or its `model`.

    Raises:
        ValueError: a name that V1T does not have, or a scale of attention that is not the one its width gives.
    """
    model = dict(weights_of(state))
    core = {name.removeprefix(CORE): value for name, value in model.items() if name.startswith(CORE)}
    if not core:
        raise ValueError(
            f"no key of V1T's state dict starts with {CORE!r}; found {', '.join(list(model)[:4]) or 'none'}"
        )
    named = OurWeights()
    of_core = core_from_published(core)
    for name, value in of_core.items():
        named.put(CORE + name, value, *(CORE + source for source in of_core.sources[name]))
    for name, value in model.items():
        if not name.startswith(CORE) and not CONSTANT.fullmatch(name):
            named.put(renamed(name, AROUND_CORE), value, name)
    return named


def core_from_published(core: Mapping[str, Tensor]) -> OurWeights:
    """The weights of a published core (names below `core.`) by the names of our `V1T`; raises as `from_published`."""
    layers = projection_layers(core)
    named = OurWeights()
    for name, value in core.items():
        if CONSTANT.fullmatch(name) or is_plain_scale(name, value, core):
            continue
        found = PROJECTION.fullmatch(name)
        named.put(f"patch_embedding.{layers[found[1]]}.{found[2]}" if found else renamed(name, IN_CORE), value, name)
    return named


def published_arguments(args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of our `V1T` for weights that were trained with the settings of `args.yaml`.

    They ask for what published weights need: crops of the nearest pixels, and the layout of tokens of the published
    code where it is another than the true one. Settings that older files lack are those of that time.

    Raises:
        ValueError: the core is not V1T's transformer, or a setting is missing.
    """
    if args.get("core", "vit") != "vit":
        raise ValueError(f"args.yaml: core is {args['core']!r}; only 'vit' is V1T's transformer")
    try:
        channels, height, width = as_tuple(args["input_shape"])
        crop = float(args["center_crop"])
        resized = args.get("resize_image", 1) == 1 and args.get("ds_name", "sensorium") != "franke2022"
        image_size = (36, 64) if resized else (int(height * crop), int(width * crop))
        patch_size, stride = int(args["patch_size"]), int(args.get("patch_stride", 1))
        rows, columns = ((side - patch_size) // stride + 1 for side in image_size)
        return {
            "in_channels": channels,
            "image_size": image_size,
            "patch_mode": args.get("patch_mode", 0),
            "patch_size": patch_size,
            "patch_stride": stride,
            **{name: args[name] for name in ("emb_dim", "num_blocks", "num_heads", "mlp_dim", "behavior_mode")},
            "shift_mode": args["shift_mode"],
            "center_crop": crop,
            "sampling": "nearest",
            "use_lsa": args.get("use_lsa", False),
            "use_bias": not args.get("disable_bias", False),
            "patch_dropout": args["p_dropout"],
            "dropout": args["t_dropout"],
            "drop_path": args.get("drop_path", 0.0),
            "square_grid": most_square(rows * columns) != (rows, columns),
            "l1_weight": args["core_reg_scale"],
        }
    except KeyError as error:
        raise ValueError(f"args.yaml of V1T has no {error.args[0]!r}; is it the file beside ckpt/?") from error


def published_animals(state: Mapping[str, Any]) -> list[str]:
    """The animals that a published model has readouts for, in its order."""
    found = (re.match(r"readouts\.([^.]+)\.", name) for name, _ in weights_of(state))
    return list(dict.fromkeys(match[1] for match in found if match))


def weights_of(state: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a checkpoint or a state dict, without what `torch.compile` puts before names."""
    model = state["model"] if isinstance(state.get("model"), Mapping) else state
    for name, value in model.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"V1T's state dict has {type(value).__name__} at {name!r}, expected a tensor")
        yield name.removeprefix("_orig_mod."), value


def renamed(name: str, patterns: tuple[tuple[str, str], ...]) -> str:
    for published, ours in patterns:
        if found := re.fullmatch(published, name):
            return found.expand(ours)
    raise ValueError(f"V1T's published models have no {name!r}; is it another model's state dict?")


def projection_layers(core: Mapping[str, Tensor]) -> dict[str, str]:
    """Which of our layers the numbers in `patch_embedding.projection.<number>` are; they tell the patch mode."""
    numbers = {found[1] for name in core if (found := PROJECTION.fullmatch(name))}
    known = (
        {"0": "projection"},
        {"2": "projection"},
        {"3": "norm", "4": "projection"},
        {"2": "norm", "3": "projection", "4": "projection_norm"},
    )
    for layers in known:
        if numbers == set(layers):
            return layers
    raise ValueError(f"layers {sorted(numbers)} of patch_embedding.projection are those of none of V1T's patch modes")


def is_plain_scale(name: str, value: Tensor, core: Mapping[str, Tensor]) -> bool:
    """Whether this is the constant scale of plain attention, which must be 1 / sqrt(width)."""
    if not SCALE.fullmatch(name) or value.ndim:
        return False
    width = core["patch_embedding.cls_token"].shape[-1]
    if not torch.isclose(value.float(), torch.tensor(width**-0.5)):
        raise ValueError(f"{name!r} is {value.item():.6g}, expected 1 / sqrt({width}) = {width**-0.5:.6g}")
    return True


def as_tuple(shape: Any) -> tuple[int, ...]:
    """A shape that YAML may hold as text, as `(1, 144, 256)`."""
    return tuple(ast.literal_eval(shape) if isinstance(shape, str) else shape)
