"""What a report counts: against formulas worked by hand, against what was executed, and in itself."""

from dataclasses import asdict

import pytest
import torch
from networks import CONVS, Net, gate_linear_macs, make_clip, randomise_gates, tiny_net
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from vared2_fx import ConvertConfig, convert, policy, report, with_decisions
from vared2_fx.passes.rewrite import regions
from vared2_fx.policy.statistics import clip_macs, dense_macs

KINDS_OF_MACS = ("dense_macs", "computed_macs", "cheap_macs", "gate_macs")


@pytest.fixture
def made(dynamic, clips):
    return report(dynamic, clips, timing=False)


@pytest.mark.parametrize("name", KINDS_OF_MACS)
def test_rows_add_up_to_the_totals(made, name):
    total = getattr(made.totals, name)
    assert sum(getattr(layer, name).total for layer in made.layers) == total.total > 0
    assert sum(getattr(layer, name).mean for layer in made.layers) == pytest.approx(total.mean, rel=1e-12)
    assert total.min <= total.mean <= total.max


def test_parameters_add_up(made, dynamic):
    assert sum(layer.params_added for layer in made.layers) == made.totals.params_added > 0
    assert made.totals.params + made.totals.params_added == sum(p.numel() for p in dynamic.parameters())
    region = regions(dynamic)["expand"]
    parts = (region.gate, region.frame_rebuilds, region.channel_rebuilds)
    (row,) = (layer for layer in made.layers if layer.path == "expand")
    assert row.params_added == sum(p.numel() for part in parts for p in part.parameters())
    assert row.params == 8 * 13 + 13


def test_totals_are_what_the_decisions_say(made, dynamic, clips):
    with torch.no_grad():
        _, decisions = with_decisions(dynamic)(clips)
    dense = dense_macs(dynamic, clips)
    assert [clip.macs for clip in made.clips] == clip_macs(decisions, dense).tolist()
    assert made.totals.dense_macs.mean == dense
    assert made.totals.computed_macs.min == min(clip.macs for clip in made.clips)
    assert made.totals.computed_macs.max == max(clip.macs for clip in made.clips)
    assert made.totals.saved_share == pytest.approx(1 - made.totals.computed_macs.mean / dense)
    assert made.flops == 2 * made.totals.computed_macs.mean


def test_clips_choose_differently_or_these_tests_show_little(made):
    assert made.totals.computed_macs.min < made.totals.computed_macs.max
    assert sum(sum(choice.clips > 0 for choice in layer.choices) > 1 for layer in made.dynamic) >= 2


def test_executed_multiply_adds_are_those_of_the_report(dynamic, clips, made):
    """The work is really skipped: torch's dispatch counter sees the convolutions and matrix products that run."""
    with torch.no_grad(), FlopCounterMode(display=False) as executed:
        dynamic(clips)  # one batch, in which clips choose differently
    totals = made.totals
    counted = totals.computed_macs.total - totals.cheap_macs.total - totals.gate_macs.total
    assert executed.get_total_flops() == 2 * (counted + len(clips) * gate_linear_macs(dynamic))
    assert counted < totals.dense_macs.total


