"""What evaluation hands on unchanged is taken out; what might do something stays."""

import pytest
import torch
import torch.nn.functional as F
from networks import make_clip
from pytorchvideo.layers.drop_path import DropPath
from torch import nn
from torchvision.ops import StochasticDepth

from vared2_fx.passes.deploy.drop_inactive import drop_inactive
from vared2_fx.passes.deploy.follow import follow

CLIP = make_clip(2, 4, 5, 6, 6)


class Functional(nn.Module):
    def __init__(self, drop):
        super().__init__()
        self.conv, self.drop = nn.Conv3d(4, 4, 1), drop

    def forward(self, x):
        return self.drop(self.conv(x), self.training)


def net(*parts: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(4, 4, 1), *parts)


DROPPED = {
    "dropout": lambda: net(nn.Dropout(0.5)),
    "dropout3d": lambda: net(nn.Dropout3d(0.5)),
    "alpha dropout": lambda: net(nn.AlphaDropout(0.5)),
    "stochastic depth": lambda: net(StochasticDepth(0.5, "row")),
    "drop path": lambda: net(DropPath(0.5)),
    "identity": lambda: net(nn.Identity()),
    "pooling over one value": lambda: net(nn.MaxPool3d(1, 1), nn.ReLU()),
    "average over one value": lambda: net(nn.AvgPool3d((1, 1, 1), (1, 1, 1))),
    "adaptive to what is there": lambda: net(nn.AdaptiveAvgPool3d((None, None, None))),
    "functional": lambda: Functional(lambda x, training: F.dropout(x, 0.5, training)),
    "functional, named": lambda: Functional(lambda x, training: F.dropout3d(x, p=0.5, training=training)),
    "torch.dropout": lambda: Functional(lambda x, training: torch.dropout(x, 0.5, training)),
}


@pytest.mark.parametrize("kind", DROPPED)
def test_it_is_taken_out(kind):
    gm = follow(DROPPED[kind](), (CLIP,))
    out = drop_inactive(gm)
    left = [type(out.get_submodule(node.target)) for node in out.graph.find_nodes(op="call_module")]
    assert set(left) <= {nn.Conv3d, nn.ReLU}
    assert not out.graph.find_nodes(op="call_function", target=F.dropout)
    assert not out.graph.find_nodes(op="call_function", target=torch.dropout)
    torch.testing.assert_close(out(CLIP), gm(CLIP), rtol=0, atol=0)


class AddsInPlace(nn.Module):
    """Writes into what pooling gives, and uses what it was given."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv3d(4, 4, 1), nn.MaxPool3d(1, 1)

    def forward(self, x):
        y = self.conv(x)
        z = self.pool(y).add_(1)
        return y * z


LEFT = {
    "pooling with a stride": lambda: net(nn.MaxPool3d(1, 2)),
    "pooling": lambda: net(nn.MaxPool3d((1, 2, 2), 1)),
    "padded": lambda: net(nn.AvgPool3d(3, 1, padding=1)),
    "divisor": lambda: net(nn.AvgPool3d(1, 1, divisor_override=2)),
    "adaptive": lambda: net(nn.AdaptiveAvgPool3d((None, 2, 2))),
    "written into": AddsInPlace,
    "input": lambda: nn.Sequential(nn.MaxPool3d(1, 1), nn.ReLU(inplace=True), nn.Conv3d(4, 4, 1)),
}


@pytest.mark.parametrize("kind", LEFT)
def test_what_does_something_stays(kind):
    gm = follow(LEFT[kind](), (CLIP,))
    out = drop_inactive(gm)
    assert out.code == gm.code
    torch.testing.assert_close(out(CLIP.clone()), gm(CLIP.clone()), rtol=0, atol=0)


def test_dropout_that_is_always_on_stays():
    out = drop_inactive(follow(Functional(lambda x, training: F.dropout(x, 0.5)), (CLIP,)))  # as its author says
    assert out.graph.find_nodes(op="call_function", target=F.dropout)


def test_dropout_in_training_stays():
    gm = follow(net(nn.Dropout(0.5)), (CLIP,))
    gm.get_submodule("1").train()
    assert drop_inactive(gm).code == gm.code


def test_the_source_stays_as_it_is(untouched):
    gm = follow(Functional(lambda x, training: F.dropout(x, 0.5, training)), (CLIP,))
    code = gm.code
    with untouched(gm):
        out = drop_inactive(gm)
    assert gm.code == code
    assert drop_inactive(out).code == out.code  # twice is once
