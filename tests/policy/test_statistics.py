"""Multiply-adds: what decisions cost is what runs."""

import pytest
import torch
from networks import (
    TinyNet,
    gate_linear_macs,
    make_clip,
    randomise_gates,
    randomise_rebuilds,
    tiny_net,
)
from torch.utils.flop_counter import FlopCounterMode

import vared2_fx as vr
from vared2_fx import ConvertConfig, Decision
from vared2_fx.errors import ConvertError
from vared2_fx.layers import Choice, computed_frames
from vared2_fx.passes.rewrite import regions, with_decisions
from vared2_fx.policy.statistics import clip_macs, computed_choices, computed_macs, dense_macs, expected_macs

CLIP = make_clip(6, 3, 9, 15, 16)
TABLE = torch.tensor([[100, 60], [55, 35]])


def make_decision(*rows: list[float], dtype: torch.dtype = torch.float32, scale: int = 1) -> Decision:
    return Decision(torch.tensor(rows, dtype=dtype), TABLE * scale, torch.tensor(7 * scale))


def test_the_finest_weighed_choice_is_what_is_computed():
    decision = make_decision([1, 0, 1, 0], [0, 1, 0.5, 0.5], [0.1, 0.9, 0, 1], [0, 1, 0, 1])
    assert computed_choices(decision).tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    assert computed_macs(decision).tolist() == [107, 62, 67, 42]


def test_expected_cost_is_the_weighted_mean():
    decision = make_decision([1, 0, 1, 0], [0.25, 0.75, 0.5, 0.5], [0.2, 0.2, 0.3, 0.1])
    by_hand = [107, 7 + 0.25 * 80 + 0.75 * 45, 7 + 0.5 * (0.75 * 100 + 0.25 * 60) + 0.5 * (0.75 * 55 + 0.25 * 35)]
    torch.testing.assert_close(expected_macs(decision), torch.tensor(by_hand))