def test_a_layer_by_hand(dynamic, clips):
    with policy(dynamic, {"*": (2, 0.5)}):
        made = report(dynamic, clips, timing=False)
    (row,) = (layer for layer in made.layers if layer.path == "expand")
    area, frames = 8 * 8, 8  # 8 channels of 8 × 8 × 8 become 13, of which ⌈13 / 2⌉ = 7 are computed
    convolution = 8 * 7 * (frames // 2) * area
    cheap = (13 - 7) * (frames // 2) * area + 13 * frames * area
    features = 5 * 4 * 8  # views, bins, channels; all of an 8 × 8 map is looked at, in patches of one
    gate = 8 * frames * area * (1 + 2 * 2) + features + features * 16 + 16 * 5
    assert row.dense_macs.mean == 8 * 13 * frames * area
    assert (row.cheap_macs.mean, row.gate_macs.mean) == (cheap, gate)
    assert row.computed_macs.mean == convolution + cheap + gate
    assert (row.in_shape, row.out_shape) == ((8, 8, 8, 8), (13, 8, 8, 8))
    assert row.operation == "Conv3d 8→13 1×1×1"


def test_histogram_counts_clips(dynamic, clips, made):
    for layer in made.dynamic:
        assert sum(choice.clips for choice in layer.choices) == len(clips)
        assert (layer.choices[0].frame_stride, layer.choices[0].channel_share) == (1, 1.0)
    with policy(dynamic, {"*": (2, 0.5), "stem.*": (1, 1.0)}):
        fixed = report(dynamic, clips, timing=False)
    for layer in fixed.dynamic:
        picked = {(c.frame_stride, c.channel_share): c.clips for c in layer.choices if c.clips}
        assert picked == {(1, 1.0) if layer.path == "stem.0" else (2, 0.5): len(clips)}


def test_every_convolution_is_there_in_order(made):
    assert [layer.path for layer in made.layers if layer.kind != "other"] == list(CONVS)
    (static,) = (layer for layer in made.layers if layer.kind == "static")
    assert (static.path, static.reason, static.choices) == ("down.0", "excluded", ())
    assert "exclude" in static.detail
    assert static.computed_macs == static.dense_macs
    (head,) = (layer for layer in made.layers if layer.kind == "other")
    assert (head.path, head.operation, head.dense_macs.mean) == ("head", "Linear", 16 * 5)


def test_what_is_not_counted_is_said(made):
    calls = {item.operation: item.calls for item in made.not_counted}
    assert calls["BatchNorm3d"] == 4
    assert calls["add"] == 1
    assert not {"Conv3d", "DynamicConv", "ConvVariant", "Gate", "Linear"} & calls.keys()
    assert "multiply-adds" in made.convention


def values(layers):
    """All of them in order: those that are exact, and those that are not."""
    found = tree_leaves([asdict(layer) for layer in layers], is_leaf=lambda value: value is None)
    return [v for v in found if not isinstance(v, float)], [v for v in found if isinstance(v, float)]


def test_how_clips_come_makes_no_difference(dynamic, clips, made):
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    pairs = [(clips[:4], labels[:4]), (clips[4:], labels[4:])]
    names = [f"{i}.mp4" for i in range(6)]
    dicts = [{"video": clips[i : i + 3], "label": labels[i : i + 3], "video_name": names[i : i + 3]} for i in (0, 3)]
    for loader in (pairs, dicts, [clips], iter([clips[:5], clips[5:]])):
        other = report(dynamic, loader, timing=False)
        (exact, real), (made_exact, made_real) = values(other.layers), values(made.layers)
        assert exact == made_exact
        assert real == pytest.approx(made_real, abs=2e-6)  # convolutions round otherwise in other batches
        assert other.totals.computed_macs == made.totals.computed_macs
        assert [clip.macs for clip in other.clips] == [clip.macs for clip in made.clips]
    assert [clip.name for clip in report(dynamic, dicts, timing=False).clips] == names
    assert [clip.name for clip in made.clips] == [""] * 6


def test_a_second_report_is_the_same(dynamic, clips, made):
    assert report(dynamic, clips, timing=False) == made


def test_top1(dynamic, clips):
    with torch.no_grad():
        answers = dynamic(clips).argmax(1)
    labels = answers.clone()
    labels[0] = (labels[0] + 1) % 5
    totals = report(dynamic, [(clips, labels)], timing=False).totals
    assert (totals.top1, totals.num_labelled) == (5 / 6, 6)
    without = report(dynamic, [(clips, labels)], labels=False, timing=False)
    assert (without.totals.top1, without.totals.num_labelled) == (None, 0)
    assert [clip.prediction for clip in without.clips] == answers.tolist()


def test_clips_of_several_shapes(dynamic, clips):
    short = make_clip(2, 3, 4, 24, 24)
    both = report(dynamic, [clips, short], timing=False)
    apart = [report(dynamic, part, timing=False) for part in (clips, short)]
    assert [item.clips for item in both.inputs] == [6, 2]
    assert both.layers[0].in_shape == (3, 8, 16, 16)
    for name in KINDS_OF_MACS:
        expected = sum(getattr(part.totals, name).total for part in apart)
        assert sum(getattr(layer, name).total for layer in both.layers) == expected
        assert getattr(both.totals, name).total == expected
    costs = both.totals.dense_macs
    assert [costs.min, costs.max] == [part.totals.dense_macs.mean for part in apart]


def test_the_network_is_left_as_it_was(dynamic, clips):
    dynamic.train()
    dynamic.norm.eval()
    modes = [module.training for module in dynamic.modules()]
    state = {key: value.clone() for key, value in dynamic.state_dict().items()}
    report(dynamic, clips, timing_clips=1, timing_repeats=1)
    assert [module.training for module in dynamic.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in dynamic.state_dict().items())
    assert all(parameter.grad is None for parameter in dynamic.parameters())
    assert torch.is_grad_enabled()


def test_soft_gates_are_counted_at_what_they_make_compute(clips):
    soft = convert(tiny_net(), config=ConvertConfig(gate="soft_modulation", min_macs_share=0))
    made = report(randomise_gates(soft), clips, timing=False)
    with torch.no_grad(), FlopCounterMode(display=False) as executed:
        soft(clips)
    convolutions = executed.get_flop_counts()["Global"][torch.ops.aten.convolution]
    totals, head = made.totals, 16 * 5 * len(clips)
    assert convolutions == 2 * (totals.computed_macs.total - totals.cheap_macs.total - totals.gate_macs.total - head)
    assert totals.computed_macs.min < totals.computed_macs.max


class Twice(Net):
    """Calls `b` twice, and a matrix product without a module."""

    def forward(self, x):
        x = self.b(self.b(self.a(x)).relu()).mean((2, 3, 4))
        return torch.matmul(self.head(x), self.head.weight)


def test_a_layer_that_is_called_twice_is_one_row_of_both():
    twice = convert(Twice().eval(), config=ConvertConfig(min_macs_share=0))
    made = report(twice, make_clip(2, 3, 4, 6, 6), timing=False)
    rows = {layer.path: layer for layer in made.layers}
    assert list(rows) == ["a", "b", "head", "matmul"]
    assert rows["b"].reason == "called_twice"
    assert rows["b"].dense_macs.mean == 2 * (8 * 8 * 27) * (4 * 6 * 6)
    assert (rows["matmul"].operation, rows["matmul"].kind, rows["matmul"].dense_macs.mean) == ("matmul", "other", 4 * 8)
    assert made.totals.dense_macs.total == sum(layer.dense_macs.total for layer in made.layers)
