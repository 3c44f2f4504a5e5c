"""ViV1T as its authors published it, by our names.

What comes in: a state dict of their whole model, or the file's dict around it, and their arguments (`args.yaml`).
What goes out: weights by the names of an encoder of ours, with children `core`, `readouts.<animal>`,
`shifters.<animal>`, `modulators.<animal>` and `activations.<animal>`, and arguments for `pretrain.models.viv1t`. Both
versions: huggingface.co/bryanlimy/ViV1T (`model_state.pt`: the weights lie under `model`) and
huggingface.co/bryanlimy/ViV1T-closed-loop (`model.pt`: a bare state dict).
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pretrain.models.viv1t import BEHAVIORS
from pretrain.published_names import OurWeights, require_fit

# By the published `--core_pos_encoding`; the two versions count differently.
COMPETITION_POSITIONS = ("none", "joint", "convolved", "learned", "learned_sinusoidal", "sinusoidal")
CLOSED_LOOP_POSITIONS = (
    "none", "joint", "learned", "learned_sinusoidal", "sinusoidal", "rotary", "learned_rotary", "grid_rotary",
)  # fmt: skip
# What an argument of theirs is called here, where its value stays what it is.
ARGUMENTS = {
    "core_spatial_patch_size": "patch",
    "core_spatial_patch_stride": "patch_stride",
    "core_temporal_patch_size": "frames",
    "core_temporal_patch_stride": "frame_stride",
    "core_spatial_depth": "spatial_depth",
    "core_temporal_depth": "temporal_depth",
    "core_num_heads": "heads",
    "core_emb_dim": "width",
    "core_head_dim": "head_dim",
    "core_mlp_dim": "ff_dim",
    "core_ff_dim": "ff_dim",
    "core_ff_activation": "ff_activation",
    "core_p_dropout": "token_dropout",
    "core_mha_dropout": "attention_dropout",
    "core_ff_dropout": "ff_dropout",
    "core_drop_path": "drop_path",
    "core_norm_qk": "norm_qk",
    "core_norm": "norm",
    "core_activation": "activation",
    "core_reg_tokens": "registers",
    "core_use_causal_attention": "causal",
    "max_frame": "max_frames",
}
# Constants that follow from the arguments.
CONSTANTS = re.compile(
    r"(.*\.)?(reg_scale|history_reg|behavior_reg|keep_prob|one|threshold|pos_encoding)$"
    r"|(core|readouts)\..*\.(attention\.)?scale$"
    r"|core\..*\.rotary_position_embedding\.inv_freq$"
    r"|core\.tokenizer\.tokenizer\.weight$"  # ones with which a convolution cuts out tubelets
)
COMPETITION_TOKENIZER = "core.vivit.tokenizer.tokenizer"
# Patterns of published names and ours, in the order in which they are tried; the first that fits is taken.
BLOCK = r"core\.vivit\.(spatial|temporal)_transformer\.blocks\.(\d+)\."
RENAMED = tuple(
    (re.compile(f"{old}$"), new)
    for old, new in (
        (r"core\.vivit\.tokenizer\.tokenizer\.0\.(\w+)", r"core.tokenizer.convolution.\1"),
        (r"core\.vivit\.tokenizer\.tokenizer\.1\.(\w+)", r"core.tokenizer.norm.\1"),
        (r"core\.vivit\.tokenizer\.tokenizer\.2\.(\w+)", r"core.tokenizer.linear.\1"),
        (r"core\.vivit\.tokenizer\.tokenizer\.3\.(\w+)", r"core.tokenizer.out_norm.\1"),
        (r"core\.tokenizer\.tokenizer\.0\.(\w+)", r"core.tokenizer.convolution.\1"),
        (r"core\.tokenizer\.tokenizer\.(norm|linear)\.(\w+)", r"core.tokenizer.\1.\2"),
        (r"core\.tokenizer\.norm\.(\w+)", r"core.tokenizer.out_norm.\1"),
        (r"core\.(?:vivit\.)?tokenizer\.pos_embedding", r"core.positions.joint"),
        (r"core\.(?:vivit\.)?tokenizer\.(spatial|temporal)_pos_embedding", r"core.positions.\1"),
        (r"core\.vivit\.reg_s_tokens", r"core.spatial.registers"),
        (r"core\.vivit\.reg_t_tokens", r"core.temporal.registers"),
        (BLOCK + r"pos_encoding\.pos_embedding\.(\w+)", r"core.\1.convolved.convolution.\3"),
        (BLOCK + r"state_encoder\.models\.(\w+)\.3\.(\w+)", r"core.\1.states.\2.models.\3.2.\4"),
        (BLOCK + r"state_encoder\.(.+)", r"core.\1.states.\2.\3"),
        (BLOCK + r"attention\.attn_out\.0\.(\w+)", r"core.\1.blocks.\2.attn_out.\3"),
        (BLOCK + r"attention\.(norm|to_qkv)\.(\w+)", r"core.\1.blocks.\2.\3.\4"),
        (BLOCK + r"ff\.0\.(\w+)", r"core.\1.blocks.\2.ff_norm.\3"),
        (BLOCK + r"ff\.1\.(\w+)", r"core.\1.blocks.\2.ff_in.\3"),
        (BLOCK + r"(?:ff\.4|ff_out\.2)\.(\w+)", r"core.\1.blocks.\2.ff_out.\3"),
        (BLOCK + r"(?:attention\.)?(norm_[qk])\.(\w+)", r"core.\1.blocks.\2.attention.\3.\4"),
        (BLOCK + r"((?:norm|fused_linear|attn_out)\.\w+)", r"core.\1.blocks.\2.\3"),
        (r"modulators\.(\w+)\.gru_cell\.(\w+)", r"modulators.\1.gru.\2_l0"),
        (r"output_activation\.(.+)", r"activations.\1"),
        (r"((?:readouts|shifters|modulators|critic)\..+)", r"\1"),
    )
)

ORIGIN = "the published file"
OF_READOUT = re.compile(r"readouts\.(\w+)\.(?:features|_features|layer\..+)")
# What the readouts of all animals share lies beside them there.
SHARED_ATTENTION = re.compile(r"readouts\.(position_embedding\.twod_pe|to_kv\.weight)")


def from_published(state: Mapping[str, Any], encoder: nn.Module | None = None) -> OurWeights:
    """Published weights by the names of an encoder of ours.

    Constants are left out; the second normal layer of an MLP counts from where ours has it; the features of a Gaussian
    readout (1, channels, neurons) become (1, channels, 1, neurons). What all attention readouts share is each one's
    here. Readouts of other kinds, shifters and modulators keep their names, but for the recurrent modulator's cell.

    Args:
        state: a file's dict, or the state dict in it.
        encoder: where given, the weights must be all of its own, in its shapes.

    Raises:
        ValueError: a name that ViV1T does not have, or the first weight that does not fit the encoder.
    """
    state = state.get("model", state)
    convolution = any(name.endswith(f"{COMPETITION_TOKENIZER}.0.weight") for name in state)
    animals = dict.fromkeys(found[1] for name in state if (found := OF_READOUT.match(name)))
    weights = OurWeights()
    for published, value in state.items():
        plain = published.replace("_orig_mod.", "")
        if convolution:
            # Behind a convolution, the layer with this number is the norm of tokens and not the projection.
            plain = plain.replace(f"{COMPETITION_TOKENIZER}.2.", f"{COMPETITION_TOKENIZER}.3.")
        name = our_name(plain)
        if name is None or (name.endswith(".T") and not value.ndim):
            continue
        if name.endswith(".features") and published.replace(".features", ".sigma") in state:
            name, value = name.replace(".features", "._features"), value[:, :, None] if value.ndim == 3 else value
        if shared := SHARED_ATTENTION.fullmatch(name):
            for animal in animals:
                weights.put(f"readouts.{animal}.keys_values.{shared[1]}", value, published)
        else:
            weights.put(name, value, published)
    if encoder is not None:
        require_fit(weights, encoder.state_dict(), ORIGIN)
    return weights


def core_weights(state: Mapping[str, Any], core: nn.Module | None = None) -> dict[str, Tensor]:
    """The weights of the core alone, by its own names; ValueError where they do not fit `core`."""
    prefix = "core."
    weights = from_published(state)
    weights = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    if core is not None:
        require_fit(weights, core.state_dict(), ORIGIN)
    return weights


def our_name(published: str) -> str | None:
    """Our name of a published weight; None of a constant."""
    if CONSTANTS.match(published):
        return None
    for pattern, ours in RENAMED:
        match = pattern.match(published)
        if match:
            return match.expand(ours)
    raise ValueError(f"ViV1T has no weight of the name {published!r}; is the file of another model?")


def published_arguments(args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `pretrain.models.viv1t.ViV1T` for the published ones of a core (`args.yaml`).

    Raises:
        ValueError: arguments of another core, or of the competition's patch mode 1, which does not run as published.
    """
    if args.get("core") != "vivit":
        raise ValueError(f"these are not ViV1T's arguments: core must be 'vivit', found {args.get('core')!r}")
    closed_loop = "core_pad_frame" in args
    numbered = CLOSED_LOOP_POSITIONS if closed_loop else COMPETITION_POSITIONS
    patch_mode = args["core_patch_mode"]
    if patch_mode == 1 and not closed_loop:
        raise ValueError("core_patch_mode=1 of the competition version does not run as published; 0 gives its numbers")
    channels, *_, height, width = args["input_shapes"]["video"]
    behavior = BEHAVIORS[args["core_behavior_mode"]]
    parallel = closed_loop or bool(args.get("core_parallel_attention", False))
    ours = {name: args[theirs] for theirs, name in ARGUMENTS.items() if args.get(theirs) is not None}
    ours.setdefault("ff_dropout", args["core_mha_dropout"])
    return ours | {
        "input_size": (height, width),
        "channels": channels,
        "behavior_channels": args["input_shapes"]["behavior"][0],
        "pupil_channels": args["input_shapes"]["pupil_center"][0],
        "behavior": behavior,
        "animals": tuple(args["mouse_ids"]) if behavior == "animal_mlp" else (),
        "normalized": patch_mode != 2,
        "pad": bool(args.get("core_pad_frame", False)),
        "positions": numbered[args["core_pos_encoding"]],
        "parallel": parallel,
        "scale_by_width": not parallel and not args.get("core_flash_attention", 1),
        "drop_whole_tokens": closed_loop,
    }
