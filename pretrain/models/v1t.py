"""V1T: a vision transformer of small overlapping patches, into every block of which the animal's behaviour is added.

What comes in: images (batch, channel, height, width) of any size, standardised; behaviour (batch, 3): pupil dilation,
its derivative, running speed; pupil centre (batch, 2). What goes out: (batch, emb_dim, rows, columns), a feature map
for readouts. A block is t + B(behaviour), t + attention(norm(t)), t + MLP(norm(t)); every head is as wide as a token.
Source: Li, Cornacchia, Rochefort & Onken 2023, https://openreview.net/forum?id=qHZs2p4ZD4, at the settings of
https://github.com/bryanlimy/V1T, which are the defaults. Weights from there are named in `pretrain/published_v1t.py`.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from pretrain.models.attention_rollout import attention_rollout
from pretrain.models.dropping import Dropout, dropped_attention, dropped_linear
from pretrain.models.image_cropper import PUPIL_CHANNELS, ImageCropper
from pretrain.models.v1t_patches import PatchEmbedding

IGNORED, AS_CHANNELS, PER_BLOCK, PER_BLOCK_WITH_PUPIL, PER_ANIMAL = range(5)
IMAGE_SHIFTED, READOUT_SHIFTED, WITH_BEHAVIOR = (1, 3, 4), (2, 3, 4), (4,)
SHARED = "share"
FIT_LAYERS = ("patch_embedding", "blocks.0", "blocks.1", "blocks.2", "blocks.3")
# Attention's kernels want heads whose width is a multiple of this: on a CPU, 155 takes a sixth longer than 160.
HEAD_MULTIPLE = 8


class V1T(nn.Module):
    """The core. `transfer` puts readouts behind it, one per animal, and shifters for `shift_mode` 2, 3 and 4.

    | behavior_mode | behaviour is | shift_mode | the pupil's centre moves |
    |---|---|---|---|
    | 0 | ignored | 0 | nothing |
    | 1 | further channels of the image | 1 | the crop of the image |
    | 2 | added in every block | 2 | the readout (`shifts_readout`) |
    | 3 | added, with the pupil's centre | 3 | both |
    | 4 | the same by one MLP per animal | 4 | both, the crop with behaviour |

    Where the published code is not followed by default: crops are sampled bilinearly (`sampling`, see `ImageCropper`),
    and tokens are laid out where they came from. `square_grid=True` lays them out as published, in the most square grid
    that has as many places; that is the same at the published size, and scrambles space at others.

    Args:
        in_channels: channels of the images: 1 for grey ones, 2 for UV and green.
        image_size: (height, width) in pixels of what the transformer sees; images are cropped and resized to it.
        patch_mode, patch_size, patch_stride: see `PatchEmbedding`.
        emb_dim, num_blocks, num_heads, mlp_dim: width of tokens, number of blocks and heads, width of the MLPs.
        behavior_mode, behavior_channels: see above; how many values of behaviour there are.
        shift_mode, center_crop, sampling: see above; and the share of each side of the image that is kept.
        animals: those with parts of their own, for behavior_mode 4 and shift_mode 1, 3, 4.
        use_lsa: locality self-attention (Lee et al. 2021): each head learns its temperature, no token sees itself.
        use_bias: biases in the blocks.
        patch_dropout, dropout, drop_path: of tokens, in the blocks, and of whole branches.
        square_grid: lay out tokens as the published code does.
        l1_weight: of `regularizer`.

    Raises:
        ValueError: a mode that does not exist, or sizes that do not fit; in `forward`, behaviour or an animal missing.
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: tuple[int, int] = (36, 64),
        patch_mode: int = 0,
        patch_size: int = 8,
        patch_stride: int = 1,
        emb_dim: int = 155,
        num_blocks: int = 4,
        num_heads: int = 4,
        mlp_dim: int = 488,
        behavior_mode: int = 3,
        behavior_channels: int = 3,
        shift_mode: int = 2,
        center_crop: float = 1.0,
        sampling: str = "bilinear",
        animals: Sequence[str] = (),
        use_lsa: bool = False,
        use_bias: bool = True,
        patch_dropout: float = 0.0229,
        dropout: float = 0.2544,
        drop_path: float = 0.0,
        square_grid: bool = False,
        l1_weight: float = 0.5379,
    ) -> None:
        super().__init__()
        for name, mode in (("behavior_mode", behavior_mode), ("shift_mode", shift_mode)):
            if mode not in range(5):
                raise ValueError(f"{name} must be 0, 1, 2, 3 or 4, found {mode!r}")
        self.behavior_mode, self.shift_mode, self.l1_weight = behavior_mode, shift_mode, l1_weight
        self.out_channels, self.image_size = emb_dim, tuple(image_size)
        self.image_cropper = ImageCropper(
            image_size, center_crop, animals, shift_inputs(shift_mode, behavior_channels), sampling
        )
        channels = in_channels + (behavior_channels if behavior_mode == AS_CHANNELS else 0)
        self.patch_embedding = PatchEmbedding(
            channels, self.image_size, emb_dim, patch_mode, patch_size, patch_stride, patch_dropout
        )
        self.grid = self.patch_embedding.grid
        self.output_grid = most_square(math.prod(self.grid)) if square_grid else self.grid
        tokens = 1 + math.prod(self.grid)
        behavior_inputs = inputs_per_block(behavior_mode, behavior_channels)
        networks = tuple(animals) if behavior_mode == PER_ANIMAL else (SHARED,)
        self.blocks = nn.ModuleList(
            Block(
                Attention(emb_dim, num_heads, tokens if use_lsa else None, use_bias, dropout),
                MLP(emb_dim, mlp_dim, use_bias, dropout),
                BehaviorMLP(behavior_inputs, emb_dim, networks, use_bias) if behavior_inputs else None,
                drop_path,
            )
            for _ in range(num_blocks)
        )

    @property
    def shifts_readout(self) -> bool:
        """Whether `shift_mode` wants a shifter from the pupil's centre before the readout."""
        return self.shift_mode in READOUT_SHIFTED

    def output_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """(channels, rows, columns) of the output, which is the same for images of any size."""
        return (self.out_channels, *self.output_grid)

    def forward(
        self,
        images: Tensor,
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
        animal: str | None = None,
    ) -> Tensor:
        """Features (batch, emb_dim, rows, columns) of images (batch, channel, height, width)."""
        tokens = self.embedded(images, behavior, pupil_center, animal)
        added = self.behavior_inputs(behavior, pupil_center)
        for block in self.blocks:
            tokens = block(tokens, added, animal)
        return tokens[:, 1:].transpose(1, 2).unflatten(2, self.output_grid)

    def embedded(
        self, images: Tensor, behavior: Tensor | None, pupil_center: Tensor | None, animal: str | None
    ) -> Tensor:
        """Tokens (batch, 1 + rows x columns, emb_dim) before the first block."""
        images = self.image_cropper(images, behavior, pupil_center, animal)
        if self.behavior_mode == AS_CHANNELS:
            planes = self.required("behavior", behavior)[:, :, None, None].expand(-1, -1, *self.image_size)
            images = torch.cat((images, planes.to(images.dtype)), dim=1)
        return self.patch_embedding(images)

    def behavior_inputs(self, behavior: Tensor | None, pupil_center: Tensor | None) -> Tensor | None:
        """What the blocks' behaviour MLPs are given: (batch, K), (batch, K + 2), or None where there are none."""
        if self.behavior_mode in (IGNORED, AS_CHANNELS):
            return None
        behavior = self.required("behavior", behavior)
        if self.behavior_mode == PER_BLOCK:
            return behavior
        return torch.cat((behavior, self.required("pupil_center", pupil_center)), dim=-1)

    def required(self, name: str, value: Tensor | None) -> Tensor:
        if value is None:
            raise ValueError(
                f"behavior_mode={self.behavior_mode} needs {name}, found None; give it, or set another mode"
            )
        return value

    def add_animal(self, animal: str) -> None:
        """Fresh weights for one more animal in the parts that are each animal's own, if there are any."""
        self.image_cropper.add_animal(animal)
        for block in self.blocks if self.behavior_mode == PER_ANIMAL else ():
            block.behavior.add(animal)

    def remove_animal(self, animal: str) -> None:
        """Take an animal's own weights away, if it has any."""
        self.image_cropper.remove_animal(animal)
        for block in self.blocks if self.behavior_mode == PER_ANIMAL else ():
            block.behavior.remove(animal)

    def regularizer(self) -> Tensor:
        """`l1_weight` times the sum of all absolute weights: positions, norms and biases too, the cropper's not."""
        weights = (each for name, each in self.named_parameters() if not name.startswith("image_cropper."))
        return self.l1_weight * sum(each.abs().sum() for each in weights)

    def attention_by_block(
        self,
        images: Tensor,
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
        animal: str | None = None,
    ) -> Iterator[Tensor]:
        """Attention of each block in turn, (batch, head, token, token), before dropout; rows sum to 1.

        Of them `forward` makes none: they are as large as all else that the network computes.
        """
        tokens = self.embedded(images, behavior, pupil_center, animal)
        added = self.behavior_inputs(behavior, pupil_center)
        for block in self.blocks:
            yield block.attention.maps(block.with_behavior(tokens, added, animal))
            tokens = block(tokens, added, animal)

    def attention_maps(
        self,
        images: Tensor,
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
        animal: str | None = None,
    ) -> Tensor:
        """Attention of all blocks, (batch, block, head, token, token): 175 MB per image at the published size."""
        return torch.stack(list(self.attention_by_block(images, behavior, pupil_center, animal)), dim=1)

    @torch.no_grad()
    def attention_rollout(
        self,
        images: Tensor,
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
        animal: str | None = None,
    ) -> Tensor:
        """Rollout of attention over the image that the transformer sees, (batch, *image_size) in 0..1."""
        blocks = self.attention_by_block(images, behavior, pupil_center, animal)
        strongest = torch.stack([maps.amax(1, keepdim=True) for maps in blocks], dim=1)
        return attention_rollout(strongest, self.grid, self.image_size)


