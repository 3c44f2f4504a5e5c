"""Names under which mouse-vision's users know its networks: every constructor, and every published file.

What comes in: nothing. What goes out: `ALIASES`, from each name to one of our models, the arguments that make exactly
that network, and the sides in pixels of its input and of the views before it. Source: mouse-vision (Nayebi, Kong et
al. 2023, https://doi.org/10.1371/journal.pcbi.1011506), its constructors and README.
"""

from dataclasses import dataclass, field
from typing import Any

PUBLISHED_SIZE = 64
FULL_SIZE = 224


@dataclass(frozen=True)
class Alias:
    """A model of ours with these arguments is the network of that name.

    It is evaluated on images of which the short side is resized to `resize`, the central `crop` is cut out, and that
    is resized to `input_size`, all in pixels.
    """

    model: str
    args: dict[str, Any] = field(default_factory=dict)
    input_size: int = PUBLISHED_SIZE
    resize: int = 256
    crop: int = FULL_SIZE


NO_CLASSES = {"num_classes": 0}
NO_NORM = {"norm": "none"}
POOLED_SKIP = {"norm": "none", "skip": "pool"}
SYNC = {"norm": "sync_batch", "num_classes": 0}
ONLY_VISPOR = {"outputs": ["VISpor"]}
SIMPLIFIED = "simplified_mousenet"


def alexnets() -> dict[str, Alias]:
    """Section "AlexNet": inputs of various sizes, objectives, and shortened networks."""
    label_free = Alias("alexnet_bn", NO_CLASSES)
    shortened = {"two": 2, "three": 3, "four": 4, "five": 5}
    return {
        "alexnet_64x64_input_pool_6": Alias("alexnet"),
        "alexnet_64x64_input_pool_6_with_ir_transforms": Alias("alexnet"),
        "alexnet_64x64_input_pool_1": Alias("alexnet", {"pool_size": 1}),
        "alexnet_ir_64x64_input_pool_6": Alias("alexnet", NO_CLASSES),
        "alexnet_relative_location": Alias("alexnet", {"hidden_layers": 1, "num_classes": 0}, resize=292, crop=255),
        "alexnet_64x64_rl_scratch_truncated": Alias("alexnet", {"stages": 4, "pool_size": 0}),
        "alexnet_64x64_input_dict": Alias("alexnet_edges"),
        "alexnet_rotnet_transfer": Alias("alexnet_rotnet", {"transfer": True}, FULL_SIZE),
        **{f"alexnet_{n}_64x64": Alias("alexnet", {"stages": k, "hidden_layers": 0}) for n, k in shortened.items()},
        "alexnet_six_64x64": Alias("alexnet", {"hidden_layers": 1}),
        "alexnet_bn_64x64_input_pool_6_with_ir_transforms": Alias("alexnet_bn"),
        "alexnet_bn_ir_64x64_input_pool_6": label_free,
        "alexnet_ir_dmlocomotion": label_free,
        **{f"alexnet_bn_{o}_64x64": label_free for o in ("simclr", "simsiam", "mocov2", "barlow_twins", "vicreg")},
        "alexnet_bn_barlow_twins": label_free,
        **{
            f"alexnet_ir_{side}x{side}": Alias("alexnet_bn", NO_CLASSES, side)
            for side in (84, 104, 124, 144, 164, 184, 204, FULL_SIZE)
        },
    }


def streams() -> dict[str, Alias]:
    """Section "Multi-stream": the plain names have no batch norm, a pooled skip and classes."""
    found: dict[str, Alias] = {}
    for model in ("dual_stream", "six_stream"):
        name = f"{SIMPLIFIED}_{model}"
        found |= {
            name: Alias(model, POOLED_SKIP),
            f"{name}_visp_3x3": Alias(model, NO_NORM),
            f"{name}_vispor_only": Alias(model, POOLED_SKIP | ONLY_VISPOR),
            f"{name}_vispor_only_visp_3x3": Alias(model, NO_NORM | ONLY_VISPOR),
            f"{name}_visp_3x3_bn": Alias(model),
            f"{name}_visp_3x3_bn_rand": Alias(model, NO_CLASSES),
            f"{name}_visp_3x3_ir_{FULL_SIZE}x{FULL_SIZE}": Alias(model, NO_CLASSES, FULL_SIZE),
        }
    single = f"{SIMPLIFIED}_single_stream"
    found |= {
        single: Alias("single_stream"),
        f"{single}_rand": Alias("single_stream", NO_CLASSES),
        f"{single}_ir_{FULL_SIZE}x{FULL_SIZE}": Alias("single_stream", NO_CLASSES, FULL_SIZE),
    }
    for model, stem in (("single_stream", ""), ("dual_stream", "_visp_3x3"), ("six_stream", "_visp_3x3")):
        name = f"{SIMPLIFIED}_{model}{stem}"
        found |= {f"{name}_{objective}": Alias(model, NO_CLASSES) for objective in ("ir", "rotnet", "mocov2")}
        found |= {f"{name}_{objective}": Alias(model, SYNC) for objective in ("simclr", "simsiam")}
        found |= {f"{SIMPLIFIED}_ae_{model}": Alias(f"{model}_autoencoder")}
        found |= {f"{SIMPLIFIED}_depth_hour_glass_{model}": Alias(f"{model}_depth")}
    found |= {
        f"{SIMPLIFIED}_dual_stream_visp_3x3_ir_{side}x{side}": Alias("dual_stream", NO_CLASSES, side)
        for side in (32, 44, 84, 104, 124, 144, 164, 184, 204)
    }
    return found


def mousenets() -> dict[str, Alias]:
    """Section "Shi MouseNet"."""
    return {
        "shi_mousenet": Alias("mousenet"),
        "shi_mousenet_ir": Alias("mousenet", NO_CLASSES),
        "shi_mousenet_vispor5": Alias("mousenet_vispor5"),
        "shi_mousenet_vispor5_pool_4": Alias("mousenet_vispor5", {"pool_size": 4}),
        "shi_mousenet_vispor5_ir": Alias("mousenet_vispor5", NO_CLASSES),
    }


def comparisons() -> dict[str, Alias]:
    """ResNets and VGG16; `vgg16_ir_64x64` has batch norm, `vgg16_64x64_input` has none, as published."""
    return {
        **{f"resnet{depth}_ir_64x64": Alias(f"resnet{depth}", NO_CLASSES) for depth in (18, 34, 50, 101, 152)},
        **{
            f"resnet{depth}_ir_preavgpool_64x64": Alias(f"resnet{depth}", {"num_classes": 0, "avgpool": False})
            for depth in (18, 50)
        },
        "resnet18_64x64_input": Alias("resnet18"),
        "resnet50_barlow_twins": Alias("resnet50", NO_CLASSES),
        "vgg16_ir_64x64": Alias("vgg16_bn", NO_CLASSES),
        "vgg16_64x64_input": Alias("vgg16"),
    }


PUBLISHED_FILES = {
    "alexnet_bn_ir": Alias("alexnet_bn", NO_CLASSES),
    "dual_stream_ir": Alias("dual_stream", NO_CLASSES),
    "six_stream_simclr": Alias("six_stream", SYNC),
    "shi_mousenet_ir": Alias("mousenet", NO_CLASSES),
    "shi_mousenet_vispor5_ir": Alias("mousenet_vispor5", NO_CLASSES),
}

ALIASES = alexnets() | streams() | mousenets() | comparisons() | PUBLISHED_FILES
