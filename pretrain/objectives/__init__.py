"""Objectives by name: what a backbone is trained on.

An objective is an `nn.Module` that owns its backbone and heads. Its attribute `wants` says what it needs of each image;
`forward(batch)` maps a batch of that to `{"loss": scalar, ...logged scalars}`; `after_step()` is called after each step
of the optimiser.
"""

import difflib
import inspect

from torch import nn

from pretrain.objectives.barlow_twins import BarlowTwins
from pretrain.objectives.byol import BYOL
from pretrain.objectives.dino import DINO
from pretrain.objectives.instance_recognition import InstanceRecognition
from pretrain.objectives.mae import MAE
from pretrain.objectives.moco import MoCoV2
from pretrain.objectives.nnclr import NNCLR
from pretrain.objectives.objective import Objective
from pretrain.objectives.queued_instance_recognition import QueuedInstanceRecognition
from pretrain.objectives.reconstruction import Autoencoding, DepthPrediction
from pretrain.objectives.relative_location import RelativeLocation
from pretrain.objectives.rotnet import RotNet
from pretrain.objectives.simclr import SimCLR
from pretrain.objectives.simsiam import SimSiam
from pretrain.objectives.supervised import LinearReadout, Supervised
from pretrain.objectives.swav import SwAV
from pretrain.objectives.tico import TiCo
from pretrain.objectives.vicreg import VICReg

OBJECTIVES: dict[str, type[Objective]] = {
    "instance_recognition": InstanceRecognition,
    "simclr": SimCLR,
    "simsiam": SimSiam,
    "moco_v2": MoCoV2,
    "barlow_twins": BarlowTwins,
    "vicreg": VICReg,
    "rotnet": RotNet,
    "relative_location": RelativeLocation,
    "autoencoding": Autoencoding,
    "depth_prediction": DepthPrediction,
    "supervised": Supervised,
    "linear_readout": LinearReadout,
    "instance_recognition_queue": QueuedInstanceRecognition,
    "byol": BYOL,
    "dino": DINO,
    "nnclr": NNCLR,
    "swav": SwAV,
    "tico": TiCo,
    "mae": MAE,
}

# These follow from the data and the views; a user does not set them.
GIVEN_BY_THE_RUN = ("num_samples", "input_size", "classes")


def list_objectives() -> list[str]:
    """Names that `create_objective` knows."""
    return sorted(OBJECTIVES)


def create_objective(name: str, backbone: nn.Module, **kwargs) -> Objective:
    """The named objective around a backbone.

    Args:
        name: one of `list_objectives()`.
        backbone: maps images (batch, 3, H, W) to features (batch, d).
        kwargs: arguments of the objective's constructor; of those that follow from the data (`num_samples`,
            `input_size`, `classes`) each objective takes what it needs.

    Raises:
        ValueError: unknown name or argument; the line says what is allowed and what is nearest.
    """
    kind = known_objective(name)
    allowed = list(inspect.signature(kind.__init__).parameters)[2:]
    kwargs = {key: value for key, value in kwargs.items() if key in allowed or key not in GIVEN_BY_THE_RUN}
    for key in kwargs:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1, cutoff=0.4)
            hint = f"; nearest: {near[0]}" if near else ""
            settable = ", ".join(a for a in allowed if a not in GIVEN_BY_THE_RUN)
            raise ValueError(f"unknown key 'objective_args.{key}' for {name}{hint} (allowed: {settable})")
    return kind(backbone, **kwargs)


def known_objective(name: str) -> type[Objective]:
    """The class behind a name; raises ValueError with the nearest names."""
    if name not in OBJECTIVES:
        near = difflib.get_close_matches(name, OBJECTIVES, n=3, cutoff=0.4) or list_objectives()
        raise ValueError(
            f"unknown objective {name!r}; nearest: {', '.join(near)} (allowed: {', '.join(list_objectives())})"
        )
    return OBJECTIVES[name]
