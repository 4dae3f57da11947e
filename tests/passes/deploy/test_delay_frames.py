"""Frames that are held are returned as late as they can be."""

import pytest
import torch
from block_networks import CLIP, NETWORKS, block_net
from networks import make_clip
from torch import Tensor, fx, nn

import vared2_fx as vr
from vared2_fx import ConvertConfig
from vared2_fx.layers import FrameReturn
from vared2_fx.passes.deploy.cancel_frames import cancel_frames
from vared2_fx.passes.deploy.delay_frames import delay_frames
from vared2_fx.passes.deploy.follow import follow
from vared2_fx.passes.deploy.pipeline import prepare
from vared2_fx.passes.trace import calls

NEAR = {"rtol": 1e-4, "atol": 1e-5}
"""oneDNN adds in another order where there are fewer frames."""


def static_net(model: nn.Module, choices: dict[str, tuple[int, float]], rebuild: str = "hold") -> fx.GraphModule:
    config = ConvertConfig(granularity="block", frame_rebuild=rebuild)
    return follow(vr.specialize(vr.convert(model.eval(), CLIP, config), choices), (CLIP,))


@pytest.mark.parametrize("choices", [{"*": (2, 1.0)}, {"*": (4, 0.5)}], ids=["2", "4"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_in_fewer_operations(name, choices):
    static = static_net(block_net(name), choices)
    late = delay_frames(static)
    short = cancel_frames(late)
    assert len(calls(short, FrameReturn)) < len(calls(static, FrameReturn))
    with torch.no_grad():
        expected = static(CLIP)
        torch.testing.assert_close(late(CLIP), expected, **NEAR)
        torch.testing.assert_close(short(CLIP), expected, **NEAR)


def test_where_branch_and_shortcut_skip_all_that_follows_stays_short():
    """The first block of each stage has a convolution in its shortcut, the second has not."""
    static = static_net(block_net("Residual"), {"*": (2, 1.0)})
    assert len(calls(static, FrameReturn)) == 7
    assert len(calls(cancel_frames(static), FrameReturn)) == 6, "all but the stem's are added to another"
    short = cancel_frames(delay_frames(static))
    assert len(calls(short, FrameReturn)) == 1
    sums = [node for node in short.graph.nodes if "add" in str(node.target)]
    assert len(sums) == 4
    assert {node.meta["shape"][2] for node in sums} == {4}, "of eight frames"


def test_different_strides_meet_in_full():
    static = static_net(block_net("Residual"), {"*": (2, 1.0), "stage1.*": (4, 1.0)})
    with torch.no_grad():
        torch.testing.assert_close(cancel_frames(delay_frames(static))(CLIP), static(CLIP), **NEAR)


def test_frames_that_are_scaled_stay_where_they_are():
    static = static_net(block_net("Residual"), {"*": (2, 1.0)}, rebuild="repeat")
    assert delay_frames(static).code == static.code


class Overwritten(nn.Module):
    """A block whose output is written over, and read by others as well."""

    def __init__(self, *, before: bool) -> None:
        super().__init__()
        self.conv, self.head, self.before = nn.Conv3d(3, 8, (3, 1, 1), padding=(1, 0, 0)), nn.Linear(8, 5), before

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, T, H, W) → (N, 5)."""
        y = self.conv(x)
        early = y.mean((2, 3, 4)) if self.before else 0
        z = y.relu_()
        return self.head(early + z.mean((2, 3, 4)) + y.mean((2, 3, 4)))


@pytest.mark.parametrize("before", [False, True])
def test_what_is_written_over_for_others_is_returned_first(before):
    static = static_net(Overwritten(before=before), {"*": (2, 1.0)})
    assert len(calls(static, FrameReturn)) == 1
    with torch.no_grad():
        torch.testing.assert_close(delay_frames(static)(CLIP), static(CLIP), **NEAR)


def test_odd_numbers_of_frames():
    clip = make_clip(2, 3, 7, 32, 32)
    dynamic = vr.convert(block_net("Residual"), clip, ConvertConfig(granularity="block"))
    static = follow(vr.specialize(dynamic, {"*": (2, 1.0)}), (clip,))
    with torch.no_grad():
        for frames in (7, 8, 5):
            other = make_clip(2, 3, frames, 32, 32)
            torch.testing.assert_close(cancel_frames(delay_frames(static))(other), static(other), **NEAR)


class HalvedTime(nn.Module):
    """A residual block that halves time, and one that keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv3d(3, 8, 3, stride=(2, 1, 1), padding=1), nn.Conv3d(8, 8, 3, padding=1)
        self.shortcut = nn.Conv3d(3, 8, 1, stride=(2, 1, 1))
        self.c, self.head = nn.Conv3d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, T, H, W) → (N, 5)."""
        x = (self.b(self.a(x).relu()) + self.shortcut(x)).relu()
        x += self.c(x)
        return self.head(x.mean((2, 3, 4)))


@pytest.mark.parametrize("num_frames", [7, 8, 10, 12, 13])
@pytest.mark.parametrize("rebuild", ["hold", "repeat"])
def test_where_branches_compute_other_numbers_of_frames(rebuild, num_frames):
    """Of 10 frames 5 are left, of which the first block computes 3, of 5 in 10, and the second 2, of 5 in 5."""
    torch.manual_seed(0)
    clip = make_clip(1, 3, num_frames, 16, 16)
    config = ConvertConfig(granularity="block", frame_rebuild=rebuild, min_macs_share=0.0)
    static = vr.specialize(vr.convert(HalvedTime().eval(), clip, config), {"*": (2, 1.0)})
    with torch.no_grad():
        for engine in ("torch", "openvino", "onnx"):
            torch.testing.assert_close(prepare(static, clip, engine)(clip), static(clip), **NEAR)
