"""Convolutions that skip frames themselves compute what those of the skipped frames do."""

import pytest
import torch
from networks import make_clip
from torch import Tensor, fx, nn

from vared2_fx.passes.deploy.onednn import onednn_convs
from vared2_fx.passes.deploy.skipping_convs import conv_of_every_rth, skipping_convs

LAST = torch.channels_last_3d
NEAR = {"rtol": 1e-4, "atol": 1e-5}
"""oneDNN takes another kernel, which adds in another order."""


class Skipping(nn.Module):
    """A convolution of every R-th frame."""

    def __init__(self, conv: nn.Conv3d, first: int, every: int, end: int | None = None) -> None:
        super().__init__()
        self.conv, self.frames = conv, slice(first, end, every)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) → (N, C', I, H', W')."""
        return self.conv(x[:, :, self.frames])


def run_graph(model: nn.Module, clip: Tensor):
    exported = torch.export.export(model.eval(), (clip,)).module(check_guards=False)
    return skipping_convs(onednn_convs(exported))


def functions(gm: fx.GraphModule) -> list[object]:
    return [node.target for node in gm.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("layout", [LAST, torch.contiguous_format])
@pytest.mark.parametrize(("clips", "frames"), [(1, 8), (1, 7), (3, 8), (3, 7)])
@pytest.mark.parametrize(("first", "every"), [(1, 2), (1, 4), (0, 2)])
@pytest.mark.parametrize(
    "conv",
    [
        {"kernel_size": 1},
        {"kernel_size": (1, 3, 3), "padding": (0, 1, 1), "stride": (1, 2, 2), "bias": False},
        {"kernel_size": (3, 1, 1), "padding": (1, 0, 0)},
        {"kernel_size": 3, "padding": 1, "stride": 2, "groups": 2},
        {"kernel_size": (1, 3, 3), "stride": (2, 1, 1), "groups": 8},
        {"kernel_size": (2, 1, 1), "dilation": (2, 1, 1), "padding": (2, 0, 0)},
    ],
    ids=str,
)
def test_the_same_without_a_copy(conv, first, every, clips, frames, layout):
    torch.manual_seed(0)
    model = Skipping(nn.Conv3d(8, 8, **conv).to(memory_format=LAST), first, every)
    clip = make_clip(clips, 8, frames, 6, 6).contiguous(memory_format=layout)
    with torch.no_grad():
        gm = run_graph(model, clip)
        torch.testing.assert_close(gm(clip), model(clip), **NEAR)
    called = functions(gm)
    assert conv_of_every_rth in called
    assert torch.ops.aten.slice.Tensor not in called


def test_the_layout_is_handed_on():
    clip = make_clip(2, 8, 8, 6, 6).contiguous(memory_format=LAST)
    with torch.no_grad():
        gm = run_graph(Skipping(nn.Conv3d(8, 8, 1).to(memory_format=LAST), 1, 2), clip)
        assert gm(clip).is_contiguous(memory_format=LAST)


@pytest.mark.parametrize(("first", "every", "end"), [(0, 1, 4), (1, 2, 6), (3, 2, None), (-4, 2, None)])
def test_other_slices_stay(first, every, end):
    model = Skipping(nn.Conv3d(8, 8, 1), first, every, end)
    clip = make_clip(1, 8, 8, 6, 6)
    with torch.no_grad():
        gm = run_graph(model, clip)
        torch.testing.assert_close(gm(clip), model(clip), **NEAR)
    assert conv_of_every_rth not in functions(gm)
