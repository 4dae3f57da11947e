"""What the variants of a block are made of computes what it stands for."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from networks import make_clip
from torch import fx, nn

from vared2_fx.layers import (
    BlockGeometry,
    ChannelRebuild,
    ConvGeometry,
    FrameRebuild,
    FrameReturn,
    FrameSkip,
    PoolGeometry,
    SlimConv,
    SlimNorm,
    Step,
    computed_frames,
)


def make_rebuild(kept: int = 5, channels: int = 8) -> ChannelRebuild:
    source = torch.randint(kept, (channels - kept,), generator=torch.Generator().manual_seed(0))
    return ChannelRebuild(source, make_clip(channels - kept), make_clip(channels - kept, seed=1), kept)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_a_slim_convolution_holds_the_rebuild_in_its_kernel(bias, grad):
    torch.manual_seed(0)
    conv, rebuild, x = nn.Conv3d(8, 6, 3, bias=bias), make_rebuild(), make_clip(2, 5, 4, 7, 7)
    slim = SlimConv(conv, 4, 5, rebuild)
    with torch.set_grad_enabled(grad):
        expected = conv(rebuild.complete(x))[:, :4]
        for _ in range(2):  # the second time from what was kept
            torch.testing.assert_close(slim(x), expected, rtol=1e-4, atol=1e-5)
    assert (slim.geometry.in_channels, slim.geometry.out_channels) == (5, 4)


def test_what_is_kept_follows_its_parameters():
    conv, rebuild, x = nn.Conv3d(8, 6, 1), make_rebuild(), make_clip(2, 5, 4, 7, 7)
    slim = SlimConv(conv, 6, 5, rebuild)
    with torch.no_grad():
        before = slim(x)
        for parameter in (conv.weight, conv.bias, rebuild.scale, rebuild.bias, rebuild.source):
            parameter.add_(1).remainder_(5) if parameter is rebuild.source else parameter.mul_(2)
            torch.testing.assert_close(slim(x), conv(rebuild.complete(x)), rtol=1e-4, atol=1e-5)
        assert not torch.equal(slim(x), before)
        conv.load_state_dict(nn.Conv3d(8, 6, 1).state_dict())
        for module in (slim.double(), pickle.loads(pickle.dumps(slim)), copy.deepcopy(slim)):
            expected = module.conv(module.rebuild.complete(x.double()))
            torch.testing.assert_close(module(x.double()), expected, rtol=1e-4, atol=1e-5)


def test_what_is_kept_is_not_rounded_by_autocast():
    conv, rebuild, x = nn.Conv3d(8, 6, 3, bias=False), make_rebuild(), make_clip(2, 5, 4, 7, 7)
    with torch.no_grad():
        expected = SlimConv(conv, 6, 5, rebuild)(x)
        slim = SlimConv(conv, 6, 5, rebuild)
        with torch.autocast("cpu", torch.bfloat16):
            slim(x)
        assert torch.equal(slim(x), expected)


def test_weights_that_cannot_be_watched_are_not_kept():
    with torch.inference_mode():
        conv, rebuild, x = nn.Conv3d(8, 6, 1), make_rebuild(), make_clip(2, 5, 4, 7, 7)
        slim = SlimConv(conv, 6, 5, rebuild)
        for _ in range(2):
            torch.testing.assert_close(slim(x), conv(rebuild.complete(x)), rtol=1e-4, atol=1e-5)
            conv.weight.mul_(2)


def test_gradients_reach_all_of_a_slim_convolution():
    conv, rebuild, x = nn.Conv3d(8, 6, 3, padding=1), make_rebuild(), make_clip(2, 5, 4, 7, 7)
    SlimConv(conv, 6, 5, rebuild)(x).square().sum().backward()
    for parameter in (conv.weight, conv.bias, rebuild.scale, rebuild.bias):
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("groups", [8, 4])
def test_groups_are_kept_whole(groups):
    conv, x = nn.Conv3d(8, 16, 3, padding=1, groups=groups), make_clip(2, 8, 4, 7, 7)
    torch.testing.assert_close(SlimConv(conv, 8, 4, None)(x[:, :4]), conv(x)[:, :8], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
def test_a_slim_norm_is_a_norm_of_the_first_channels(affine, track):
    norm = nn.BatchNorm3d(8, affine=affine, track_running_stats=track)
    statistics = nn.BatchNorm3d(5, affine=False, track_running_stats=track)
    plain = nn.BatchNorm3d(5, affine=affine, track_running_stats=track)
    if affine:
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
        plain.weight.data, plain.bias.data = norm.weight.data[:5], norm.bias.data[:5]
    slim = SlimNorm(norm, statistics)
    for momentum in (0.1, None):
        statistics.momentum = plain.momentum = momentum
        for seed in range(3):
            x = 3 + make_clip(2, 5, 4, 7, 7, seed=seed)
            torch.testing.assert_close(slim(x), plain(x))
    statistics.eval(), plain.eval()
    torch.testing.assert_close(slim(x), plain(x))


@pytest.mark.parametrize("kind", ["repeat", "interpolate"])
@pytest.mark.parametrize("num_frames", [1, 2, 5, 8, 9])
@pytest.mark.parametrize("stride", [2, 4])
def test_frames_are_skipped_and_returned(stride, num_frames, kind):
    x = make_clip(2, 3, num_frames, 4, 4)
    rebuild = FrameRebuild(3, stride, kind)
    skip, back = FrameSkip(stride), FrameReturn(rebuild, BlockGeometry((Step((-1,)),)))
    computed = skip(x)
    assert torch.equal(computed, x[:, :, list(computed_frames(num_frames, stride))])
    expected = rebuild(computed, num_frames)
    assert expected.shape == x.shape
    if num_frames > 1:
        traced = fx.symbolic_trace(Both(skip, back))
        torch.testing.assert_close(traced(x), expected)


class Both(nn.Module):
    def __init__(self, skip: FrameSkip, back: FrameReturn) -> None:
        super().__init__()
        self.skip, self.back = skip, back

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.back(self.skip(x), x)


def test_sizes_and_multiply_adds_of_a_run():
    """A branch with a stride in time, a pooling, and a squeeze that scales its output."""
    conv, pool, squeeze = nn.Conv3d(3, 8, 3, stride=(2, 1, 1), padding=1), nn.MaxPool3d((1, 2, 2)), nn.Conv3d(8, 8, 1)
    run = BlockGeometry(
        (
            Step((-1,), ConvGeometry.of(conv)),
            Step((0,), PoolGeometry((1, 2, 2), (1, 2, 2), (0, 0, 0))),
            Step((1,), squeezes=True),
            Step((2,), ConvGeometry.of(squeeze)),
            Step((3, 1)),
        )
    )
    for t, h, w in ((8, 12, 10), (5, 7, 9), (1, 4, 4)):
        y = pool(conv(make_clip(1, 3, t, h, w)))
        y = y * squeeze(F.adaptive_avg_pool3d(y, 1))
        assert run.out_size((t, h, w)) == tuple(y.shape[2:])
        assert run.out_frames(t) == y.shape[2]
        convolved = conv(make_clip(1, 3, t, h, w))[0, 0].numel()
        assert run.macs((t, h, w)) == 3 * 8 * 27 * convolved + 8 * 8
