"""Deployed variants compute what their specialised graph computes, in fewer operations."""

import pytest
import torch
from block_networks import CLIP, NETWORKS, block_net
from networks import make_clip, randomise_rebuilds
from torch import Tensor, fx, nn

import vared2_fx as vr
from vared2_fx import ConvertConfig
from vared2_fx.layers import FrameReturn, FrameSkip, SlimConv, SlimNorm
from vared2_fx.passes.deploy.cancel_frames import FrameCrop, FrameMean, cancel_frames
from vared2_fx.passes.deploy.follow import follow
from vared2_fx.passes.deploy.frame_forms import (
    AddedFrames,
    LaidFrames,
    ResizedFrames,
    StackedFrames,
    frame_forms,
)
from vared2_fx.passes.deploy.pipeline import prepare
from vared2_fx.passes.deploy.settle_variants import settle_variants

ATOL = 1e-4
"""Of outputs around 1: norms folded into kernels, and sums in another order."""


def static_net(name: str, granularity: str, choice: tuple[int, float], rebuild: str = "hold") -> fx.GraphModule:
    dynamic = vr.convert(block_net(name), CLIP, ConvertConfig(granularity=granularity, frame_rebuild=rebuild))
    if any(isinstance(module, nn.BatchNorm3d) for module in dynamic.modules()):
        vr.recalibrate_norms(dynamic, [make_clip(4, 3, 8, 32, 32, seed=1)])
    return vr.specialize(randomise_rebuilds(dynamic), {"*": choice}).eval()


def kinds(gm: fx.GraphModule) -> set[type]:
    return {type(module) for module in gm.modules()}


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("rebuild", ["hold", "repeat", "interpolate"])
@pytest.mark.parametrize("choice", [(2, 1.0), (4, 0.5)])
@pytest.mark.parametrize("granularity", ["block", "stage"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_prepared_variant_computes_the_same(name, granularity, choice, rebuild, engine):
    static = static_net(name, granularity, choice, rebuild)
    prepared = prepare(static, CLIP, engine)
    with torch.no_grad():
        torch.testing.assert_close(prepared(CLIP), static(CLIP), rtol=1e-4, atol=ATOL)
    assert kinds(prepared).isdisjoint({SlimConv, SlimNorm, nn.BatchNorm3d})
    called = {str(node.target) for node in prepared.graph.nodes if node.op == "call_function"}
    assert not any("batch_norm" in target or "conv3d" in target for target in called), "all are modules, and folded"


@pytest.mark.parametrize("choice", [(2, 1.0), (2, 0.5)])
@pytest.mark.parametrize("name", NETWORKS)
def test_settled_layers_are_plain_and_own_their_weights(name, choice):
    static = static_net(name, "block", choice)
    settled = settle_variants(static)
    assert kinds(settled).isdisjoint({SlimConv, SlimNorm})
    with torch.no_grad():
        expected = static(CLIP)
        torch.testing.assert_close(settled(CLIP), expected, rtol=1e-5, atol=1e-5)
        for module in settled.modules():
            if type(module) is nn.BatchNorm3d:
                module.weight.zero_()
        torch.testing.assert_close(static(CLIP), expected, rtol=0, atol=0)


class Two(nn.Module):
    """Two stages, the first with `stride` in time, then a head."""

    def __init__(self, stride: int, head: nn.Module) -> None:
        super().__init__()
        self.a = nn.Conv3d(3, 8, 3, stride=(stride, 1, 1), padding=1)
        self.shrink = nn.MaxPool3d((1, 2, 2))
        self.b = nn.Conv3d(8, 8, 3, padding=1)
        self.pool, self.head = head, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.b(self.shrink(self.a(x).relu())).relu()).mean((2, 3, 4)))


def two_stages(head: nn.Module, clip: Tensor, *, stride: int = 1, rebuild: str = "repeat") -> fx.GraphModule:
    torch.manual_seed(0)
    config = ConvertConfig(granularity="stage", frame_strides=(1, 2), channel_shares=(1.0,), frame_rebuild=rebuild)
    dynamic = randomise_rebuilds(vr.convert(Two(stride, head).eval(), clip, config))
    return follow(vr.specialize(dynamic, {"*": (2, 1.0)}), (clip,))


@pytest.mark.parametrize("num_frames", [7, 8, 12, 14])
@pytest.mark.parametrize("stride", [1, 2])
def test_between_stages_of_one_stride_frames_stay_out(stride, num_frames):
    """Also where the second would skip one more than the first computed, and at another number of frames."""
    clip = make_clip(2, 3, num_frames, 8, 8)
    gm = two_stages(nn.Identity(), clip, stride=stride)
    short = cancel_frames(gm)
    assert len([m for m in gm.modules() if isinstance(m, FrameReturn)]) == 2
    assert len([m for m in short.modules() if isinstance(m, FrameReturn)]) == 1
    assert len([m for m in short.modules() if isinstance(m, FrameSkip)]) == 1
    assert (FrameCrop in kinds(short)) == (stride == 2)
    for frames in (num_frames, 6, 8, 10, 13):
        other = make_clip(2, 3, frames, 8, 8)
        torch.testing.assert_close(short(other), gm(other), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rebuild", ["hold", "repeat"])
@pytest.mark.parametrize("head", [nn.AdaptiveAvgPool3d(1), nn.AvgPool3d((8, 4, 4), stride=1)], ids=["all", "window"])
def test_a_mean_over_all_frames_needs_none_rebuilt(head, rebuild):
    clip = make_clip(2, 3, 8, 8, 8)
    gm = two_stages(head, clip, rebuild=rebuild)
    short = cancel_frames(gm)
    assert FrameReturn not in kinds(short)
    assert FrameMean in kinds(short)
    torch.testing.assert_close(short(clip), gm(clip), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("head", "num_frames"),
    [(nn.AdaptiveAvgPool3d(1), 7), (nn.AdaptiveMaxPool3d(1), 8), (nn.AvgPool3d((4, 4, 4), stride=1), 8)],
    ids=["odd frames", "maximum", "some frames"],
)
def test_other_readers_get_their_frames(head, num_frames):
    clip = make_clip(2, 3, num_frames, 8, 8)
    gm = two_stages(head, clip)
    short = cancel_frames(gm)
    assert FrameReturn in kinds(short)
    torch.testing.assert_close(short(clip), gm(clip), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rebuild", ["hold", "repeat"])
def test_forms(rebuild):
    """A residual sum takes the computed frames as they are; a map that nothing is added to is resized."""
    static = follow(static_net("Residual", "block", (2, 1.0), rebuild), (CLIP,))
    with torch.no_grad():
        expected = static(CLIP)
        forms = {
            "broadcast": (AddedFrames, StackedFrames),
            "laid": (LaidFrames, ResizedFrames),
            "resize": (ResizedFrames,),
        }
        for form, wanted in forms.items():
            written = frame_forms(static, form=form)
            assert FrameReturn not in kinds(written)
            assert kinds(written).issuperset(wanted)
            torch.testing.assert_close(written(CLIP), expected, rtol=1e-5, atol=1e-5)
            laid = written(CLIP.contiguous(memory_format=torch.channels_last_3d))
            torch.testing.assert_close(laid, expected, rtol=1e-4, atol=1e-4)
    odd = make_clip(2, 3, 7, 32, 32)
    left = frame_forms(follow(static_net("Residual", "block", (2, 1.0), rebuild), (odd,)), form="resize")
    assert FrameReturn in kinds(left), "frames that come in no whole groups are returned as before"
