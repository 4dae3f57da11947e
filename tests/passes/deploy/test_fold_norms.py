"""Batch norms folded, or left alone where that would not be the same."""

import pytest
import torch
from networks import make_clip, randomise_rebuilds, tiny_net
from torch import fx, nn
from torch.nn.utils import parametrizations

import vared2_fx as vr
from vared2_fx.passes.deploy.fold_norms import fold_norms
from vared2_fx.passes.deploy.follow import follow
from vared2_fx.passes.deploy.settle_variants import settle_variants
from vared2_fx.passes.trace import calls

CLIP = make_clip(2, 4, 5, 6, 6)
NEAR = {"rtol": 1e-5, "atol": 1e-5}
"""A weight and a bias are rounded once more each, values are of order one."""


def random_norm(norm: nn.Module) -> nn.Module:
    with torch.no_grad():
        for value in (norm.weight, norm.bias, norm.running_mean):
            if value is not None:
                value.normal_()
        if norm.running_var is not None:
            norm.running_var.uniform_(0.5, 2.0)
    return norm.eval()


def folded(net: nn.Module, *args: torch.Tensor) -> tuple[fx.GraphModule, fx.GraphModule]:
    gm = follow(net, args)
    return gm, fold_norms(gm)


def num_norms(gm: fx.GraphModule) -> int:
    return len(calls(gm, nn.modules.batchnorm._BatchNorm))


class Simple(nn.Conv3d):
    """A subclass with the standard forward."""


class Doubling(nn.Conv3d):
    """A subclass that computes something else."""

    def forward(self, x):
        return 2 * super().forward(x)


PLAIN = {
    "plain": lambda: nn.Conv3d(4, 6, 3),
    "no bias": lambda: nn.Conv3d(4, 6, 3, bias=False),
    "strided": lambda: nn.Conv3d(4, 6, 3, stride=(1, 2, 2), padding=1),
    "dilated": lambda: nn.Conv3d(4, 6, (1, 3, 3), dilation=(1, 2, 2)),
    "grouped": lambda: nn.Conv3d(4, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv3d(4, 4, 3, groups=4, bias=False),
    "circular": lambda: nn.Conv3d(4, 6, 3, padding=1, padding_mode="circular"),
    "same": lambda: nn.Conv3d(4, 6, 3, padding="same"),
    "subclass": lambda: Simple(4, 6, 3),
    "transposed": lambda: nn.ConvTranspose3d(4, 6, 2, stride=2),
}


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_behind_a_convolution_is_folded(kind, affine):
    torch.manual_seed(0)
    conv = PLAIN[kind]()
    gm, out = folded(nn.Sequential(conv, random_norm(nn.BatchNorm3d(conv.out_channels, affine=affine))), CLIP)
    assert (num_norms(gm), num_norms(out)) == (1, 0)
    torch.testing.assert_close(out(CLIP), gm(CLIP), **NEAR)


def test_a_forgotten_norm_is_noticed():  # the control: the comparison above is able to fail
    torch.manual_seed(0)
    conv = nn.Conv3d(4, 6, 3)
    assert not torch.allclose(nn.Sequential(conv, random_norm(nn.BatchNorm3d(6)))(CLIP), conv(CLIP), atol=0.1)


def test_linear_and_two_dimensional_layers():
    torch.manual_seed(0)
    for net, x in (
        (nn.Sequential(nn.Linear(4, 6), random_norm(nn.BatchNorm1d(6))), make_clip(3, 4)),
        (nn.Sequential(nn.Conv2d(4, 6, 3), random_norm(nn.BatchNorm2d(6))), make_clip(2, 4, 5, 5)),
        (nn.Sequential(nn.Conv1d(4, 6, 3), random_norm(nn.BatchNorm1d(6))), make_clip(2, 4, 5)),
    ):
        gm, out = folded(net, x)
        assert num_norms(out) == 0
        torch.testing.assert_close(out(x), gm(x), **NEAR)


def test_a_norm_over_another_axis_than_the_linear_layers():
    torch.manual_seed(0)
    gm, out = folded(nn.Sequential(nn.Linear(4, 6), random_norm(nn.BatchNorm1d(6))), x := make_clip(2, 6, 4))
    assert num_norms(out) == 1
    torch.testing.assert_close(out(x), gm(x), rtol=0, atol=0)


class Twice(nn.Module):
    """Calls its convolution twice, with a norm for each."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(4, 4, 3, padding=1)
        self.norms = nn.ModuleList(random_norm(nn.BatchNorm3d(4)) for _ in range(2))

    def forward(self, x):
        return self.norms[1](self.conv(self.norms[0](self.conv(x))))


class Shared(nn.Module):
    """Its convolution has two names."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv3d(4, 4, 3, padding=1)
        self.b = self.a
        self.norms = nn.ModuleList(random_norm(nn.BatchNorm3d(4)) for _ in range(2))

    def forward(self, x):
        return self.norms[1](self.b(self.norms[0](self.a(x))))


class Seen(nn.Module):
    """Uses what its convolution gives elsewhere, too."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv3d(4, 4, 3), random_norm(nn.BatchNorm3d(4))

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


class ReadsWeight(Seen):
    """Uses its convolution's weight elsewhere, too."""

    def forward(self, x):
        return self.norm(self.conv(x)) + self.conv.weight.sum()


class Between(Seen):
    """Has an activation between."""

    def forward(self, x):
        return self.norm(self.conv(x).relu())


def hooked():
    net = nn.Sequential(nn.Conv3d(4, 6, 3), random_norm(nn.BatchNorm3d(6)))
    net[0].register_forward_hook(lambda m, x, y: y + 1)
    return net


LEFT = {
    "called twice": Twice,
    "two names": Shared,
    "seen elsewhere": Seen,
    "weight read": ReadsWeight,
    "activation between": Between,
    "computes otherwise": lambda: nn.Sequential(Doubling(4, 6, 3), random_norm(nn.BatchNorm3d(6))),
    "batch statistics": lambda: nn.Sequential(nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6, track_running_stats=False)),
    "hooked": hooked,
    "parametrized": lambda: nn.Sequential(
        parametrizations.weight_norm(nn.Conv3d(4, 6, 3)), random_norm(nn.BatchNorm3d(6))
    ),
    "instance norm": lambda: nn.Sequential(nn.Conv3d(4, 6, 3), nn.InstanceNorm3d(6)),
    "transposed in groups": lambda: nn.Sequential(
        nn.ConvTranspose3d(4, 6, 2, groups=2), random_norm(nn.BatchNorm3d(6))
    ),
}


