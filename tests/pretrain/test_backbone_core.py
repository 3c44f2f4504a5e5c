"""Backbones as cores: the layer's own activation, nothing that is not needed, video frame by frame and inflated."""

import pytest
import torch
from torch import nn

from pretrain.models import create_model
from pretrain.models.backbone_core import BackboneCore, backbone_core
from transfer.features import extract_features

PLAIN = {"final_norm": False, "final_nonlinearity": False}
# A model, its arguments, a layer, the size of the images.
CUT = [
    ("alexnet_bn", {}, "features.6", (48, 64)),
    ("dual_stream", {"num_classes": 0}, "VISp", (64, 64)),
    ("mousenet", {"num_classes": 0}, "VISp4", (64, 64)),
    ("timm/test_resnet", {}, "layer2", (36, 64)),
    ("timm/test_vit", {"img_size": (32, 64)}, "blocks.2", (32, 64)),
]


@pytest.mark.parametrize(("name", "arguments", "layer", "size"), CUT)
def test_maps_are_the_layer_s_own(name, arguments, layer, size):
    torch.manual_seed(0)
    backbone = create_model(name, **arguments).eval()
    images = torch.randn(2, 3, *size)
    expected = extract_features(backbone, images, [layer])[layer]
    core = BackboneCore(backbone, layer, size, **PLAIN).eval()
    found = core(images)
    if expected.ndim == 3:
        expected = expected[:, backbone.num_prefix_tokens :].transpose(1, 2).reshape(found.shape)
    torch.testing.assert_close(found, expected)
    assert tuple(found.shape[1:]) == core.output_shape(*size)
    assert found.shape[1] == core.out_channels


@pytest.mark.parametrize(("name", "arguments", "layer", "size"), CUT)
def test_every_parameter_that_is_left_has_a_part(name, arguments, layer, size):
    core = BackboneCore(create_model(name, **arguments), layer, size)
    core(torch.randn(2, 3, *size)).square().sum().backward()
    idle = [name for name, value in core.named_parameters() if value.requires_grad and value.grad is None]
    assert idle == []


def test_patches_lie_on_the_grid_of_the_image():
    """A picture whose left half is bright gives maps that differ between left and right, not between top and bottom."""
    torch.manual_seed(0)
    core = backbone_core(
        "timm/test_vit", "patch_embed", {"img_size": (32, 64), "pos_embed": "none"}, input_size=(32, 64), **PLAIN
    )
    image = torch.zeros(1, 1, 32, 64)
    image[..., :32] = 1
    maps = core.eval()(image)
    assert maps.shape[2:] == (2, 4)
    torch.testing.assert_close(maps[:, :, 0], maps[:, :, 1])
    assert not torch.allclose(maps[..., 0], maps[..., 3])


def test_video_frame_by_frame():
    core = backbone_core("timm/test_resnet", "layer2").eval()
    video = torch.randn(2, 1, 3, 36, 64)
    found = core(video)
    assert tuple(found.shape[1:]) == core.output_shape(3, 36, 64)
    for frame in range(3):
        torch.testing.assert_close(found[:, :, frame], core(video[:, :, frame]))


def test_still_videos_give_what_the_image_gave():
    """At every frame, whatever is inflated (Carreira & Zisserman 2017, section 2.1)."""
    torch.manual_seed(0)
    backbone = create_model("timm/test_resnet")
    image = torch.randn(2, 1, 36, 64)
    expected = BackboneCore(backbone, "layer2", **PLAIN).eval()(image)
    inflated = BackboneCore(backbone, "layer2", inflate=3, inflated_frames=4, **PLAIN).eval()
    found = inflated(image[:, :, None].expand(-1, -1, 5, -1, -1))
    torch.testing.assert_close(found, expected[:, :, None].expand_as(found), rtol=1e-4, atol=1e-4)


def test_inflated_convolutions_see_the_past_only():
    torch.manual_seed(0)
    core = backbone_core("timm/test_resnet", "layer1", inflate=1, inflated_frames=3, **PLAIN).eval()
    video = torch.randn(1, 1, 8, 32, 32)
    before = core(video)
    video[:, :, 4] += 1
    changed = (core(video) - before).abs().amax((0, 1, 3, 4)) > 1e-5
    assert changed.tolist() == [False] * 4 + [True] * 3 + [False]


def test_batches_of_clips_do_not_mix():
    torch.manual_seed(0)
    core = backbone_core("timm/test_resnet", "layer1", inflate=2, **PLAIN).eval()
    clips = torch.randn(3, 1, 4, 32, 32)
    torch.testing.assert_close(core(clips)[1:2], core(clips[1:2]), rtol=1e-4, atol=1e-5)


def test_a_backbone_that_does_not_learn_keeps_its_statistics():
    core = backbone_core("timm/test_resnet", "layer2", trained=False).train()
    before = {name: value.clone() for name, value in core.backbone.state_dict().items()}
    core(torch.randn(2, 1, 36, 64)).square().sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in core.backbone.state_dict().items())
    assert [name for name, value in core.named_parameters() if value.grad is not None] == ["norm.weight", "norm.bias"]
    assert float(core.regularizer()) == 0


def test_bfloat16():
    core = backbone_core("timm/test_resnet", "layer2", inflate=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert core(torch.randn(1, 1, 3, 36, 64)).isfinite().all()


def test_mistakes_are_one_line():
    with pytest.raises(ValueError, match="no layer 'layer9'; nearest: layer"):
        backbone_core("timm/test_resnet", "layer9")
    with pytest.raises(ValueError, match=r"gives no maps .* but shape \(1, 1000\)"):
        backbone_core("timm/test_resnet", "fc")
    with pytest.raises(ValueError, match="only 1 convolutions run"):
        backbone_core("timm/test_vit", "blocks.2", {"img_size": (32, 64)}, input_size=(32, 64), inflate=2)
    with pytest.raises(ValueError, match="cannot be inflated: it is no plain Conv2d but MaskedConv2d"):
        backbone_core("mousenet", "VISp4", input_size=(64, 64), inflate=1)
    with pytest.raises(ValueError, match="takes videos"):
        backbone_core("timm/test_resnet", "layer1", inflate=1)(torch.zeros(1, 1, 36, 64))
    with pytest.raises(ValueError, match="takes no part"):
        BackboneCore(Lazy(), "idle")


class Lazy(nn.Module):
    """Has a layer that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.used(images)