class Block(nn.Module):
    """Behaviour, attention and MLP, each added to the tokens; `drop_path` drops the last two of whole images."""

    def __init__(
        self, attention: "Attention", feed_forward: nn.Module, behavior: "BehaviorMLP | None", drop_path: float
    ) -> None:
        super().__init__()
        self.attention, self.mlp, self.behavior = attention, feed_forward, behavior
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, tokens: Tensor, behavior: Tensor | None = None, animal: str | None = None) -> Tensor:
        tokens = self.with_behavior(tokens, behavior, animal)
        tokens = tokens + self.drop_path(self.attention(tokens))
        return tokens + self.drop_path(self.mlp(tokens))

    def with_behavior(self, tokens: Tensor, behavior: Tensor | None, animal: str | None) -> Tensor:
        """Tokens (batch, token, width) plus what behaviour (batch, K) adds to each, the class token included."""
        return tokens if self.behavior is None else tokens + self.behavior(behavior, animal)[:, None]


class Attention(nn.Module):
    """Norm, then attention of heads that are each as wide as a token.

    Heads as wide as tokens need no keys and values of their own. With W_q, W_k, W_v of a head, W_p its part of the last
    projection and x the normed tokens, scores are x W_q' W_k x', and what the head adds is softmax(scores) x W_v' W_p':
    the queries x W_q' W_k meet x itself, and W_p W_v comes after. That is half of the projections' work, and nothing is
    kept of keys and values. `to_qkv` and `projection` only hold the published weights; hooks on them see nothing.

    Args:
        width: of tokens and of heads.
        heads: how many.
        lsa_tokens: number of tokens for locality self-attention, which must be known; None for plain attention.
        bias: of the last projection; queries, keys and values have none.
        dropout: of attention and of the output.
    """

    def __init__(self, width: int, heads: int, lsa_tokens: int | None, bias: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.plain_scale, self.attention_dropout = heads, width**-0.5, dropout
        self.norm = nn.LayerNorm(width)
        self.to_qkv = initialised(nn.Linear(width, 3 * heads * width, bias=False))
        self.projection = initialised(nn.Linear(heads * width, width, bias=bias))
        self.dropout = Dropout(dropout)
        self.register_parameter("scale", nn.Parameter(torch.full((heads,), self.plain_scale)) if lsa_tokens else None)
        others = ~torch.eye(lsa_tokens, dtype=torch.bool) if lsa_tokens else None
        self.register_buffer("others", others, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm(tokens)
        dropout = self.attention_dropout if self.training else 0.0
        attended = dropped_attention(self.queries(normed), widened(normed), self.others, dropout, self.scale_left)
        _, _, to_values = self.by_head()
        after = self.projection.weight.unflatten(1, (self.heads, -1)).transpose(0, 1) @ to_values
        weight = widened(after).transpose(0, 1).flatten(1)
        return self.dropout(F.linear(attended.transpose(1, 2).flatten(2), weight, self.projection.bias))

    def queries(self, normed: Tensor) -> Tensor:
        """Queries (batch, head, token, width) for normed tokens as keys; learned temperatures are in them already."""
        to_queries, to_keys, _ = self.by_head()
        if self.scale is not None:
            to_queries = to_queries * self.scale[:, None, None]
        weight = widened(to_queries.mT @ to_keys).mT.flatten(0, 1)
        return F.linear(normed, weight).unflatten(2, (self.heads, -1)).transpose(1, 2)

    def by_head(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights that give queries, keys and values, each (head, width of the head, width of a token)."""
        return self.to_qkv.weight.unflatten(0, (3, self.heads, -1)).unbind()

    @property
    def scale_left(self) -> float:
        """What the scores are still to be multiplied by."""
        return self.plain_scale if self.scale is None else 1.0

    def maps(self, tokens: Tensor) -> Tensor:
        """Attention (batch, head, token, token), rows summing to 1."""
        normed = self.norm(tokens)
        scores = self.queries(normed) @ widened(normed)[:, None].mT * self.scale_left
        return (scores if self.others is None else scores.masked_fill(~self.others, -torch.inf)).softmax(-1)


class BehaviorMLP(nn.Module):
    """What behaviour adds to the tokens: inputs -> width / 2 -> width, tanh after each; for all animals or for each."""

    def __init__(self, inputs: int, width: int, networks: Sequence[str], bias: bool) -> None:
        super().__init__()
        self.inputs, self.width, self.bias = inputs, width, bias
        self.networks = nn.ModuleDict()
        for name in networks:
            self.add(name)

    def add(self, name: str) -> None:
        """A network with fresh weights for an animal."""
        self.networks[name] = nn.Sequential(
            initialised(nn.Linear(self.inputs, self.width // 2, bias=self.bias)),
            nn.Tanh(),
            initialised(nn.Linear(self.width // 2, self.width, bias=self.bias)),
            nn.Tanh(),
        )

    def remove(self, name: str) -> None:
        if name in self.networks:
            del self.networks[name]

    def forward(self, behavior: Tensor, animal: str | None) -> Tensor:
        """(batch, width) of behaviour (batch, inputs)."""
        name = SHARED if SHARED in self.networks else animal
        if name not in self.networks:
            known = ", ".join(self.networks) or "none"
            raise ValueError(f"behavior_mode=4 has no network for animal={animal!r}; known are {known}")
        return self.networks[name](behavior)


def widened(values: Tensor) -> Tensor:
    """Values with zeros at the end of the last dimension, up to a multiple of `HEAD_MULTIPLE`."""
    return F.pad(values, (0, -values.shape[-1] % HEAD_MULTIPLE))


class MLP(nn.Sequential):
    """Norm, width -> hidden, GELU, hidden -> width, with dropout after each."""

    def __init__(self, width: int, hidden: int, bias: bool, dropout: float) -> None:
        super().__init__(
            nn.LayerNorm(width),
            initialised(nn.Linear(width, hidden, bias=bias)),
            nn.GELU(),
            nn.Dropout(dropout),
            initialised(nn.Linear(hidden, width, bias=bias)),
            Dropout(dropout),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        norm, expand, activation, dropout, project, last = self
        drop = dropout.p if self.training else 0.0
        return last(dropped_linear(expand(norm(tokens)), project.weight, project.bias, drop, activation))


def initialised(linear: nn.Linear) -> nn.Linear:
    """Weights from a truncated normal distribution of standard deviation 0.02, biases 0, as in all of V1T's blocks."""
    nn.init.trunc_normal_(linear.weight, std=0.02)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


def inputs_per_block(behavior_mode: int, behavior_channels: int) -> int:
    """How many values the blocks' behaviour MLPs take; 0 where there are none."""
    if behavior_mode in (IGNORED, AS_CHANNELS):
        return 0
    return behavior_channels if behavior_mode == PER_BLOCK else behavior_channels + PUPIL_CHANNELS


def shift_inputs(shift_mode: int, behavior_channels: int) -> int:
    """How many values move the crop of the image; 0 where it does not move."""
    if shift_mode not in IMAGE_SHIFTED:
        return 0
    return PUPIL_CHANNELS + (behavior_channels if shift_mode in WITH_BEHAVIOR else 0)


def most_square(places: int) -> tuple[int, int]:
    """Rows and columns as the published code finds them: the largest divisor not above ceil(sqrt(places)), the rest."""
    rows = math.ceil(math.sqrt(places))
    while places % rows:
        rows -= 1
    return rows, places // rows