@pytest.mark.parametrize("kind", LEFT)
def test_what_would_not_be_the_same_is_left(kind):
    torch.manual_seed(0)
    gm, out = folded(LEFT[kind](), CLIP)
    assert num_norms(out) == num_norms(gm)
    torch.testing.assert_close(out(CLIP), gm(CLIP), rtol=0, atol=0)


def test_a_norm_in_training_is_left():
    gm = follow(nn.Sequential(nn.Conv3d(4, 6, 3), random_norm(nn.BatchNorm3d(6))), (CLIP,))
    gm.get_submodule("1").train()
    assert num_norms(fold_norms(gm)) == 1


def test_the_source_stays_as_it_is(untouched):
    gm = follow(tiny_net(), (make_clip(1, 3, 8, 16, 16),))
    code = gm.code
    with untouched(gm):
        out = fold_norms(gm)
    assert gm.code == code
    assert (num_norms(gm), num_norms(out)) == (4, 0)
    assert num_norms(fold_norms(out)) == 0  # twice is once


def test_a_whole_network_at_other_sizes():
    gm = follow(tiny_net(), (make_clip(1, 3, 8, 16, 16),))
    out = fold_norms(gm)
    for clip in (make_clip(3, 3, 8, 16, 16), make_clip(1, 3, 5, 20, 20)):
        torch.testing.assert_close(out(clip), gm(clip), **NEAR)


@pytest.mark.parametrize("rebuild", ["hold", "repeat", "interpolate"])
@pytest.mark.parametrize("choice", [(1, 1.0), (2, 1.0), (4, 1.0)])
def test_a_norm_behind_rebuilt_frames_is_folded_into_both(rebuild, choice):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(4, 8, 3, padding=1), random_norm(nn.BatchNorm3d(8)), nn.ReLU()).eval()
    clip = make_clip(2, 4, 7, 6, 6)
    dynamic = vr.convert(model, clip, vr.ConvertConfig(frame_rebuild=rebuild, min_macs_share=0.0))
    if rebuild != "hold":
        randomise_rebuilds(dynamic)
    static = vr.specialize(dynamic, {"*": choice})
    gm, out = folded(settle_variants(static), clip)
    assert (num_norms(gm), num_norms(out)) == (1, 0)
    torch.testing.assert_close(out(clip), static(clip), rtol=1e-4, atol=1e-4)
