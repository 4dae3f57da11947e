"""pytorchvideo's Swish becomes SiLU, wherever it is."""

import pytest
import torch
import torch.nn.functional as F
from networks import make_clip
from pytorchvideo.layers.swish import Swish, SwishFunction
from torch import nn

from vared2_fx.passes.deploy.follow import follow
from vared2_fx.passes.deploy.replace_swish import replace_swish

CLIP = make_clip(2, 4, 5, 6, 6)
NEAR = {"rtol": 1e-6, "atol": 1e-6}
"""One function, computed as a product of two or at once."""


class Inline(nn.Module):
    """Computes a function of what its convolution gives."""

    def __init__(self, function=None):
        super().__init__()
        self.conv, self.function = nn.Conv3d(4, 4, 1), function

    def forward(self, x):
        return self.function(self.conv(x))


def gated_and_gate(x):
    gate = torch.sigmoid(x)
    return x * gate + gate


class Gating(nn.Module):
    """Squeeze and excitation: no Swish, though it looks like one."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(4, 4, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.conv(x))


class Branching(nn.Module):
    """Cannot be followed, and is kept whole."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv3d(4, 4, 1), Swish()

    def forward(self, x):
        return self.act(self.conv(x)) if x.sum() > 1e9 else self.act(self.conv(-x))


def replaced(part: nn.Module):
    torch.manual_seed(0)
    gm = follow(nn.Sequential(nn.Conv3d(4, 4, 1), part), (CLIP,))
    return gm, replace_swish(gm)


PARTS = {
    "module": lambda: Swish(),
    "module in another": lambda: nn.Sequential(nn.Identity(), Swish()),
    "autograd function": lambda: Inline(SwishFunction.apply),
    "written out": lambda: Inline(lambda x: x.sigmoid() * x),
    "in a leaf": Branching,
}


@pytest.mark.parametrize("kind", PARTS)
def test_swish_is_replaced(kind):
    gm, out = replaced(PARTS[kind]())
    assert not any(isinstance(module, Swish) for module in out.modules())
    functions = [node.target for node in out.graph.nodes if node.op == "call_function"]
    assert functions.count(F.silu) + sum(isinstance(module, nn.SiLU) for module in out.modules()) == 1
    torch.testing.assert_close(out(CLIP), gm(CLIP), **NEAR)


def test_the_gate_that_others_need_stays():
    gm, out = replaced(Inline(gated_and_gate))
    assert {F.silu, torch.sigmoid} <= {node.target for node in out.graph.nodes}
    torch.testing.assert_close(out(CLIP), gm(CLIP), **NEAR)


def test_what_is_no_swish_stays():
    gm, out = replaced(Gating())
    assert out.code == gm.code
    torch.testing.assert_close(out(CLIP), gm(CLIP), rtol=0, atol=0)


@pytest.mark.parametrize("kind", PARTS)
def test_the_source_stays_as_it_is(kind, untouched):
    gm = follow(nn.Sequential(nn.Conv3d(4, 4, 1), PARTS[kind]()), (CLIP,))
    code, kinds = gm.code, [type(module) for module in gm.modules()]
    with untouched(gm):
        replace_swish(gm)
    assert (gm.code, [type(module) for module in gm.modules()]) == (code, kinds)
