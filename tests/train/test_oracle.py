"""The oracle beside what the network answers at each choice."""

import pytest
import torch
from networks import make_clip, tiny_net

import vared2_fx as vr
from vared2_fx.errors import ConvertError, DataError
from vared2_fx.train.oracle import _summed

CLIPS, LABELS = make_clip(10, 3, 8, 16, 16), torch.arange(10) % 5


def test_it_is_what_each_choice_answers():
    dynamic = vr.convert(tiny_net()).train()
    found = vr.oracle(dynamic, [(CLIPS[:6], LABELS[:6]), (CLIPS[6:], LABELS[6:])])
    dynamic.eval()
    right = {}
    for rung in found.rungs:
        with vr.policy(dynamic, {"*": rung.choice}):
            evaluation = vr.evaluate(dynamic, [(CLIPS, LABELS)])
        assert rung.accuracy == evaluation.accuracy
        assert rung.share == pytest.approx(evaluation.share)
        right[rung.choice] = [clip.label == clip.prediction for clip in evaluation.clips]
    assert found.num_clips == 10
    assert found.accuracy == sum(map(any, zip(*right.values(), strict=True))) / 10
    assert [rung.share for rung in found.rungs] == sorted((rung.share for rung in found.rungs), reverse=True)
    assert "oracle: top-1" in str(found)


def test_the_cheapest_right_choice_counts():
    ladder, shares = [vr.Choice(1, 1.0), vr.Choice(2, 1.0), vr.Choice(4, 1.0)], [1.0, 0.5, 0.25]
    right = [[True, True, False], [True, False, True], [True, False, False], [False, False, False]]
    found = _summed(ladder, shares, right)
    assert [rung.clips for rung in found.rungs] == [1, 1, 2]
    assert [rung.accuracy for rung in found.rungs] == [0.75, 0.25, 0.25]
    assert found.accuracy == 0.75
    assert found.share == (1.0 + 0.5 + 0.25 + 0.25) / 4


def test_clear_errors():
    dynamic = vr.convert(tiny_net())
    with pytest.raises(DataError, match="oracle: the loader gave no clips"):
        vr.oracle(dynamic, [])
    with pytest.raises(DataError, match="no labels"):
        vr.oracle(dynamic, [CLIPS])
    with pytest.raises(ConvertError, match="oracle: this TinyNet holds no dynamic region"):
        vr.oracle(tiny_net(), [(CLIPS, LABELS)])
