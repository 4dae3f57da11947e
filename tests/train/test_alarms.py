"""Alarms and summaries over evaluations made by hand, and one that gates decided."""

import numpy as np
import pytest
from small import config, loaders, small_net

import vared2_fx as vr
from vared2_fx.layers import FULL, Choice
from vared2_fx.policy.counts import LayerDecisions
from vared2_fx.train import ClipResult, Evaluation

HALF = Choice(2, 1.0)


def evaluation(macs: list[int], choices: dict[str, dict[Choice, int]]) -> Evaluation:
    clips = [ClipResult(name="", label=i % 2, prediction=0, macs=m, rank=i % 7) for i, m in enumerate(macs)]
    layers = {path: LayerDecisions(share=0.5, entropy=0.0, choices=counts) for path, counts in choices.items()}
    return Evaluation(clips=tuple(clips), dense_macs=100, layers=layers)


def test_what_decides_raises_no_alarm():
    assert vr.collapse_alarms(evaluation([50, 100] * 5, {"a": {FULL: 5, HALF: 5}})) == ()


@pytest.mark.parametrize(
    ("macs", "counts", "alarm"),
    [
        ([50, 100] * 5, {FULL: 0, HALF: 10}, "a takes R=2 r=1 for 10 of 10 clips"),
        ([50, 100] * 100, {FULL: 2, HALF: 198}, "a takes R=2 r=1 for 198 of 200 clips"),
        ([50, 100] * 5, {FULL: 5, HALF: 5, Choice(4, 1.0): 0}, "a never takes R=4 r=1"),
        ([50, 100] * 5, {FULL: 0, HALF: 0}, "a ran for no clip"),
        ([70, 71] * 5, {FULL: 5, HALF: 5}, "all clips take 70.5 % of the multiply-adds"),
    ],
)
def test_each_alarm(macs, counts, alarm):
    (found,) = vr.collapse_alarms(evaluation(macs, {"a": counts}))
    assert found.startswith(alarm)


def test_few_clips_and_static_networks_say_nothing():
    assert vr.collapse_alarms(evaluation([50] * 7, {"a": {FULL: 0, HALF: 7}})) == ()
    assert vr.collapse_alarms(evaluation([100] * 10, {})) == ()


def test_summaries_by_hand():
    made = evaluation([10, 20, 30, 40, 50], {})
    assert made.percentile(50) == 30
    assert made.percentile(90) == pytest.approx(46)
    assert made.spread == pytest.approx(np.sqrt(200) / 100)
    assert made.top5 == 1.0
    assert evaluation([1] * 7, {}).top5 == pytest.approx(5 / 7)
    cost = made.by_class()
    assert (cost[0].clips, cost[0].accuracy, cost[0].share) == (3, 1.0, 0.3)
    assert (cost[1].clips, cost[1].accuracy, cost[1].share) == (2, 0.0, 0.3)


def test_a_run_tells_its_alarms(caplog):
    dynamic = vr.convert(small_net(), config=vr.ConvertConfig(min_macs_share=0.0))
    with caplog.at_level("INFO", logger="vared2_fx"):
        result = vr.finetune(dynamic, *loaders(), config(epochs=1, lr=0.0, gate_lr=0.0))
    assert [epoch.alarms for epoch in result.history] == [3, 3]  # the network and its two gates, all in full
    assert "all clips take" in result.alarms[0]
    assert "3 takes R=1 r=1 for 32 of 32 clips: its gate decides nothing" in caplog.text
    counts = result.evaluation.layers["0"].choices
    assert counts[FULL] == 32
    assert sum(counts.values()) == 32
    assert all(clip.rank == (clip.prediction != clip.label) for clip in result.evaluation.clips)  # of two classes
