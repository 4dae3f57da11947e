"""Rebuild errors, drift, sensitivity, entropies, alarms, thumbnails, interruptions."""

import base64
import io
import math
from dataclasses import replace

import pytest
import torch
from networks import Net, make_clip
from PIL import Image

from vared2_fx import Choice, ConvertConfig, convert, full, policy, report
from vared2_fx.errors import ReportError
from vared2_fx.passes.rewrite import regions
from vared2_fx.report.alarms import alarms
from vared2_fx.report.examples import FRAMES, SIDE_PX, jpeg_frames
from vared2_fx.report.numbers import Latency, PerClip, Timing


def test_percentiles_are_values_that_occur():
    made = PerClip.of({10: 94, 30: 5, 20: 0, 500: 1})
    assert (made.total, made.mean, made.min, made.p50, made.p95, made.max) == (1590, 15.9, 10, 10, 30, 500)
    assert (made.values, made.clips) == ((10, 30, 500), (94, 5, 1))
    assert PerClip.of({}) == PerClip(total=0, mean=0.0, min=0, p50=0, p95=0, max=0, values=(), clips=())


def test_rebuild_errors_by_hand(dynamic, clips):
    made = report(dynamic, clips[:1], timing=False)
    row = next(layer for layer in made.layers if layer.path == "expand")
    assert [(e.frame_stride, e.channel_share) for e in row.rebuild_errors] == [
        (c.frame_stride, c.channel_share) for c in row.choices[1:]
    ]
    region, seen = regions(dynamic)["expand"], []
    hook = region.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        dynamic(clips[:1])
        hook.remove()
        whole = region.body(seen[0])
        for error in row.rebuild_errors:
            part = region.variant(Choice(error.frame_stride, error.channel_share))(seen[0])
            assert error.error == pytest.approx(float((part - whole).norm() / whole.norm()), rel=1e-4)
            assert error.clips == 1
    picked = next(c for c in row.choices if c.clips)
    errors = {(e.frame_stride, e.channel_share): e.error for e in row.rebuild_errors}
    assert row.mean_rebuild_error == errors.get((picked.frame_stride, picked.channel_share), 0.0)


def test_drift_is_the_distance_from_everything_computed(dynamic, clips):
    made = report(dynamic, clips, timing=False, timing_clips=6)
    with torch.no_grad():
        output = dynamic(clips)
        with full(dynamic):
            whole = dynamic(clips)
    expected = ((output - whole).norm(dim=1) / whole.norm(dim=1)).mean()
    assert made.totals.drift == pytest.approx(float(expected), rel=1e-4)
    assert made.totals.num_drift_clips == 6
    with full(dynamic):
        assert report(dynamic, clips, timing=False).totals.drift == 0


def test_sensitivity_is_that_of_one_layer_alone(dynamic, clips):
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    made = report(dynamic, [(clips, labels)], timing=False, sensitivity=True)
    with torch.no_grad(), full(dynamic):
        whole = dynamic(clips)
        for layer in made.dynamic:
            alone = layer.sensitivity
            assert (alone.frame_stride, alone.channel_share) == (4, 0.5)
            with policy(dynamic, {layer.path: (4, 0.5)}):
                output = dynamic(clips)
            drift = ((output - whole).norm(dim=1) / whole.norm(dim=1)).mean()
            assert alone.drift == pytest.approx(float(drift), rel=1e-4)
            changed = (output.argmax(1) != whole.argmax(1)).double().mean()
            assert alone.changed_answers == pytest.approx(float(changed))
            gain = (output.argmax(1) == labels).double().mean() - (whole.argmax(1) == labels).double().mean()
            assert alone.accuracy_change == pytest.approx(float(gain))
            assert alone.clips == 6
    assert len({layer.sensitivity.drift for layer in made.dynamic}) > 1


def test_sensitivity_without_labels(dynamic, clips):
    (first, *_) = report(dynamic, clips, timing=False, sensitivity=True, sensitivity_clips=2).dynamic
    assert first.sensitivity.accuracy_change is None
    assert first.sensitivity.clips == 2


def test_entropies(dynamic, clips):
    made = report(dynamic, clips, timing=False)
    for layer in made.dynamic:
        counts = [choice.clips / 6 for choice in layer.choices if choice.clips]
        assert layer.choice_entropy == pytest.approx(-sum(p * math.log2(p) for p in counts))
        assert 0 <= layer.gate_entropy.bits <= math.log2(3) + 1
        assert layer.gate_entropy.clips == 6
    gate = regions(dynamic)["expand"].gate
    with torch.no_grad():  # every choice as likely, whatever the clip
        gate.out.weight.zero_()
        gate.out.bias.zero_()
    even = next(layer for layer in report(dynamic, clips, timing=False).dynamic if layer.path == "expand")
    assert even.gate_entropy.bits == pytest.approx(math.log2(3) + 1, abs=1e-5)
    with policy(dynamic, {"*": (2, 0.5)}):
        fixed = report(dynamic, clips, timing=False)
    assert all(layer.gate_entropy is None and layer.choice_entropy == 0 for layer in fixed.dynamic)


