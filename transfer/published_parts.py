"""State dicts of one animal's readout, shifter, modulator or activation, as the projects wrote them, by our names.

What comes in: the entries of one part, without the prefix that says whose it is (`readouts.A.`, `shifter.<key>.`,
`output_activation.A.`). What goes out: the same tensors by our names. neuralpredictors' and DwiseNeuro's names are
ours; V1T's and ViV1T's differ in a few, and carry constants. Sources: the state dicts of
https://github.com/sinzlab/neuralpredictors, https://github.com/bryanlimy/V1T, https://github.com/bryanlimy/ViV1T and
https://github.com/bryanlimy/ViV1T-closed-loop.
"""

from collections.abc import Mapping

from torch import Tensor

# Weights of penalties, all 0, the 1 of ELU plus 1, a softplus' threshold, a scale that follows from the shape.
CONSTANTS = ("reg_scale", "history_reg", "behavior_reg", "one", "threshold", "scale")
RENAMED = {f"gru_cell.{name}": f"gru.{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
# What all animals' query attention shares lies beside them there.
SHARED_ATTENTION = ("position_embedding.twod_pe", "to_kv.weight")


def from_published(part: Mapping[str, Tensor], shared: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Tensors of a part by our names.

    Args:
        part: of one animal.
        shared: ViV1T's query attention has keys and values for all animals, `position_embedding.twod_pe` and
            `to_kv.weight`; both go into each animal's readout, where they are one module.
    """
    ours = {RENAMED.get(name, name): value for name, value in part.items() if name not in CONSTANTS}
    if "sigma" in ours and "features" in ours and "mu" not in ours:
        features = ours.pop("features")
        ours["_features"] = features[:, :, None] if features.ndim == 3 else features
    if "neuron_query" in ours and ours.get("T") is not None and not ours["T"].ndim:
        del ours["T"]
    for name in SHARED_ATTENTION:
        if shared is not None and name in shared:
            ours[f"keys_values.{name}"] = shared[name]
    return ours
