"""The central property: training's mixture, evaluation's sparse path and the formulas give the same values."""

import copy
import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import make_clip, make_test_region, one_hot_decision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vared2_fx.layers import ChannelRebuild, Choice, DynamicConv, FrameRebuild, computed_frames

EXACT = {"rtol": 1e-10, "atol": 1e-10}
"""Float64, values around 10, sums of up to some hundred products in another order: roundings of about 1e-14."""


def rebuild_channels(full: Tensor, rebuild: ChannelRebuild, kept: int) -> Tensor:
    """Φc channel by channel, from METHOD's formulas alone."""
    out, padded = full.clone(), F.pad(full, (1, 1, 1, 1))
    height, width = full.shape[3:]
    for c in range(kept, full.shape[1]):
        source = int(rebuild.source[c - kept])
        if rebuild.kind == "scale":
            value = full[:, source] * rebuild.scale[c - kept]
        else:
            taps = [(h, w) for h in range(3) for w in range(3)]
            kernel = rebuild.scale[c - kept, 0, 0]
            value = sum(padded[:, source, :, h : h + height, w : w + width] * kernel[h, w] for h, w in taps)
        out[:, c] = value + rebuild.bias[c - kept]
    return out


def rebuild_frames(full: Tensor, rebuild: FrameRebuild, stride: int) -> Tensor:
    """Φt frame by frame; computed are frames 1, 1 + R, …"""
    out, known = full.clone(), list(range(1, full.shape[2], stride)) or [0]
    for t in range(full.shape[2]):
        phase = (t - 1) % stride
        if not phase:
            continue
        before, after = (max(known[0], min(frame, known[-1])) for frame in (t - phase, t - phase + stride))
        near = before
        if rebuild.next_scale is None:  # the one computed frame of its R
            near = min(t - t % stride + known[0], known[-1])
        scale, bias = (values[phase - 1].view(1, -1, 1, 1) for values in (rebuild.scale, rebuild.bias))
        out[:, :, t] = full[:, :, near] * scale + bias
        if rebuild.next_scale is not None:
            out[:, :, t] += full[:, :, after] * rebuild.next_scale[phase - 1].view(1, -1, 1, 1)
    return out


def kept_by_hand(conv: nn.Conv3d, share: float) -> int:
    exact = Fraction(share).limit_denominator(100)
    if conv.groups == 1:
        return max(1, math.ceil(exact * conv.out_channels))
    return max(1, math.ceil(exact * conv.groups)) * (conv.out_channels // conv.groups)


def reference(region: DynamicConv, x: Tensor, decision: Tensor) -> Tensor:
    """Σ_j V_j · Φt_j(Σ_i V_i · Φc_i(Y)), every choice from the full output."""
    full = region.body(x)
    by_share, by_stride = [], []
    for i, share in enumerate(region.grid.channel_shares):
        kept = kept_by_hand(region.body, share)
        by_share.append(rebuild_channels(full, region.channel_rebuilds[i - 1], kept) if i else full)
    num_strides = len(region.grid.frame_strides)
    channels = sum(decision[:, num_strides + i].view(-1, 1, 1, 1, 1) * y for i, y in enumerate(by_share))
    for j, stride in enumerate(region.grid.frame_strides):
        by_stride.append(rebuild_frames(channels, region.frame_rebuilds[j - 1], stride) if j else channels)
    return sum(decision[:, j].view(-1, 1, 1, 1, 1) * y for j, y in enumerate(by_stride))


@st.composite
def regions(draw: st.DrawFn) -> tuple[DynamicConv, Tensor]:
    """Any convolution that fits its input, with random weights and cheap operations, and an input."""
    groups, per_group_in, per_group_out = (draw(st.integers(1, 3)) for _ in range(3))
    if draw(st.booleans()):
        groups, per_group_in, per_group_out = draw(st.integers(2, 7)), 1, draw(st.integers(1, 2))  # depthwise
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(3))
    dilation = (draw(st.integers(1, 2)), 1, draw(st.integers(1, 2)))
    padding = tuple(draw(st.integers(0, k)) for k in kernel)
    torch.manual_seed(draw(st.integers(0, 1000)))
    conv = nn.Conv3d(
        groups * per_group_in,
        groups * per_group_out * draw(st.integers(1, 3)),
        kernel,
        stride=(draw(st.integers(1, 3)), draw(st.integers(1, 2)), 1),
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
    ).double()
    region = make_test_region(
        conv,
        frame_strides=draw(st.sampled_from([(1,), (1, 2), (1, 3), (1, 2, 4), (1, 3, 6)])),
        channel_shares=draw(st.sampled_from([(1.0,), (1.0, 0.5), (1.0, 0.5, 0.25), (1.0, 1 / 3)])),
        frame_rebuild=draw(st.sampled_from(["repeat", "interpolate"])),
        channel_rebuild=draw(st.sampled_from(["scale", "depthwise"])),
    )
    smallest = [max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, kernel, padding, strict=True)]
    t, h, w = smallest[0] + draw(st.integers(0, 8)), smallest[1] + 1, smallest[2] + 1
    return region, torch.randn(2, conv.in_channels, t, h, w, dtype=torch.float64)


