"""Totals, parts and wholes, at every granularity: what is counted adds up, and agrees with another counter."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from block_networks import block_net
from fvcore.nn import FlopCountAnalysis
from networks import make_clip, randomise_gates, randomise_rebuilds

from vared2_fx import CompressionReport, ConvertConfig, convert, merge, report, specialize
from vared2_fx.errors import ReportError

KINDS_OF_MACS = ("dense_macs", "computed_macs", "cheap_macs", "gate_macs")
CLIPS = make_clip(7, 3, 8, 32, 32, seed=1) * torch.tensor([0.1, 0.5, 1.0, 4.0, 0.3, 2.0, 8.0]).view(7, 1, 1, 1, 1)
LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1])
NAMES = [f"{i}.mp4" for i in range(7)]


def batch(part: slice) -> dict[str, object]:
    return {"video": CLIPS[part], "label": LABELS[part], "video_name": NAMES[part]}


@pytest.fixture(scope="module", params=["conv", "block", "stage"])
def dynamic(request):
    config = ConvertConfig(granularity=request.param, min_macs_share=0)
    made = randomise_rebuilds(convert(block_net("Residual"), CLIPS[:1], config))
    return randomise_gates(made, CLIPS)


@pytest.fixture(scope="module")
def whole(dynamic):
    return report(dynamic, [batch(slice(0, 7))], timing_repeats=1, timing_clips=2, sensitivity=True)


@pytest.fixture(scope="module")
def halves(dynamic):
    parts = (slice(0, 3), slice(3, 7))
    return [report(dynamic, [batch(part)], timing_repeats=1, timing_clips=2, sensitivity=True) for part in parts]


def counted(made: CompressionReport) -> CompressionReport:
    """Without what is measured on samples, and rounding."""
    layers = tuple(
        replace(layer, timing=None, rebuild_errors=(), sensitivity=None, gate_entropy=None) for layer in made.layers
    )
    sampled = dict.fromkeys(("timing", "timed_computed_share", "drift"))
    counts = dict.fromkeys(("num_timed_clips", "num_timing_repeats", "num_drift_clips"), 0)
    return replace(made, layers=layers, totals=replace(made.totals, **sampled, **counts), alarms=())


@pytest.mark.parametrize("name", KINDS_OF_MACS)
def test_rows_add_up_to_the_totals(whole, name):
    total = getattr(whole.totals, name)
    assert sum(getattr(layer, name).total for layer in whole.layers) == total.total
    assert sum(value * clips for value, clips in total.counts.items()) == total.total
    assert total.num_clips == 7
    if name != "cheap_macs":  # holding frames costs nothing
        assert total.total > 0


def test_clips_differ_or_these_tests_show_little(whole):
    assert len(whole.totals.computed_macs.values) >= 3
    assert whole.granularity in ("conv", "block", "stage")


def test_histograms_sum_to_the_number_of_clips(whole):
    assert whole.dynamic
    for layer in whole.dynamic:
        assert sum(choice.clips for choice in layer.choices) == 7
        assert layer.computed_macs.num_clips == 7
    assert sum(macs.num_clips for macs in whole.macs_by_class.values()) == 7


def fvcore_macs(network: torch.nn.Module, clip: torch.Tensor) -> int:
    """Of all operators that count; a cheap operation is one `addcmul` per multiply-add."""
    analysis = FlopCountAnalysis(network, clip).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.set_op_handle("aten::addcmul", lambda inputs, outputs: math.prod(outputs[0].type().sizes()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about shapes that it takes for constants
        counts = analysis.by_operator()
    return sum(n for kind, n in counts.items() if kind not in ("batch_norm", "adaptive_avg_pool3d"))


def test_every_clip_costs_what_fvcore_counts_for_its_choices(dynamic, whole):
    """The clip's choices fixed in a static network; gates are not part of that."""
    assert sorted(example.clip for example in whole.examples) == list(range(7))
    gates = whole.totals.gate_macs.mean
    for example in whole.examples:
        choices = {choice.path: (choice.frame_stride, choice.channel_share) for choice in example.choices}
        static = specialize(dynamic, choices)
        macs = fvcore_macs(static, CLIPS[example.clip : example.clip + 1])
        assert macs + gates == whole.clips[example.clip].macs


def test_examples_are_the_cheapest_and_the_dearest(whole):
    macs = [clip.macs for clip in whole.clips]
    for extreme, order in (("cheap", sorted(macs)), ("dear", sorted(macs, reverse=True))):
        shown = [macs[example.clip] for example in whole.examples if example.extreme == extreme]
        assert shown == order[: len(shown)]
        assert shown


def test_two_halves_merge_to_the_whole(whole, halves):
    merged = merge(halves)
    assert counted(merged) == counted(whole)
    assert CompressionReport.from_json(merged.to_json()) == merged


def test_halves_are_not_the_whole(whole, halves):  # the control: the test above is able to fail
    assert counted(halves[0]) != counted(whole)
    assert counted(merge([halves[1], halves[0]])) != counted(whole)


def test_samples_are_averaged(whole, halves):
    merged = merge(halves)
    assert merged.totals.num_timed_clips == 4
    assert merged.totals.drift == pytest.approx(sum(half.totals.drift for half in halves) / 2)
    for layer, known, parts in zip(
        merged.layers, whole.layers, zip(*(h.layers for h in halves), strict=True), strict=True
    ):
        if layer.kind != "dynamic":
            continue
        assert layer.timing.dense.ms == pytest.approx(sum(part.timing.dense.ms for part in parts) / 2)
        assert layer.timing.dense.clips == 4
        assert layer.sensitivity.clips == 7
        assert layer.sensitivity.drift == pytest.approx(known.sensitivity.drift)  # all clips in both
        assert layer.gate_entropy.clips == 7
        assert layer.gate_entropy.bits == pytest.approx(known.gate_entropy.bits, abs=1e-4)
        assert [error.clips for error in layer.rebuild_errors] == [4] * (len(layer.choices) - 1)


def test_one_report_merges_to_itself(whole):
    assert merge([whole]) == whole


def test_reports_of_other_shapes_merge_too(dynamic, halves):
    other = report(dynamic, make_clip(2, 3, 8, 24, 24), timing=False)
    merged = merge([replace(half, classes=()) for half in (*halves, other)])
    assert [item.clips for item in merged.inputs] == [7, 2]
    assert merged.totals.num_clips == 9
    assert sum(layer.computed_macs.total for layer in merged.layers) == merged.totals.computed_macs.total


def test_what_does_not_belong_together_is_refused(whole):
    with pytest.raises(ReportError, match="no report was given"):
        merge([])
    with pytest.raises(ReportError, match="report 2 has another network than the first: 'x'"):
        merge([whole, replace(whole, network="x")])
    fewer = replace(whole, layers=tuple(layer for layer in whole.layers if layer != whole.dynamic[0]))
    with pytest.raises(ReportError, match=r"another conversion: .* differs"):
        merge([whole, fewer])


def test_times_from_several_machines_are_said(whole):
    other = replace(whole, environment=replace(whole.environment, processor="another"))
    assert "several machines" in merge([whole, other]).notes[-1]
