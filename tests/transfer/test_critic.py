"""ViV1T's critic beside its reference values."""

import numpy as np
import torch
from safetensors.torch import load_file

from transfer.critic import Critic


def test_viv1t(shared):
    folder = shared / "reference/values/video/viv1t_competition"
    with np.load(folder / "critic_io.npz", allow_pickle=False) as arrays:
        values = {key: torch.from_numpy(arrays[key]) for key in arrays}
    critic = Critic(24, 2, hidden=8).eval()
    critic.load_state_dict(load_file(folder / "state_critic.safetensors"))
    assert sum(each.numel() for each in critic.parameters()) == 6984
    torch.testing.assert_close(critic(values["x"]), values["y"], rtol=1e-5, atol=1e-6)


def test_it_can_be_fooled():
    """A gradient reaches the features."""
    features = torch.randn(2, 3, 10, 10, 10, requires_grad=True)
    torch.nn.functional.cross_entropy(Critic(3, 4, hidden=5)(features), torch.tensor([1, 3])).backward()
    assert features.grad.abs().sum() > 0
