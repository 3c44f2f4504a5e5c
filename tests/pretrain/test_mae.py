"""Masked autoencoder: masks, targets and loss written out, the plain transformer, resume, two processes against one."""

import copy
import socket
import warnings

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pretrain.models import feature_size
from pretrain.objectives.mae import MAE

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
SIZE, PATCH, PATCHES = 64, 16, 16


def transformer(name: str = "test_vit", **arguments: float) -> nn.Module:
    """timm's tiny vision transformer for 64-pixel images: 16 patches and a class token."""
    return timm.create_model(name, num_classes=0, **({"img_size": SIZE, "depth": 2} | arguments))


def small(seed: int = 0, backbone: nn.Module | None = None, **arguments: float) -> MAE:
    """An objective around the tiny transformer, with a tiny decoder."""
    torch.manual_seed(seed)
    sizes = {"input_size": SIZE, "decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 4}
    return MAE(backbone or transformer(), **(sizes | arguments))


def random_images(seed: int = 0, images: int = 6) -> Tensor:
    return torch.randn(images, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def train_step(objective: MAE, step: int) -> float:
    """One step of plain SGD on the images, and with the masks, of a step; returns the loss before it."""
    torch.manual_seed(step)
    loss = objective({"views": random_images(step)[None]})["loss"]
    objective.zero_grad()
    loss.backward()
    with torch.no_grad():
        for weights in objective.parameters():
            if weights.requires_grad:
                weights -= 0.05 * weights.grad
    objective.after_step()
    return loss.item()


def patch_written_out(image: Tensor, number: int) -> Tensor:
    """The pixels of one patch, row by row, the channels of a pixel together."""
    row, column = divmod(number, SIZE // PATCH)
    pixels = image[:, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
    return pixels.permute(1, 2, 0).flatten().double()


PREFIX_TOKENS = {
    "a class token": (1, {}),
    "no class token": (0, {"class_token": False, "global_pool": "avg"}),
    "class and register tokens": (4, {"reg_tokens": 3}),
    "tokens without position": (3, {"reg_tokens": 2, "no_embed_class": True}),
}


@pytest.mark.parametrize("kind", PREFIX_TOKENS)
@pytest.mark.parametrize("normalised", [True, False])
def test_loss_is_the_squared_error_of_the_hidden_patches_written_out(normalised, kind):
    prefix, arguments = PREFIX_TOKENS[kind]
    objective = small(backbone=transformer(**arguments), norm_pix_loss=normalised)
    images = random_images(images=3) * 2 + 1
    visible, hidden = objective.draw_masks(len(images), images.device)
    found = objective.reconstruct(images, visible, hidden)["loss"]
    drawn, errors = objective.draw(images, visible, hidden).detach().double(), []
    for image in range(len(images)):
        for place, token in enumerate(hidden[image]):
            wanted = patch_written_out(images[image], int(token) - prefix)
            if normalised:
                wanted = (wanted - wanted.mean()) / (wanted.var() + 1e-6).sqrt()
            errors += ((drawn[image, place] - wanted) ** 2).tolist()
    assert visible[:, :prefix].tolist() == [list(range(prefix))] * 3
    assert len(errors) == 3 * 12 * 3 * PATCH**2
    assert found.item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_hidden_patches_are_not_seen_and_visible_ones_are_not_drawn():
    objective, images = small(), random_images(images=1)
    visible, hidden = objective.draw_masks(1, images.device)
    drawn, target = objective.draw(images, visible, hidden), objective.pixels(images, hidden)
    for tokens, sees, draws in ((hidden, False, True), (visible[:, 1:], True, False)):
        row, column = divmod(int(tokens[0, 0]) - 1, SIZE // PATCH)
        changed = images.clone()
        changed[:, :, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] *= torch.linspace(
            0, 3, PATCH
        )
        assert torch.equal(objective.draw(changed, visible, hidden), drawn) != sees
        assert torch.equal(objective.pixels(changed, hidden), target) != draws


@settings(deadline=None, max_examples=25)
@given(images=st.integers(1, 4), ratio=st.floats(0.05, 0.9), seed=st.integers(0, 2**31))
def test_masks_part_the_patches_by_their_ratio_and_never_hide_the_class_token(images, ratio, seed):
    objective = small(mask_ratio=ratio)
    torch.manual_seed(seed)
    visible, hidden = objective.draw_masks(images, torch.device("cpu"))
    assert (visible[:, 0] == 0).all()
    assert visible.shape[1] == 1 + int(PATCHES * (1 - ratio))
    tokens = torch.cat([visible, hidden], dim=1).sort(dim=1).values
    assert torch.equal(tokens, torch.arange(1 + PATCHES).expand(images, -1))


def test_masks_follow_torchs_generator_and_differ_between_images():
    objective, batch = small(), {"views": random_images()[None]}
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(objective(batch)["loss"].item())
    assert losses[0] == losses[1] != losses[2]
    _, hidden = objective.draw_masks(6, torch.device("cpu"))
    assert len({tuple(row.sort().values.tolist()) for row in hidden}) > 1


def test_the_decoder_and_the_masks_are_the_published_ones():
    objective = MAE(transformer(), input_size=SIZE)
    width, patch = 512, 3 * PATCH**2
    block = 12 * width**2 + 13 * width
    published = (64 * width + width) + 8 * block + 2 * width + (width * patch + patch) + width
    assert sum(weights.numel() for weights in objective.decoder.parameters() if weights.requires_grad) == published
    assert objective.decoder.decoder_blocks[0].attn.num_heads == 16
    visible, hidden = objective.draw_masks(2, torch.device("cpu"))
    assert (visible.shape[1], hidden.shape[1]) == (1 + 4, 12)
    assert (objective.norm_pix_loss, objective.wants.views) == (True, 1)


def test_the_backbone_stays_a_plain_transformer_and_is_saved_once():
    objective, plain = small(), transformer()
    state = objective.state_dict()
    saved = {name.removeprefix("backbone.") for name in state if name.startswith("backbone.")}
    assert saved == plain.state_dict().keys()
    assert {name.split(".")[0] for name in state} == {"backbone", "decoder"}
    train_step(objective, 0)
    plain.load_state_dict(objective.backbone.state_dict())
    images = random_images()
    assert torch.equal(plain.eval()(images), objective.eval().backbone(images))


def test_without_a_mask_the_encoder_is_the_backbone():
    kinds = [arguments for _, arguments in PREFIX_TOKENS.values()]
    for arguments in (*kinds, {"dynamic_img_size": False}, {"name": "test_vit2"}, {"name": "test_vit3"}):
        objective, images = small(backbone=transformer(**arguments)), random_images()
        tokens = objective.encoders[0].encode(images)
        torch.testing.assert_close(tokens, objective.backbone.forward_features(images), **TOLERANCE)
        assert tokens.shape[1] == objective.tokens


def test_images_of_another_size_than_the_transformers_own_where_it_is_dynamic():
    objective = small(backbone=transformer(img_size=160, dynamic_img_size=True))
    assert objective({"views": random_images()[None]})["loss"].isfinite()
    assert objective.tokens == 1 + PATCHES


def test_an_untrained_transformer_starts_as_published():
    torch.manual_seed(0)
    backbone = transformer()
    objective = MAE(backbone, input_size=SIZE)
    assert objective.backbone is backbone
    position = backbone.pos_embed[0]
    assert not backbone.pos_embed.requires_grad
    assert not position[0].any()
    # Sines and cosines of the column, then of the row, at 16 frequencies each.
    frequency = 10_000 ** (-torch.arange(16) / 16)
    for number in range(PATCHES):
        row, column = divmod(number, SIZE // PATCH)
        parts = [f(at * frequency) for at in (column, row) for f in (torch.sin, torch.cos)]
        torch.testing.assert_close(position[1 + number], torch.cat(parts), **TOLERANCE)
    weights = backbone.blocks[0].mlp.fc1.weight
    bound = (6 / sum(weights.shape)) ** 0.5
    assert 0.95 * bound < weights.abs().max() <= bound


def test_a_trained_transformer_keeps_its_weights():
    trained = small()
    train_step(trained, 0)
    before = copy.deepcopy(trained.backbone.state_dict())
    objective = small(seed=5, backbone=trained.backbone)
    assert all(map(torch.equal, before.values(), objective.backbone.state_dict().values()))


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3"])
def test_every_trained_weight_gets_a_gradient(name):
    objective = small(backbone=transformer(name))
    objective({"views": random_images()[None]})["loss"].backward()
    trained = {name: weights for name, weights in objective.named_parameters() if weights.requires_grad}
    assert [name for name, weights in trained.items() if weights.grad is None] == []
    assert len(trained) > 40
    assert feature_size(objective.backbone, SIZE) == objective.backbone.embed_dim


def test_it_is_made_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small()


def test_a_run_that_goes_on_from_a_saved_state_is_the_same():
    objective = small()
    for step in range(3):
        train_step(objective, step)
    saved = copy.deepcopy(objective.state_dict())
    uninterrupted = [train_step(objective, step) for step in range(3, 6)]
    restored = small(seed=9)
    restored.load_state_dict(saved)
    assert [train_step(restored, step) for step in range(3, 6)] == uninterrupted
    assert all(map(torch.equal, restored.state_dict().values(), objective.state_dict().values()))


def test_forty_steps_on_one_batch_lower_the_loss():
    objective, images = small(), random_images(images=2)
    visible, hidden = objective.draw_masks(2, images.device)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=0.003)
    losses = []
    for _ in range(40):
        loss = objective.reconstruct(images, visible, hidden)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_the_loss_leaves_half_precision():
    objective, images = small(), random_images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        visible, hidden = objective.draw_masks(6, images.device)
        assert objective.draw(images, visible, hidden).dtype == torch.bfloat16
        assert objective.pixels(images, hidden).dtype == torch.float32
        assert objective({"views": images[None]})["loss"].dtype == torch.float32


def gradient(objective: MAE) -> Tensor:
    """All gradients as one vector."""
    return torch.cat([weights.grad.flatten() for weights in objective.parameters() if weights.requires_grad])


def one_step(objective: MAE, model: nn.Module, rank: int, world: int) -> tuple[Tensor, Tensor]:
    """Loss and gradient of this process's part of the images, with its part of the masks of one process."""
    torch.manual_seed(3)
    visible, hidden = objective.draw_masks(6, torch.device("cpu"))
    # Each process draws masks of its own, so that they are the same here they are drawn for all and handed out.
    objective.draw_masks = lambda images, device: (visible.chunk(world)[rank], hidden.chunk(world)[rank])
    loss = model({"views": random_images().chunk(world)[rank][None]})["loss"]
    loss.backward()
    return loss.detach(), gradient(objective)


def process(rank: int, world: int, port: int, folder: str) -> None:
    """One of `world` processes: saves loss and gradient."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    objective = small()
    torch.save(one_step(objective, DistributedDataParallel(objective), rank, world), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one_with_the_same_masks(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, (2, port, str(tmp_path)), nprocs=2)
    losses, gradients = zip(*(torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)), strict=True)
    alone = small()
    loss, expected = one_step(alone, alone, 0, 1)
    torch.testing.assert_close(sum(losses) / 2, loss, **TOLERANCE)
    for found in gradients:
        torch.testing.assert_close(found / expected.abs().max(), expected / expected.abs().max(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda: small(backbone=nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 8))),
            "objective=mae trains timm's vision transformers, found Sequential; set model=timm/vit_",
        ),
        (lambda: small(backbone=timm.create_model("test_resnet")), "found ResNet; set model=timm/vit_"),
        (
            lambda: small(backbone=transformer("test_vit3", img_size=160)),
            "takes images of 160 x 160 pixels, and views.size is 64; set model_args.img_size=64",
        ),
        (lambda: small(input_size=60), "views.size=60 must be a multiple of the patches of 16 x 16 pixels"),
        (lambda: small(mask_ratio=1.0), "objective_args.mask_ratio must show some of the 16 patches .*found 1.0"),
        (lambda: small(mask_ratio=0.0), "objective_args.mask_ratio must show some of the 16 patches .*found 0.0"),
        (lambda: small(decoder_depth=0), "objective_args.decoder_depth must be above 0, found 0"),
        (lambda: small(decoder_dim=30), "objective_args.decoder_dim=30 must be a multiple of 4 and of decoder_heads=4"),
    ],
)
def test_a_mistake_is_one_line(make, line):
    with pytest.raises(ValueError, match=line):
        make()
