"""Sums and ReLU that convolutions take over, and packed weights: the same values, and fewer passes."""

import pytest
import torch
from networks import make_clip
from torch import Tensor, fx, nn

from vared2_fx.passes.deploy.fused_convs import fuse_convs, pack_weights
from vared2_fx.passes.deploy.onednn import PackedWeight, onednn_conv, onednn_convs
from vared2_fx.passes.deploy.skipping_convs import conv_of_every_rth, skipping_convs

LAST = torch.channels_last_3d
NEAR = {"rtol": 1e-4, "atol": 1e-5}
"""oneDNN takes another kernel, which adds in another order."""


class Block(nn.Module):
    """Two convolutions, and what `after` makes of their results and of the input."""

    def __init__(self, after, out_channels: int = 8) -> None:
        super().__init__()
        self.a, self.b = nn.Conv3d(8, out_channels, 3, padding=1), nn.Conv3d(8, out_channels, 1, bias=False)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        """(N, 8, T, H, W) → (N, C, T, H, W)."""
        return self.after(self.a(x), self.b(x), x)


def fused(model: nn.Module, clip: Tensor) -> fx.GraphModule:
    free = ({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO},)
    exported = torch.export.export(model.eval(), (clip,), dynamic_shapes=free).module(check_guards=False)
    return pack_weights(fuse_convs(skipping_convs(onednn_convs(exported))))


def functions(gm: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in gm.graph.nodes if node.op == "call_function"]


def others(gm: fx.GraphModule) -> list[str]:
    return [name for name in functions(gm) if name.startswith("aten.") and not name.startswith("aten.sym")]


def compare(model: nn.Module, gm: fx.GraphModule) -> None:
    for clips, frames in ((2, 4), (1, 4), (3, 2)):
        clip = make_clip(clips, 8, frames, 6, 6).contiguous(memory_format=LAST)
        kept = clip.clone()
        with torch.no_grad():
            got, expected = gm(clip), model(clip.clone())
        torch.testing.assert_close(got, expected, **NEAR)
        assert got.is_contiguous(memory_format=LAST)
        if not getattr(model, "writes", False):
            assert torch.equal(clip, kept)


@pytest.mark.parametrize(
    ("after", "left"),
    [
        (lambda a, b, x: (a + x).relu(), 0),
        (lambda a, b, x: torch.relu_(a.add_(x)), 0),
        (lambda a, b, x: (x + a).relu(), 0),
        (lambda a, b, x: (a + b).relu_(), 0),
        (lambda a, b, x: x + a.relu(), 1),  # the sum after it
        (lambda a, b, x: (a + b + x).relu_(), 2),  # one sum for each convolution, and here they are the same one's
    ],
)
def test_sum_and_relu_become_the_convolutions(after, left):
    torch.manual_seed(0)
    model = Block(after).to(memory_format=LAST)
    gm = fused(model, make_clip(2, 8, 4, 6, 6))
    compare(model, gm)
    assert len(others(gm)) == left
    assert str(onednn_conv) in functions(gm)


@pytest.mark.parametrize(
    "after",
    [
        lambda a, b, x: (a + a).relu(),
        lambda a, b, x: torch.add(a, x, alpha=2),
        lambda a, b, x: a + 1.0,
        lambda a, b, x: a + x.mean((2, 3, 4), keepdim=True),  # broadcast
        lambda a, b, x: (a + x) * a,  # the convolution's own result is read, too
        lambda a, b, x: a.relu() * a,
        lambda a, b, x: nn.functional.silu(a),
    ],
)
def test_what_is_another_function_stays(after):
    torch.manual_seed(0)
    model = Block(after).to(memory_format=LAST)
    gm = fused(model, make_clip(2, 8, 4, 6, 6))
    compare(model, gm)
    assert others(gm)


def test_a_convolution_is_not_moved_behind_a_change_of_what_it_reads():
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = x + 0
            z = self.conv(y)
            return z + y.relu_()

    torch.manual_seed(0)
    model = Changing().to(memory_format=LAST)
    compare(model, fused(model, make_clip(2, 8, 4, 6, 6)))


def test_a_convolution_of_every_rth_frame_takes_the_relu():
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(8, 16, (1, 3, 3), padding=(0, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x[:, :, 1::2]).relu()

    torch.manual_seed(0)
    model = Skipping().to(memory_format=LAST)
    gm = fused(model, make_clip(2, 8, 4, 6, 6))
    compare(model, gm)
    assert functions(gm) == [str(conv_of_every_rth)]


def test_a_weight_is_packed_once_for_a_shape_and_the_networks_own_stays():
    torch.manual_seed(0)
    model = Block(lambda a, b, x: a + b).to(memory_format=LAST)
    gm = fused(model, make_clip(2, 8, 4, 6, 6))
    packed = [module for module in gm.modules() if isinstance(module, PackedWeight)]
    assert len(packed) == 2
    weights = [model.a.weight, model.b.weight]
    with torch.no_grad():
        for clips in (1, 2, 3):
            clip = make_clip(clips, 8, 4, 6, 6)
            gm(clip)
            before = [module._kept for module in packed]
            gm(clip)
            assert all(module._kept is kept for module, kept in zip(packed, before, strict=True))
            assert all(len(kept) == min(clips, 2) for kept in before)
    assert not any(weight.is_mkldnn for weight in weights)
    assert all(kept[0][1].is_mkldnn for kept in before)


def test_weights_that_are_computed_are_left_alone():
    class Standardised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8, 1, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv3d(x, self.weight / self.weight.norm()).relu()

    torch.manual_seed(0)
    model = Standardised()
    compare(model, fused(model, make_clip(2, 8, 4, 6, 6)))
