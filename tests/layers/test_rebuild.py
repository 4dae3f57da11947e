"""Φt and Φc: what they compute, where they start, what they cost."""

import pytest
import torch
import torch.nn.functional as F
from networks import randomise_rebuilds
from torch import nn

from vared2_fx.layers import ChannelRebuild, FrameRebuild, computed_frames, predict_channels

EXACT = {"rtol": 1e-12, "atol": 1e-12}
"""Float64, sums of a few terms in another order: a few roundings of 1e-16."""


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("kind", ["repeat", "interpolate"])
def test_frames_by_the_formula(kind, stride, num_frames):
    rebuild = randomise_rebuilds(FrameRebuild(3, stride, kind).double())
    known = list(range(1, num_frames, stride)) or [0]
    computed = torch.randn(2, 3, len(known), 2, 5, dtype=torch.float64)
    out = rebuild(computed, num_frames)
    assert out.shape == (2, 3, num_frames, 2, 5)
    for t in range(num_frames):
        phase = (t - 1) % stride  # distance from the last computed frame
        before = [i for i, frame in enumerate(known) if frame <= t and phase == t - frame] or [0]
        after = [i for i, frame in enumerate(known) if frame > t] or [len(known) - 1]
        before, after = before[-1] if t else 0, after[0] if t else 0
        if kind == "repeat":
            before = min(t // stride, len(known) - 1)
        for c in range(3):
            expected = computed[:, c, before]
            if phase:
                expected = expected * rebuild.scale[phase - 1, c] + rebuild.bias[phase - 1, c]
                if kind == "interpolate":
                    expected = expected + computed[:, c, after] * rebuild.next_scale[phase - 1, c]
            torch.testing.assert_close(out[:, c, t], expected, **EXACT)


@pytest.mark.parametrize("step", [1, 2, 4])
@pytest.mark.parametrize("num_frames", [1, 3, 4, 5, 9])
@pytest.mark.parametrize("kind", ["repeat", "interpolate"])
def test_matrix_and_bias_are_the_same_map(kind, num_frames, step):
    rebuild = randomise_rebuilds(FrameRebuild(3, 4, kind).double())
    given, known = computed_frames(num_frames, step), computed_frames(num_frames, 4)
    finer = torch.randn(2, 3, len(given), 2, 2, dtype=torch.float64)
    computed = finer[:, :, [given.index(frame) for frame in known]]
    by_matrix = torch.einsum("cts,ncshw->ncthw", rebuild.matrix(num_frames, step), finer)
    by_matrix = by_matrix + rebuild.frame_bias(num_frames)[:, :, None, None]
    torch.testing.assert_close(by_matrix, rebuild(computed, num_frames), **EXACT)


def test_repeat_starts_right_for_a_still_clip():
    still = torch.randn(1, 4, 1, 3, 3).expand(-1, -1, 9, -1, -1)
    assert torch.equal(FrameRebuild(4, 4)(still[:, :, 1::4], 9), still)


def test_interpolate_starts_right_for_steady_motion():
    steady = torch.arange(10.0).view(1, 1, 10, 1, 1) * torch.randn(1, 4, 1, 3, 3)
    computed = steady[:, :, 1::4]
    rebuilt = FrameRebuild(4, 4, "interpolate")(computed, 10)
    torch.testing.assert_close(rebuilt[:, :, 1:], steady[:, :, 1:])
    assert torch.equal(rebuilt[:, :, 0], steady[:, :, 1]), "before the first computed frame there is nothing to blend"
    assert not torch.allclose(FrameRebuild(4, 4, "repeat")(computed, 10)[:, :, 1:], steady[:, :, 1:])


@pytest.mark.parametrize("kind", ["scale", "depthwise"])
def test_channels_by_the_formula(kind):
    source = torch.tensor([2, 0, 2, 1])
    rebuild = ChannelRebuild(source, torch.zeros(4), torch.zeros(4), kept=3, kind=kind).double()
    for parameter in rebuild.parameters():
        nn.init.normal_(parameter)
    computed = torch.randn(2, 3, 2, 4, 5, dtype=torch.float64)
    whole = rebuild.complete(computed)
    assert torch.equal(whole[:, :3], computed)
    assert torch.equal(whole[:, 3:], rebuild(computed))
    padded = F.pad(computed, (1, 1, 1, 1))
    for c, s in enumerate(source.tolist()):
        if kind == "scale":
            expected = computed[:, s] * rebuild.scale[c] + rebuild.bias[c]
        else:
            expected = torch.zeros(2, 2, 4, 5, dtype=torch.float64) + rebuild.bias[c]
            for dh in range(3):
                for dw in range(3):
                    expected = expected + padded[:, s, :, dh : dh + 4, dw : dw + 5] * rebuild.scale[c, 0, 0, dh, dw]
        torch.testing.assert_close(whole[:, 3 + c], expected, **EXACT)


def test_both_kinds_of_channel_rebuild_start_alike():
    source, scale, bias = torch.tensor([0, 1]), torch.tensor([0.5, -2.0]), torch.tensor([1.0, 0.25])
    computed = torch.randn(1, 3, 2, 4, 4)
    by_scale, by_kernel = (ChannelRebuild(source, scale, bias, 3, kind)(computed) for kind in ("scale", "depthwise"))
    torch.testing.assert_close(by_scale, by_kernel)


def test_a_multiple_of_a_kept_filter_is_rebuilt_exactly():
    conv = nn.Conv3d(3, 4, 3, padding=1).double()
    with torch.no_grad():
        conv.weight[2] = -3.0 * conv.weight[1]
        conv.weight[3] = 0.5 * conv.weight[0]
    source, scale, bias = predict_channels(conv.weight, conv.bias, None, kept=2, groups=1)
    assert source.tolist() == [1, 0]
    full = conv(torch.randn(1, 3, 4, 5, 5, dtype=torch.float64))
    # 1e-6: the factors are found in float32
    torch.testing.assert_close(ChannelRebuild(source, scale, bias, 2).complete(full[:, :2]), full, rtol=1e-6, atol=1e-6)


def test_the_best_of_the_kept_filters_is_taken():
    """Against all sources and their least-squares factors, tried one by one."""
    weight = torch.randn(6, 2, 3, 3, 3)
    source, scale, _ = predict_channels(weight, None, None, kept=3, groups=1)
    for c in range(3):
        errors = []
        for s in range(3):
            factor = (weight[3 + c] * weight[s]).sum() / weight[s].square().sum()
            errors.append((weight[3 + c] - factor * weight[s]).square().sum())
        assert source[c] == torch.stack(errors).argmin()
        error = (weight[3 + c] - scale[c] * weight[source[c]]).square().sum()
        torch.testing.assert_close(error, min(errors))


@pytest.mark.parametrize("groups", [1, 4])
def test_rebuilt_channels_keep_their_known_mean(groups):
    mean = torch.randn(8)
    source, scale, bias = predict_channels(torch.randn(8, 2, 1, 1, 1), torch.randn(8), mean, kept=4, groups=groups)
    torch.testing.assert_close(scale * mean[source] + bias, mean[4:])
    if groups > 1:
        assert not scale.any(), "filters of other groups see other inputs"


def test_a_dead_filter_makes_no_nan():
    source, scale, bias = predict_channels(torch.zeros(4, 2, 1, 1, 1), None, None, kept=2, groups=1)
    assert scale.isfinite().all()
    assert bias.isfinite().all()
    assert source.max() < 2


@pytest.mark.parametrize("kind", ["repeat", "interpolate"])
def test_cost_of_frames(kind):
    """By hand: T = 7 at R = 3 is filled up to 9 frames, a multiply-add per value; or, from frames 1 and 4, to 3 before
    of them, 3 between and 3 behind, two per value."""
    assert FrameRebuild(4, 3, kind).macs((7, 5, 6)) == (1 if kind == "repeat" else 2) * 4 * 9 * 5 * 6
    assert FrameRebuild(4, 3, kind).macs((6, 5, 6)) == (1 * 6 if kind == "repeat" else 2 * 9) * 4 * 5 * 6


@pytest.mark.parametrize(("kind", "taps"), [("scale", 1), ("depthwise", 9)])
def test_cost_of_channels(kind, taps):
    rebuild = ChannelRebuild(torch.zeros(3, dtype=torch.long), torch.zeros(3), torch.zeros(3), 5, kind)
    assert rebuild.macs((2, 5, 6)) == 3 * taps * 2 * 5 * 6
