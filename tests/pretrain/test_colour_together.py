"""Colours of a whole batch at once equal those that a CPU makes view by view, compiled or not."""

import shutil
from dataclasses import replace
from itertools import permutations

import pytest
import torch

from pretrain import colour_together as module
from pretrain.augment import ViewParameters, draw_parameters, make_view
from pretrain.colour import CONTRAST
from pretrain.colour_together import NOTHING, colour_together, compiled, packed, paint, slots_of
from pretrain.config import ViewsConfig
from pretrain.resample import resample

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
SIZE, COUNT = 16, 64
CONFIG = ViewsConfig(
    jitter_probability=0.8,
    grayscale_probability=0.3,
    blur_probability=[0.5],
    blur_sigma_max=20.0,
    solarize_probability=[0.3],
)


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (COUNT, 3, 24, 24), generator=generator, dtype=torch.uint8)
    return images, torch.full((COUNT, 2), 24)


def both_ways(config: ViewsConfig, colours: object) -> tuple[torch.Tensor, torch.Tensor]:
    images, sizes = batch()
    drawn = draw_parameters(sizes, config, torch.Generator().manual_seed(1))
    view = resample(images, drawn.crop, SIZE, drawn.flip)
    return colours(view, drawn), make_view(images, drawn, SIZE, MEAN, STD)


def blurs(drawn: ViewParameters) -> bool:
    return bool((drawn.blur > 0).any())


@pytest.mark.parametrize("grayscale_first", [True, False])
def test_all_at_once_equals_view_by_view(grayscale_first):
    def painted(view, drawn):
        assert blurs(drawn)
        return paint(view, packed(drawn), MEAN, STD, grayscale_first, True)

    found, expected = both_ways(replace(CONFIG, grayscale_first=grayscale_first), painted)
    near_threshold = (expected * STD[:, None, None] + MEAN[:, None, None] - 0.5).abs() < 1e-4
    assert near_threshold.float().mean() < 0.01
    torch.testing.assert_close(found[~near_threshold], expected[~near_threshold], rtol=0, atol=1e-4)


def test_what_no_sample_has_changes_nothing():
    config = replace(CONFIG, blur_probability=[0.0], solarize_probability=[0.0])

    def painted(view, drawn):
        with_blur, without = (paint(view, packed(drawn), MEAN, STD, True, blurs) for blurs in (True, False))
        assert torch.equal(with_blur, without)
        return without

    torch.testing.assert_close(*both_ways(config, painted), rtol=0, atol=1e-4)


@pytest.mark.parametrize("probability", [0.0, 0.05])
def test_the_blur_is_left_out_where_no_sample_has_it(monkeypatch, probability):
    asked = []
    monkeypatch.setattr(module, "compiled", lambda device: lambda *arguments: asked.append(arguments) or arguments[0])
    config = replace(CONFIG, blur_probability=[probability])

    def coloured(view, drawn):
        colour_together(view, drawn, MEAN, STD)
        assert asked[-1][-1] is blurs(drawn) is (probability > 0)
        return view

    both_ways(config, coloured)


def test_every_order_keeps_its_operations_around_the_contrast():
    orders = torch.tensor(list(permutations(range(4))))
    for order, slots in zip(orders.tolist(), slots_of(orders).tolist(), strict=True):
        before, after = ([one for one in half if one != NOTHING] for half in (slots[:3], slots[3:]))
        assert [*before, CONTRAST, *after] == order


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler on a CPU, and there is no c++")
def test_compiled_colours_equal_plain_ones():
    """With blur and without it, in turn, as the batches of one run may have it."""

    def coloured(view, drawn):
        return colour_together(view, drawn, MEAN, STD)

    for probability in (0.5, 0.0, 0.5):
        found, expected = both_ways(replace(CONFIG, blur_probability=[probability]), coloured)
        assert (found - expected).abs().median() < 1e-6
        assert ((found - expected).abs() > 1e-3).float().mean() < 1e-3


def test_without_a_compiler_colours_are_made_all_the_same_and_it_is_said_once(monkeypatch, capsys):
    def refuse(function, **options):
        def fails(*arguments):
            raise RuntimeError("no compiler found\nmore")

        return fails

    monkeypatch.setattr(module.torch, "compile", refuse)
    compiled.cache_clear()
    first, expected = both_ways(
        replace(CONFIG, solarize_probability=[0.0]), lambda v, d: colour_together(v, d, MEAN, STD)
    )
    both_ways(CONFIG, lambda view, drawn: colour_together(view, drawn, MEAN, STD))
    compiled.cache_clear()
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-4)
    assert capsys.readouterr().err.count("made without torch.compile") == 1


def test_memory_that_ends_is_no_reason_to_stop_compiling(monkeypatch):
    def exhausted(function, **options):
        def fails(*arguments):
            raise torch.OutOfMemoryError("CUDA out of memory")

        return fails

    monkeypatch.setattr(module.torch, "compile", exhausted)
    compiled.cache_clear()
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            both_ways(CONFIG, lambda view, drawn: colour_together(view, drawn, MEAN, STD))
    compiled.cache_clear()
