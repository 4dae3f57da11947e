"""A converted network whose gates decide differently from clip to clip, and clips for it."""

import pytest
import torch
from networks import make_clip, randomise_gates, randomise_rebuilds, tiny_net
from torch import Tensor, fx

from vared2_fx import ConvertConfig, convert

CONFIG = ConvertConfig(exclude=("down.*",), min_macs_share=0)


@pytest.fixture
def dynamic() -> fx.GraphModule:
    """TinyNet: five dynamic convolutions, one static, a linear layer."""
    made = convert(tiny_net(), make_clip(1, 3, 8, 16, 16), CONFIG)
    return randomise_gates(randomise_rebuilds(made))


@pytest.fixture
def clips() -> Tensor:
    """Six clips (6, 3, 8, 16, 16), from faint to bright, the last two without motion."""
    noise = make_clip(6, 3, 8, 16, 16, seed=1)
    noise[4:] = noise[4:, :, :1]
    return noise * torch.tensor([0.1, 0.5, 1.0, 4.0, 0.5, 4.0]).view(6, 1, 1, 1, 1)
