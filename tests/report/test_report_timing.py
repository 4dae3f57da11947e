"""Times: what is timed, on what, and how often. How long it takes is no matter for a test."""

from collections import Counter

import pytest
import torch
from networks import make_clip

from vared2_fx import report
from vared2_fx.modes import evaluating
from vared2_fx.passes.rewrite import regions
from vared2_fx.report.collect import Collector


def test_every_region_and_the_network_are_timed(dynamic, clips):
    made = report(dynamic, clips, timing_clips=2, timing_repeats=3)
    timings = [layer.timing for layer in made.dynamic]
    assert len(timings) == 5
    for timing in (*timings, made.totals.timing):
        for latency in (timing.dense, timing.dynamic):
            assert 0 < latency.min_ms <= latency.ms <= latency.max_ms
    assert all(layer.timing is None for layer in made.layers if layer.kind != "dynamic")
    assert (made.totals.num_timed_clips, made.totals.num_timing_repeats) == (2, 3)
    costs = {clip.macs / made.totals.dense_macs.mean for clip in made.clips}
    assert min(costs) <= made.totals.timed_computed_share <= max(costs)


def test_without_timing_there_are_no_times(dynamic, clips):
    made = report(dynamic, clips, timing=False)
    assert made.totals.timing is None
    assert made.totals.timed_computed_share is None
    assert made.totals.num_timed_clips == made.totals.num_timing_repeats == 0
    assert all(layer.timing is None for layer in made.layers)
    assert "time per clip" not in str(made)


def test_dense_is_the_convolution_alone_and_dynamic_has_the_gate(dynamic, clips):
    """Calls of one region's parts: each clip once to count; one to time runs 1 warm-up and 3 repetitions."""
    region, calls = regions(dynamic)["grouped"], Counter()
    shapes = set()
    for name in ("body", "gate"):
        part = getattr(region, name)
        part.register_forward_hook(lambda module, args, out, name=name: calls.update([name]))
        part.register_forward_hook(lambda module, args, out: shapes.add(len(args[0])))
    with torch.no_grad():  # every choice but the full one calls no module
        region.gate.out.weight.zero_()
        region.gate.out.bias.copy_(torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0]))
    report(dynamic, clips, timing_clips=2, timing_repeats=3, rebuild_error=False)
    assert shapes == {1}
    # gate: counting 6; the network 2 · (1 + 3); the region 2 · (1 + 3); the run that stops there 2
    # body: finding shapes 1; the original network 2 · (1 + 3); the region 2 · (1 + 3)
    assert calls == {"gate": 6 + 8 + 8 + 2, "body": 1 + 8 + 8}


def test_all_clips_are_timed_if_there_are_few(dynamic):
    made = report(dynamic, make_clip(2, 3, 8, 16, 16), timing_clips=5, timing_repeats=1)
    assert made.totals.num_timed_clips == 2


def test_timed_clips_come_from_all_of_the_data(dynamic):
    """Of twenty clips the second ten have more frames: what is picked has of both."""
    loader = [make_clip(10, 3, 4, 8, 8), make_clip(10, 3, 8, 16, 16)]
    collector = Collector(dynamic, num_samples=8)
    with evaluating(dynamic):
        for batch in loader:
            collector.add(batch)
    frames = Counter(sample.clip.shape[2] for sample in collector.out.samples)
    assert set(frames) == {4, 8}
    assert all(len(sample.clip) == 1 for sample in collector.out.samples)


@pytest.mark.gpu
def test_times_on_an_accelerator(dynamic, clips):
    made = report(dynamic.cuda(), clips, timing_clips=1, timing_repeats=2)
    assert made.environment.device == "cuda:0"
    assert made.totals.timing.dense.ms > 0
