"""Which choices the weights learn before any gate decides."""

import pytest
from networks import tiny_net

import vared2_fx as vr
from vared2_fx.train.variants import trained_choices


@pytest.mark.parametrize(
    ("strides", "trained"), [((1,), {1}), ((1, 2), {1, 2}), ((1, 4), {1, 4}), ((1, 2, 4), {1, 2}), ((1, 2, 8), {1, 2})]
)
def test_only_of_several_strides_the_coarsest_is_left_out(strides, trained):
    dynamic = vr.convert(tiny_net(), config=vr.ConvertConfig(frame_strides=strides))
    choices = trained_choices(dynamic)
    assert {choice.frame_stride for choice in choices} == trained
    for stride in trained:
        assert {c.channel_share for c in choices if c.frame_stride == stride} == {1.0, 0.5}
