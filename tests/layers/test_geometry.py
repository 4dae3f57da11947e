"""Sizes, kept channels and multiply-adds, against torch's own convolution."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vared2_fx.errors import ConvertError
from vared2_fx.layers import FULL, Choice, ChoiceGrid, ConvGeometry, ConvVariant

CONVS = {
    "plain": nn.Conv3d(4, 6, 3),
    "strided": nn.Conv3d(4, 6, (3, 2, 1), stride=(2, 3, 1), padding=(2, 1, 0)),
    "dilated": nn.Conv3d(4, 6, 3, dilation=(2, 1, 3), padding=(1, 0, 3)),
    "grouped": nn.Conv3d(4, 6, 3, groups=2, padding=1),
    "depthwise": nn.Conv3d(5, 5, 3, groups=5, padding=1),
    "multiplier": nn.Conv3d(4, 12, 3, groups=4, padding=1),
    "same": nn.Conv3d(4, 6, 3, dilation=2, padding="same"),
    "valid": nn.Conv3d(4, 6, 3, padding="valid"),
    "pointwise": nn.Conv3d(4, 7, 1),
}


@pytest.mark.parametrize("name", CONVS)
def test_sizes_and_cost_are_torchs(name):
    conv, in_size = CONVS[name], (9, 11, 12)
    geometry, x = ConvGeometry.of(conv), torch.randn(1, conv.in_channels, *in_size)
    with FlopCounterMode(display=False) as counter:
        y = conv(x)
    assert geometry.out_size(in_size) == tuple(y.shape[2:])
    assert geometry.out_frames(9) == y.shape[2]
    assert 2 * geometry.macs(in_size) == counter.get_total_flops()


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("choice", [Choice(2, 1.0), Choice(1, 0.5), Choice(4, 0.3)], ids=str)
def test_cost_of_a_choice_is_what_runs(name, choice):
    conv, in_size = CONVS[name], (9, 11, 12)
    with FlopCounterMode(display=False) as counter:
        computed = ConvVariant(conv, choice, None, None).compute(torch.randn(1, conv.in_channels, *in_size))
    assert 2 * ConvGeometry.of(conv).macs(in_size, choice) == counter.get_total_flops()
    assert computed.shape[1] == ConvGeometry.of(conv).kept_channels(choice.channel_share)


@pytest.mark.parametrize(
    ("out_channels", "groups", "share", "kept"),
    [
        (8, 1, 0.5, 4),
        (7, 1, 0.5, 4),  # ⌈3.5⌉
        (3, 1, 1 / 3, 1),
        (100, 1, 0.07, 7),  # 0.07 · 100 is a little above 7
        (9, 1, 1 / 3, 3),
        (10, 1, 0.1, 1),
        (5, 1, 0.01, 1),  # never none
        (8, 1, 1.0, 8),
        (5, 5, 0.5, 3),  # depthwise: groups
        (12, 4, 0.5, 6),  # whole groups of 3
        (12, 4, 0.3, 6),  # ⌈1.2⌉ groups
        (12, 4, 0.25, 3),
    ],
)
def test_kept_channels(out_channels, groups, share, kept):
    geometry = ConvGeometry.of(nn.Conv3d(groups * 2, out_channels, 1, groups=groups))
    assert geometry.kept_channels(share) == kept


def test_uneven_same_padding_is_refused():
    with pytest.raises(ConvertError, match="pads one side more"):
        ConvGeometry.of(nn.Conv3d(4, 4, (2, 3, 3), padding="same"))


def test_grid_holds_every_choice_once_the_full_one_first():
    grid = ChoiceGrid((1, 2, 4), (1.0, 0.5))
    assert len(grid) == len(set(grid.all())) == 6
    assert grid.all()[0] == grid[0, 0] == FULL
    assert [grid[grid.index(choice)] for choice in grid.all()] == list(grid.all())
    assert str(grid[2, 1]) == "R=4 r=0.5"


def test_geometry_names_the_operation():
    assert str(ConvGeometry.of(CONVS["strided"])) == "Conv3d 4→6 3×2×1 /2×3×1"
    assert str(ConvGeometry.of(CONVS["depthwise"])) == "Conv3d 5→5 3×3×3 groups=5"


def test_sizes_from_numpy_are_plain_numbers():
    """pytorchvideo gives some of its convolutions strides of numpy, and counts made of them go into JSON."""
    conv = nn.Conv3d(4, 8, 3, stride=tuple(np.array([1, 2, 2])), padding=1)
    geometry = ConvGeometry.of(conv)
    assert {type(size) for size in (*geometry.stride, *geometry.kernel_size, *geometry.padding)} == {int}
    assert json.dumps(geometry.macs((4, 8, 8))) == str(4 * 27 * 8 * 4 * 4 * 4)
