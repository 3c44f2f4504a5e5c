"""Masked autoencoder: a vision transformer sees a quarter of an image's patches, and a small decoder draws the rest.

What comes in: one view of each image (1, batch, 3, size, size). What goes out: the mean squared error of the pixels of
the hidden patches, each patch normalised by its own mean and standard deviation. Source: He, Chen, Xie, Li, Dollár,
Girshick 2022 (https://arxiv.org/abs/2111.06377).
"""

import warnings

import torch
from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
from lightly.models.utils import (
    get_at_index,
    initialize_2d_sine_cosine_positional_embedding,
    normalize_mean_var,
    patchify,
    random_grid_token_mask,
    repeat_token,
    set_at_index,
)
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.objectives.objective import Objective, Wants, full_precision

# What a timm transformer does after its blocks; no gradient reaches it.
AFTER_THE_BLOCKS = ("attn_pool", "fc_norm", "head")


class MAE(Objective):
    """A vision transformer of timm, which stays as it is, and lightly's decoder.

    lightly runs the transformer on the visible patches. An untrained one, whose biases are all zero, starts as
    published: Xavier-uniform weights and a fixed sine-cosine position embedding. One that has been trained keeps its
    weights. Masks are drawn from torch's generator, anew at each step; class and register tokens are never hidden.

    Args:
        backbone: a timm vision transformer (`timm/vit_*`).
        input_size: side of a view in pixels.
        mask_ratio: share of the patches that is hidden.
        decoder_dim: width of the decoder.
        decoder_depth: number of its blocks.
        decoder_heads: attention heads of each.
        norm_pix_loss: predict each patch normalised by its own mean and standard deviation, and not its plain pixels.
    """

    wants = Wants(views=1)
    per_image = True
    whole_backbone = False

    def __init__(
        self,
        backbone: nn.Module,
        input_size: int = 64,
        mask_ratio: float = 0.75,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        norm_pix_loss: bool = True,
    ) -> None:
        super().__init__(backbone)
        check_decoder(decoder_dim, decoder_depth, decoder_heads)
        require_vision_transformer(backbone)
        self.patch_size = backbone.patch_embed.patch_size[0]
        patches = count_patches(backbone, input_size)
        if not 1 <= int(patches * (1 - mask_ratio)) < patches:
            raise ValueError(
                f"objective_args.mask_ratio must show some of the {patches} patches and hide others, found {mask_ratio}"
            )
        self.mask_ratio = mask_ratio
        self.norm_pix_loss = norm_pix_loss
        self.prefix_tokens = backbone.num_prefix_tokens
        self.tokens = patches + self.prefix_tokens
        # In a tuple, so that the backbone's weights are not registered, and saved, a second time under another name.
        self.encoders = (masked_transformer(backbone),)
        self.decoder = make_decoder(backbone, patches, decoder_dim, decoder_depth, decoder_heads)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`views` (1, batch, 3, size, size) to `loss`."""
        batch = batch if "visible" in batch else self.with_draws(batch)
        return self.reconstruct(batch["views"][0], batch["visible"], batch["hidden"])

    def with_draws(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch with its masks, `visible` (batch, n) and `hidden` (batch, m) of `draw_masks`."""
        images = batch["views"][0]
        visible, hidden = self.draw_masks(len(images), images.device)
        return {**batch, "visible": visible, "hidden": hidden}

    def draw_masks(self, images: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Numbers of the visible tokens (images, visible), class and register tokens first, and of the hidden ones."""
        return random_grid_token_mask(
            (images, self.tokens), self.mask_ratio, grid_size=1, num_prefix_tokens=self.prefix_tokens, device=device
        )

    def reconstruct(self, images: Tensor, visible: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        """The loss of images (batch, 3, size, size) of which the tokens `visible` (batch, n) are seen, `hidden` not."""
        drawn = self.draw(images, visible, hidden)
        with full_precision(images):
            target = self.pixels(images.float(), hidden)
            return {"loss": F.mse_loss(drawn.float(), target)}

    def draw(self, images: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """What the decoder makes of the visible tokens: (batch, hidden tokens, 3 * patch size²)."""
        encoded = self.decoder.embed(self.encoders[0].encode(images, idx_keep=visible))
        tokens = repeat_token(self.decoder.mask_token, (len(images), self.tokens)).to(encoded.dtype)
        decoded = self.decoder.decode(set_at_index(tokens, visible, encoded))
        return self.decoder.predict(get_at_index(decoded, hidden))

    def pixels(self, images: Tensor, hidden: Tensor) -> Tensor:
        """The pixels of the hidden patches (batch, hidden tokens, 3 * patch size²), as the decoder must draw them."""
        patches = get_at_index(patchify(images, self.patch_size), hidden - self.prefix_tokens)
        return normalize_mean_var(patches) if self.norm_pix_loss else patches


def masked_transformer(backbone: VisionTransformer) -> MaskedVisionTransformerTIMM:
    """lightly's way to run the transformer on some of its tokens; an untrained one gets the published start."""
    fresh = not any(bias.any() for name, bias in backbone.blocks.named_parameters() if name.endswith("bias"))
    encoder = MaskedVisionTransformerTIMM(
        backbone, weight_initialization="" if fresh else "skip", pos_embed_initialization="skip"
    )
    if fresh:
        prefix = 0 if backbone.no_embed_class else backbone.num_prefix_tokens
        initialize_2d_sine_cosine_positional_embedding(backbone.pos_embed, num_prefix_tokens=prefix)
    for name in AFTER_THE_BLOCKS:
        if isinstance(module := getattr(backbone, name, None), nn.Module):
            module.requires_grad_(False)
    return encoder


def make_decoder(backbone: VisionTransformer, patches: int, dim: int, depth: int, heads: int) -> MAEDecoderTIMM:
    """lightly's decoder, without its warning that a later release names it differently."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return MAEDecoderTIMM(
            num_patches=patches,
            patch_size=backbone.patch_embed.patch_size[0],
            embed_dim=backbone.embed_dim,
            decoder_embed_dim=dim,
            decoder_depth=depth,
            decoder_num_heads=heads,
            num_prefix_tokens=backbone.num_prefix_tokens,
        )


def require_vision_transformer(backbone: nn.Module) -> None:
    """One line for a backbone that is not a timm vision transformer with a position embedding."""
    if not isinstance(backbone, VisionTransformer) or backbone.pos_embed is None:
        raise ValueError(
            f"objective=mae trains timm's vision transformers, found {type(backbone).__name__}; set model=timm/vit_..."
        )


def count_patches(backbone: VisionTransformer, input_size: int) -> int:
    """Patches of a square image; raises ValueError where the transformer does not take its size."""
    height, width = backbone.patch_embed.patch_size
    if height != width or input_size % height:
        raise ValueError(f"views.size={input_size} must be a multiple of the patches of {height} x {width} pixels")
    own = backbone.patch_embed.img_size
    if not backbone.dynamic_img_size and own != (input_size, input_size):
        raise ValueError(
            f"the vision transformer takes images of {own[0]} x {own[1]} pixels, and views.size is {input_size}; "
            f"set model_args.img_size={input_size}"
        )
    return (input_size // height) ** 2


def check_decoder(dim: int, depth: int, heads: int) -> None:
    """One line for a decoder that cannot be built."""
    for name, value in (("decoder_dim", dim), ("decoder_depth", depth), ("decoder_heads", heads)):
        if not value > 0:
            raise ValueError(f"objective_args.{name} must be above 0, found {value}")
    # Sines and cosines of two coordinates, and equal heads.
    if dim % 4 or dim % heads:
        raise ValueError(f"objective_args.decoder_dim={dim} must be a multiple of 4 and of decoder_heads={heads}")