def test_for_hard_decisions_expected_is_computed():
    decision = make_decision([1, 0, 1, 0], [0, 1, 0, 1], [0, 1, 1, 0])
    assert expected_macs(decision).tolist() == computed_macs(decision).tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_decisions_keep_the_numbers(dtype):
    """Multiply-adds go to 10^11: more than float16 can hold, and bfloat16 keeps three digits."""
    decision = make_decision([0.5, 0.5, 0, 1], dtype=dtype, scale=10**9 + 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(expected_macs(decision)[0]) == pytest.approx(54.5 * (10**9 + 1), rel=1e-6)


def test_expected_cost_has_a_gradient():
    weights = torch.tensor([[0.5, 0.5, 1.0, 0.0]], requires_grad=True)
    expected_macs(Decision(weights, TABLE, torch.tensor(7))).sum().backward()
    assert weights.grad[0, 0] > 0 > weights.grad[0, 1], "the full frames cost more"
    assert weights.grad[0, 3] < 0, "a closed cheaper choice pulls"


@pytest.mark.parametrize("channel_rebuild", ["scale", "depthwise"])
@pytest.mark.parametrize("frame_rebuild", ["repeat", "interpolate"])
def test_executed_multiply_adds_are_the_counted_ones(frame_rebuild, channel_rebuild):
    """A dispatch mode counts a real run with mixed decisions; counted numbers less what it cannot see.

    It sees convolutions and matrix products: not the pointwise cheap operations, and of the gates the two linear
    layers.
    """
    config = ConvertConfig(frame_rebuild=frame_rebuild, channel_rebuild=channel_rebuild)
    dynamic = randomise_gates(randomise_rebuilds(vr.convert(tiny_net(), config=config)), CLIP)
    _, decisions = with_decisions(dynamic)(CLIP)
    unseen, kinds = 0, set()
    sizes = {}
    for path, region in regions(dynamic).items():
        region.register_forward_hook(lambda m, i, o, path=path: sizes.update({path: tuple(o.shape[2:])}))
    dynamic(CLIP)
    for path, region in regions(dynamic).items():
        for j, i in computed_choices(decisions[path]).tolist():
            choice = region.grid[j, i]
            kinds.add(choice)
            variant, (t, h, w) = region.variant(choice), sizes[path]
            if variant.frame_rebuild is not None:
                unseen += variant.frame_rebuild.macs((t, h, w))
            if variant.channel_rebuild is not None and channel_rebuild == "scale":
                unseen += variant.channel_rebuild.macs((len(computed_frames(t, choice.frame_stride)), h, w))
        unseen += len(CLIP) * int(decisions[path].gate_macs)
    with FlopCounterMode(display=False) as counter:
        dynamic(CLIP)
    counted = int(clip_macs(decisions, dense_macs(dynamic, CLIP)).sum())
    assert counter.get_total_flops() == 2 * (counted - unseen + len(CLIP) * gate_linear_macs(dynamic))
    assert len(kinds) == 6, "not every choice was taken"


def test_soft_decisions_compute_what_their_finest_choice_costs():
    """Convolutions alone: the weighted sum itself is a matrix product."""
    dynamic = randomise_gates(vr.convert(tiny_net(), config=ConvertConfig(gate="soft_modulation")), CLIP, spread=0.5)
    _, decisions = with_decisions(dynamic)(CLIP)
    assert any(((d.weights > 0) & (d.weights < 1)).any() for d in decisions.values()), "all hard: this says little"
    expected = 0
    in_sizes = {}
    for path, region in regions(dynamic).items():
        region.register_forward_hook(lambda m, i, o, path=path: in_sizes.update({path: tuple(i[0].shape[2:])}))
    with FlopCounterMode(display=False) as counter:
        dynamic(CLIP)
    for path, region in regions(dynamic).items():
        for j, i in computed_choices(decisions[path]).tolist():
            expected += region.geometry.macs(in_sizes[path], region.grid[j, i])
    assert counter.get_flop_counts()["Global"][torch.ops.aten.convolution] == 2 * expected


def test_a_full_policy_executes_the_dense_multiply_adds():
    dynamic = vr.convert(tiny_net())
    with vr.full(dynamic), FlopCounterMode(display=False) as counter:
        dynamic(CLIP)
    assert counter.get_total_flops() == 2 * len(CLIP) * dense_macs(dynamic, CLIP)


def test_dense_is_the_original():
    model = tiny_net()
    dynamic = vr.convert(model)
    with FlopCounterMode(display=False) as counter:
        model(CLIP[:1])
    original = counter.get_total_flops() // 2
    assert dense_macs(dynamic, CLIP) == original
    assert dense_macs(model, CLIP) == original
    assert dense_macs(vr.specialize(dynamic, {}), CLIP) == original
    assert dense_macs(vr.specialize(dynamic, {"*": (2, 1.0)}), CLIP) < 0.6 * original


def test_counting_changes_nothing(untouched):
    model = TinyNet().train()
    with untouched(model):
        dense_macs(model, CLIP)
    dynamic = vr.convert(model)
    with untouched(dynamic):
        dense_macs(dynamic, CLIP)


def test_a_clip_costs_the_network_less_what_it_saves():
    dynamic = vr.convert(tiny_net())
    dense = dense_macs(dynamic, CLIP)
    with vr.policy(dynamic, {"expand": (2, 0.5)}):
        _, decisions = with_decisions(dynamic)(CLIP)
    gates = sum(int(decision.gate_macs) for decision in decisions.values())
    region, in_size = regions(dynamic)["expand"], (9, 8, 8)
    saved = region.macs(in_size) - region.macs(in_size, Choice(2, 0.5))
    assert saved > 0
    assert clip_macs(decisions, dense).tolist() == [dense + gates - saved] * len(CLIP)
    assert clip_macs({}, dense).tolist() == [dense]


def test_inputs_that_do_not_fit_are_an_error():
    with pytest.raises(ConvertError, match="does not run on example inputs"):
        dense_macs(vr.convert(tiny_net()), make_clip(1, 5, 8, 16, 16))
