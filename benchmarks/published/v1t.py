"""V1T's core in plain operations, as its authors compute it: the peer in `encoder_step.py`.

What comes in and goes out: as of `pretrain.models.v1t`, for images of the size that the transformer sees. Patches are
copied out of the image, attention is made token by token, masked, dropped and kept for the gradient. State-dict keys
are the published ones below `core.`, without constants. Written from the description of
https://github.com/bryanlimy/V1T."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import stochastic_depth


def published_v1t(**sizes) -> nn.Module:
    """The core at its published size, or with other `sizes`."""
    return PlainV1T(**sizes)


class PlainV1T(nn.Module):
    """`animals` have a behaviour MLP each in behaviour mode 4; `channels` include behaviour in mode 1."""

    def __init__(
        self,
        channels: int = 1,
        image_size: tuple[int, int] = (36, 64),
        patch_mode: int = 0,
        patch: int = 8,
        stride: int = 1,
        width: int = 155,
        depth: int = 4,
        heads: int = 4,
        hidden: int = 488,
        behavior_mode: int = 3,
        animals: tuple[str, ...] = (),
        lsa: bool = False,
        bias: bool = True,
        patch_dropout: float = 0.0229,
        dropout: float = 0.2544,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.behavior_mode, self.out_channels = behavior_mode, width
        rows, columns = ((side - patch) // stride + 1 for side in image_size)
        self.grid, tokens = (rows, columns), 1 + rows * columns
        self.patch_embedding = nn.Module()
        self.patch_embedding.projection = projection(patch_mode, channels, patch, stride, width)
        self.patch_embedding.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.patch_embedding.pos_embedding = nn.Parameter(torch.randn(tokens, width))
        self.patch_dropout = patch_dropout
        inputs = {2: 3, 3: 5, 4: 5}.get(behavior_mode)
        networks = animals if behavior_mode == 4 else ("share",)
        self.transformer = nn.Module()
        self.transformer.blocks = nn.ModuleList(
            PlainBlock(width, heads, hidden, inputs, networks, lsa, bias, dropout, drop_path) for _ in range(depth)
        )

    def forward(self, images: Tensor, behavior: Tensor, pupil_center: Tensor, animal: str | None = None) -> Tensor:
        patches = self.patch_embedding.projection(images)
        first = self.patch_embedding.cls_token.repeat(len(images), 1, 1)
        tokens = torch.cat((first, patches), dim=1) + self.patch_embedding.pos_embedding
        tokens = F.dropout(tokens, self.patch_dropout, self.training)
        state = torch.cat((behavior, pupil_center), dim=-1) if self.behavior_mode in (3, 4) else behavior
        for block in self.transformer.blocks:
            tokens = block(tokens, state, animal)
        return tokens[:, 1:].reshape(len(images), *self.grid, -1).permute(0, 3, 1, 2)


class PlainBlock(nn.Module):
    def __init__(self, width, heads, hidden, inputs, networks, lsa, bias, dropout, drop_path) -> None:
        super().__init__()
        self.mha = PlainAttention(width, heads, lsa, bias, dropout)
        self.mlp = nn.Module()
        self.mlp.model = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden, bias=bias),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width, bias=bias),
            nn.Dropout(dropout),
        )
        self.drop_path, self.shared = drop_path, "share" in networks
        if inputs:
            behavior = nn.Module()
            behavior.models = nn.ModuleDict({name: behavior_network(inputs, width, bias) for name in networks})
            self.add_module("b-mlp", behavior)

    def forward(self, tokens: Tensor, state: Tensor, animal: str | None) -> Tensor:
        if "b-mlp" in self._modules:
            network = self._modules["b-mlp"].models["share" if self.shared else animal]
            tokens = tokens + network(state).unsqueeze(1)
        tokens = stochastic_depth(self.mha(tokens), self.drop_path, "row", self.training) + tokens
        return stochastic_depth(self.mlp.model(tokens), self.drop_path, "row", self.training) + tokens


class PlainAttention(nn.Module):
    def __init__(self, width: int, heads: int, lsa: bool, bias: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.lsa, self.dropout = heads, lsa, dropout
        self.layer_norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * heads * width, bias=False)
        self.projection = nn.Sequential(nn.Linear(heads * width, width, bias=bias), nn.Dropout(dropout))
        self.scale = nn.Parameter(torch.full((heads,), width**-0.5)) if lsa else width**-0.5

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        parts = self.to_qkv(self.layer_norm(tokens)).chunk(3, dim=-1)
        queries, keys, values = (part.reshape(batch, count, self.heads, width).permute(0, 2, 1, 3) for part in parts)
        scores = torch.matmul(queries, keys.transpose(-1, -2))
        if self.lsa:
            scores = scores * self.scale.reshape(1, -1, 1, 1)
            diagonal = torch.arange(count, device=tokens.device)
            scores[:, :, diagonal, diagonal] = -torch.finfo(scores.dtype).max
        else:
            scores = scores * self.scale
        attention = F.dropout(scores.softmax(-1), self.dropout, self.training)
        attended = torch.matmul(attention, values).permute(0, 2, 1, 3).reshape(batch, count, -1)
        return self.projection(attended)


def behavior_network(inputs: int, width: int, bias: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width // 2, bias=bias),
        nn.Tanh(),
        nn.Dropout(0),
        nn.Linear(width // 2, width, bias=bias),
        nn.Tanh(),
    )


def projection(mode: int, channels: int, patch: int, stride: int, width: int) -> nn.Sequential:
    """Patches to tokens, in the published order of layers."""
    if mode == 1:
        return nn.Sequential(nn.Conv2d(channels, width, patch, stride), TokensOfMap())
    if mode == 2:
        channels *= 5
    size = channels * patch**2
    shifted = [Shifted(patch // 2)] if mode == 2 else []
    norm = [nn.LayerNorm(size)] if mode in (2, 3) else []
    last = [nn.LayerNorm(width)] if mode == 3 else []
    return nn.Sequential(*shifted, nn.Unfold(patch, stride=stride), Transposed(), *norm, nn.Linear(size, width), *last)


class Shifted(nn.Module):
    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, images: Tensor) -> Tensor:
        s = self.shift
        paddings = ((s, -s, s, -s), (-s, s, s, -s), (s, -s, -s, s), (-s, s, -s, s))
        return torch.cat((images, *(F.pad(images, padding) for padding in paddings)), dim=1)


class Transposed(nn.Module):
    def forward(self, patches: Tensor) -> Tensor:
        return patches.transpose(1, 2)


class TokensOfMap(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.flatten(2).transpose(1, 2)