@settings(max_examples=80)
@given(regions())
def test_every_choice_is_the_formula_in_both_modes(drawn):
    region, x = drawn
    with torch.no_grad():
        for choice in region.grid.all():
            decision = one_hot_decision(region.grid, *region.grid.index(choice), batch=2)
            expected = reference(region, x, decision)
            torch.testing.assert_close(region.eval()(x, decision), expected, **EXACT)
            torch.testing.assert_close(region.train()(x, decision), expected, **EXACT)
            torch.testing.assert_close(region.variant(choice)(x), expected, **EXACT)


@settings(max_examples=50)
@given(regions(), st.data())
def test_soft_decisions_are_the_weighted_sum_in_both_modes(drawn, data):
    """Each clip weighs some of the choices; evaluation computes only what they need."""
    region, x = drawn
    rows: list[list[float]] = [[] for _ in x]
    for row in rows:
        for size in (len(region.grid.frame_strides), len(region.grid.channel_shares)):
            row += data.draw(st.lists(st.sampled_from([0.0, 0.3, 0.7]), min_size=size, max_size=size).filter(any))
    decision = torch.tensor(rows, dtype=torch.float64)
    with torch.no_grad():
        expected = reference(region, x, decision)
        torch.testing.assert_close(region.eval()(x, decision), expected, **EXACT)
        torch.testing.assert_close(region.train()(x, decision), expected, **EXACT)


def small_region(**options: object) -> DynamicConv:
    torch.manual_seed(0)
    return make_test_region(nn.Conv3d(3, 9, 3, padding=1), **options).eval()


def mixed_decision(region: DynamicConv, batch: int) -> Tensor:
    """Each clip another choice, in turn."""
    rows = [one_hot_decision(region.grid, *region.grid.index(c), 1, torch.float32) for c in region.grid.all()]
    return torch.cat([rows[n % len(rows)] for n in range(batch)])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=["contiguous", "last"])
@pytest.mark.parametrize("options", [{}, {"frame_rebuild": "interpolate", "channel_rebuild": "depthwise"}])
def test_a_batch_gives_each_clip_what_it_gets_alone(options, layout):
    region = small_region(**options)
    x = make_clip(8, 3, 7, 6, 6).to(memory_format=layout)
    decision = mixed_decision(region, 8)
    together = region(x, decision)
    alone = torch.cat([region(x[n : n + 1], decision[n : n + 1]) for n in range(8)])
    # 1e-5: float32; the library may pick another kernel for another batch size
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(together, region(x, decision)), "evaluation is not deterministic"


def test_the_choices_of_the_test_above_do_differ():
    region, x = small_region(), make_clip(1, 3, 7, 6, 6)
    outputs = [region.variant(choice)(x) for choice in region.grid.all()]
    for k, left in enumerate(outputs):
        assert not any(torch.allclose(left, right, atol=0.1) for right in outputs[k + 1 :])


@pytest.mark.parametrize("training", [False, True])
def test_no_clip_is_no_output(training):
    region = small_region().train(training)
    assert region(make_clip(0, 3, 7, 6, 6), torch.zeros(0, 5)).shape == (0, 9, 7, 6, 6)


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_a_clip_shorter_than_the_stride_repeats_its_second_frame(num_frames):
    region = small_region()
    region.frame_rebuilds[1].scale.data.fill_(1.0)
    region.frame_rebuilds[1].bias.data.zero_()
    x = make_clip(1, 3, num_frames, 6, 6)
    out = region.variant(Choice(4, 1.0))(x)
    kept = min(1, num_frames - 1)
    # 1e-5: float32, another kernel of the library for another number of frames
    torch.testing.assert_close(out, region.body(x)[:, :, kept : kept + 1].expand_as(out), rtol=1e-5, atol=1e-5)