def codes(made, path: str) -> set[str]:
    return {alarm.code for alarm in alarms(made) if alarm.path == path}


def test_alarms(dynamic):
    with policy(dynamic, {"expand": (2, 0.5)}):
        made = report(dynamic, make_clip(9, 3, 8, 16, 16), timing=False)
    assert "collapsed" in codes(made, "expand")
    assert made.alarms == alarms(made)
    few = report(dynamic, make_clip(3, 3, 8, 16, 16), timing=False)
    assert not any(alarm.code == "collapsed" for alarm in few.alarms)

    def latency(ms: float) -> Latency:
        return Latency(ms=ms, min_ms=0.9 * ms, max_ms=2 * ms, clips=1)

    slow, fast = Timing(dense=latency(1.0), dynamic=latency(1.5)), Timing(dense=latency(1.0), dynamic=latency(1.06))
    for timing, expected in ((slow, True), (fast, False)):  # 1.06: within what repetitions vary
        layers = tuple(replace(layer, timing=timing) for layer in made.layers)
        other = replace(made, layers=layers, totals=replace(made.totals, timing=timing))
        assert ("slower" in codes(other, "expand")) == ("slower" in codes(other, "")) == expected
    drifted = replace(made, totals=replace(made.totals, drift=0.9, saved_share=-0.1))
    assert {"drift", "costs_more"} <= codes(drifted, "")


class Branching(Net):
    """Never calls `b` on clips like the test's."""

    def forward(self, x):
        x = self.a(x).relu()
        if x.sum() < 0:
            x = self.b(x)
        return self.head(x.mean((2, 3, 4)))


def test_a_layer_that_never_ran():
    dynamic = convert(Branching().eval(), config=ConvertConfig(min_macs_share=0))
    made = report(dynamic, make_clip(2, 3, 4, 6, 6), timing_clips=1, timing_repeats=1, sensitivity=True)
    (leaf,) = (node for node in made.graph if node.name == "whole_network")
    assert leaf.reads == ("input",)
    row = next(layer for layer in made.layers if layer.path == "b")
    assert (row.dense_macs.num_clips, row.dense_macs.total, row.timing, row.choice_entropy) == (0, 0, None, None)
    assert codes(made, "b") == {"never_ran"}
    assert made.totals.dense_macs.total == sum(layer.dense_macs.total for layer in made.layers)
    for text in (str(made), made.to_html(), made.to_markdown(), made.to_csv()):
        assert "b" in text
    assert type(made).from_json(made.to_json()) == made


def interrupt_at(dynamic, calls: int):
    """Interrupt once the gate of `last` was asked `calls` times."""
    left = iter(range(calls))

    def ring(module, args):
        if next(left, None) is None:
            raise KeyboardInterrupt

    return regions(dynamic)["last"].gate.register_forward_pre_hook(ring)


def test_an_interruption_keeps_the_clips_before_it(dynamic, clips, caplog):
    hook = interrupt_at(dynamic, 3)
    made = report(dynamic, clips, sensitivity=True)
    hook.remove()
    assert made.totals.num_clips == 3
    assert made.missing == (
        "the clips after batch 3 of 6: counting was interrupted",
        "times and rebuild errors",
        "sensitivity",
    )
    assert "interrupted; missing: the clips after batch 3 of 6" in caplog.text
    assert "interrupted; missing" in str(made)
    assert made.layers == report(dynamic, clips[:3], timing=False, rebuild_error=False).layers
    assert not any(module._forward_hooks for module in dynamic.modules())


def test_an_interruption_while_measuring_keeps_what_was_counted(dynamic, clips):
    hook = interrupt_at(dynamic, 6 + 4)
    made = report(dynamic, clips)
    hook.remove()
    assert made.totals.num_clips == 6
    assert made.missing == ("times and rebuild errors on some of 3 clips",)


def test_an_interruption_before_the_first_clip_is_one(dynamic, clips):
    hook = interrupt_at(dynamic, 0)
    with pytest.raises(KeyboardInterrupt):
        report(dynamic, clips)
    hook.remove()


@pytest.mark.parametrize("shape", [(3, 16, 200, 100), (3, 4, 20, 20), (1, 8, 30, 30), (2, 8, 30, 30)])
def test_thumbnails(shape):
    frames = jpeg_frames(make_clip(*shape))
    assert len(frames) == min(FRAMES, shape[1])
    picture = Image.open(io.BytesIO(base64.b64decode(frames[0])))
    assert picture.format == "JPEG"
    assert max(picture.size) == min(SIDE_PX, max(shape[2:]))
    assert jpeg_frames(torch.zeros(shape))  # nothing to stretch


@pytest.mark.parametrize("wrong", [{"sensitivity": True, "sensitivity_clips": 0}, {"timing_clips": 0, "timing": False}])
def test_measuring_on_no_clip_is_refused(dynamic, clips, wrong):
    with pytest.raises(ReportError, match="at least 1"):
        report(dynamic, clips, **wrong)
