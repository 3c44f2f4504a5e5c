"""Readouts by name: from the features of a core to the responses of one animal's neurons.

What comes in: a name, the shape of the core's output, the number of neurons, and where they are known the neurons'
coordinates and mean responses. What goes out: a readout (see `transfer.readout`), for which no data set is needed.
"""

import difflib
from typing import Any

from transfer.attention_readout import AttentionReadout, QueryAttentionReadout
from transfer.distribution_readout import DistributionGaussianReadout, DistributionPooledReadout
from transfer.factorized_readout import FactorizedReadout
from transfer.gaussian_2d import DeterministicGaussianReadout, Gaussian2dReadout
from transfer.gaussian_3d import Gaussian3dReadout, UltraSparseReadout
from transfer.gaussian_readout import GaussianReadout
from transfer.grouped_linear_readout import GroupedLinearReadout
from transfer.hierarchical_gaussian import HierarchicalGaussianReadout
from transfer.pooled_readout import PointPooledReadout, PointPyramidReadout, SpatialTransformerPooledReadout
from transfer.readout import Readout
from transfer.state_gaussian_readout import StateGaussianReadout

READOUTS: dict[str, type[Readout]] = {
    "gaussian": GaussianReadout,
    "state_gaussian": StateGaussianReadout,
    "distribution_gaussian": DistributionGaussianReadout,
    "hierarchical_gaussian": HierarchicalGaussianReadout,
    "gaussian_2d": Gaussian2dReadout,
    "deterministic_gaussian": DeterministicGaussianReadout,
    "gaussian_3d": Gaussian3dReadout,
    "ultra_sparse": UltraSparseReadout,
    "factorized": FactorizedReadout,
    "point_pooled": PointPooledReadout,
    "distribution_pooled": DistributionPooledReadout,
    "spatial_transformer_pooled": SpatialTransformerPooledReadout,
    "point_pyramid": PointPyramidReadout,
    "attention": AttentionReadout,
    "query_attention": QueryAttentionReadout,
    "grouped_linear": GroupedLinearReadout,
}

# What the projects call them.
ALIASES = {
    "FullGaussian2d": "gaussian",
    "GeneralizedFullGaussianReadout2d": "distribution_gaussian",
    "Gaussian2d": "gaussian_2d",
    "DeterministicGaussian2d": "deterministic_gaussian",
    "Gaussian3d": "gaussian_3d",
    "UltraSparse": "ultra_sparse",
    "FullFactorized2d": "factorized",
    "SpatialXFeatureLinear": "factorized",
    "FullSXF": "factorized",
    "PointPooled2d": "point_pooled",
    "GeneralizedPointPooled2d": "distribution_pooled",
    "SpatialTransformerPooled3d": "spatial_transformer_pooled",
    "PointPyramid2d": "point_pyramid",
    "AttentionReadout": "attention",
}


def create_readout(name: str, in_shape: tuple[int, int, int], neurons: int, **arguments: Any) -> Readout:
    """A readout for one animal.

    Args:
        name: of `READOUTS`, or what neuralpredictors calls it.
        in_shape: channels, height and width of the core's output.
        neurons: how many the animal has.
        arguments: of the class, such as `mean_responses` (neurons,) and, for Gaussian ones, `coordinates`.

    Raises:
        ValueError: an unknown name, with the nearest one.
    """
    return readout_class(name)(in_shape, neurons, **arguments)


def readout_class(name: str) -> type[Readout]:
    """The class of a readout, by a name of `READOUTS` or neuralpredictors' own; unknown ones list the nearest."""
    known = ALIASES.get(name, name)
    if known not in READOUTS:
        near = difflib.get_close_matches(name, [*READOUTS, *ALIASES], n=1) or list(READOUTS)
        raise ValueError(f"there is no readout {name!r}; nearest: {', '.join(near)}")
    return READOUTS[known]