def test_a_still_clip_costs_a_padded_convolution_nothing_but_its_ends():
    """Frames 1, 1 + R, … see no padding; frame 0 would, and would hand it on."""
    torch.manual_seed(0)
    region = make_test_region(nn.Conv3d(3, 9, 3, padding=1)).eval()
    for rebuild in region.frame_rebuilds:
        rebuild.scale.data.fill_(1.0)
        rebuild.bias.data.zero_()
    still = make_clip(1, 3, 1, 6, 6).expand(-1, -1, 8, -1, -1)
    full, reduced = region.body(still), region.variant(Choice(4, 1.0))(still)
    torch.testing.assert_close(reduced[:, :, 1:7], full[:, :, 1:7], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(full[:, :, 0], full[:, :, 1], atol=0.1)


@pytest.mark.parametrize("options", [{}, {"frame_rebuild": "interpolate", "channel_rebuild": "depthwise"}])
@pytest.mark.parametrize("num_frames", [7, 8, 3])
def test_only_what_is_asked_for_is_computed(options, num_frames):
    """What a counter sees run, against the numbers of `macs`, for every choice alone and in one mixed batch."""
    region, x = small_region(**options), make_clip(6, 3, num_frames, 6, 6)
    in_size, expected = (num_frames, 6, 6), []
    for n, choice in enumerate(region.grid.all()):
        macs = region.geometry.macs(in_size, choice)
        if choice.channel_share < 1 and options:  # a depthwise rebuild is a convolution, too
            macs += 9 * 4 * len(computed_frames(num_frames, choice.frame_stride)) * 6 * 6
        with FlopCounterMode(display=False) as counter:
            region(x[n : n + 1], one_hot_decision(region.grid, *region.grid.index(choice), 1, torch.float32))
        assert counter.get_total_flops() == 2 * macs
        expected.append(macs)
    assert len(set(expected)) == (6 if num_frames > 4 else 4), "of 3 frames R = 2 and R = 4 compute the same one"
    with FlopCounterMode(display=False) as counter:
        region(x, mixed_decision(region, 6))
    assert counter.get_total_flops() == 2 * sum(expected)


def test_soft_decisions_compute_no_more_than_their_largest_choice():
    region, x = small_region(), make_clip(1, 3, 8, 6, 6)
    decision = torch.tensor([[0.0, 0.4, 0.6, 0.0, 1.0]])
    with FlopCounterMode(display=False) as counter:
        region(x, decision)
    convolved = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    assert convolved == 2 * region.geometry.macs((8, 6, 6), Choice(2, 0.5))


def test_macs_are_those_of_the_parts():
    """By hand: 9 channels of which 5 are kept, 7 frames of which 1 and 5 are computed, 6×6 positions."""
    region = small_region()
    assert region.macs((7, 6, 6)) == 9 * 3 * 27 * 7 * 36
    assert region.macs((7, 6, 6), Choice(4, 0.5)) == (5 * 3 * 27 * 2 + 4 * 2 + 9 * 8) * 36
    table, gate = region.cost(torch.empty(2, 3, 7, 6, 6))
    assert table.tolist() == [[region.macs((7, 6, 6), Choice(r, s)) for s in (1.0, 0.5)] for r in (1, 2, 4)]
    assert gate == region.gate.macs((7, 6, 6))


def test_a_variant_shares_its_weights():
    region = small_region()
    variant = region.variant(Choice(2, 0.5))
    ours = {id(parameter) for parameter in region.parameters()}
    assert all(id(parameter) in ours for parameter in variant.parameters())


def test_a_copy_has_parts_of_its_own():
    region, x = small_region(), make_clip(1, 3, 7, 6, 6)
    before = region(x, region.gate(x))
    other = copy.deepcopy(region)
    assert other.cost.macs.__self__ is other
    assert other.cost.gate_macs.__self__ is other.gate
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    assert torch.equal(region(x, region.gate(x)), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [False, True])
def test_other_dtypes(dtype, training):
    """Against float32, 0.05 of the largest value: bfloat16 keeps 8 bits of every product and sum."""
    region, x = small_region().train(training), make_clip(6, 3, 7, 6, 6)
    decision = mixed_decision(region, 6)
    expected = region(x, decision)
    low = copy.deepcopy(region).to(dtype)(x.to(dtype), decision.to(dtype))
    assert low.dtype == dtype
    assert (low - expected).abs().max() < 0.05 * expected.abs().max()
