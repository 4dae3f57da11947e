"""`convolve` is `F.conv3d`, and keeps the layout of a clip of few frames."""

import pytest
import torch
import torch.nn.functional as F
from networks import make_clip

from vared2_fx.layers.convolve import convolve

LAYOUT = torch.channels_last_3d
SHAPES = [
    # kernel, stride, padding: what mixes no frames, what mixes nothing else, and what mixes all
    ((1, 1, 1), (1, 1, 1), (0, 0, 0)),
    ((1, 3, 3), (1, 2, 2), (0, 1, 1)),
    ((1, 3, 3), (2, 1, 1), (0, 1, 1)),
    ((3, 1, 1), (1, 1, 1), (1, 0, 0)),
    ((3, 1, 1), (2, 1, 1), (0, 0, 0)),
    ((3, 1, 1), (1, 2, 2), (1, 0, 0)),
    ((1, 1, 1), (1, 1, 1), (1, 1, 1)),
    ((3, 3, 3), (1, 1, 1), (1, 1, 1)),
]


@pytest.mark.parametrize(("kernel", "stride", "padding"), SHAPES)
@pytest.mark.parametrize("layout", [LAYOUT, torch.contiguous_format])
@pytest.mark.parametrize("clips", [1, 2])
@pytest.mark.parametrize("skipped", [False, True])
def test_computes_the_same(kernel, stride, padding, layout, clips, skipped):
    x = make_clip(clips, 8, 9, 10, 7).to(memory_format=layout)
    x = x[:, :, 1::2] if skipped else x
    weight, bias = make_clip(6, 8, *kernel, seed=1).to(memory_format=layout), make_clip(6, seed=2)
    given = (weight, bias, stride, padding, (1, 1, 1), 1)
    torch.testing.assert_close(convolve(x, *given), F.conv3d(x, *given), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", ["same", (1, 1, 1)])
def test_groups_and_padding_in_words(padding):
    x, weight = make_clip(1, 8, 4, 6, 6).to(memory_format=LAYOUT), make_clip(8, 4, 3, 3, 3, seed=1)
    given = (weight, None, (1, 1, 1), padding, (1, 1, 1), 2)
    assert torch.equal(convolve(x, *given), F.conv3d(x, *given))


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("kernel", [(1, 1, 1), (1, 3, 3), (3, 1, 1)])
def test_keeps_the_layout(kernel):
    padding = tuple(size // 2 for size in kernel)
    x = make_clip(1, 16, 8, 24, 24).to(memory_format=LAYOUT)[:, :, 1::2]
    weight = make_clip(16, 16, *kernel, seed=1).to(memory_format=LAYOUT)
    y = convolve(x, weight, None, (1, 1, 1), padding, (1, 1, 1), 1)
    assert y.is_contiguous(memory_format=LAYOUT)
    assert y.shape == (1, 16, 4, 24, 24)


def test_gradients_are_the_same():
    given = (None, (1, 1, 1), (0, 0, 0), (1, 1, 1), 1)
    found = []
    for call in (convolve, F.conv3d):
        x = make_clip(1, 8, 4, 6, 6).to(memory_format=LAYOUT).requires_grad_()
        weight = make_clip(8, 8, 1, 1, 1, seed=1).requires_grad_()
        call(x, weight, *given).square().sum().backward()
        found.append((x.grad, weight.grad))
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)
