"""What holds for every network that can be drawn."""

import tempfile

import pytest
import torch
from hypothesis import assume, given, settings
from networks import randomise_gates
from random_nets import RandomNet, build, clips_of, configs, deciding, drawn_nets

import vared2_fx as vr
from vared2_fx.errors import ConvertError
from vared2_fx.passes.rewrite import regions, with_decisions
from vared2_fx.policy.statistics import clip_macs, dense_macs

NEAR = {"rtol": 1e-9, "atol": 1e-9}
"""Float64: a library may pick another kernel for another batch."""

FEW = settings(max_examples=40)


def converted(net, config):
    """The original, the dynamic network and clips; a draw in which nothing converts is left out."""
    drawn, size = net
    clips = clips_of(size)
    model = build(drawn, clips)
    try:
        return model, vr.convert(model, clips, config), clips
    except ConvertError as exc:
        assume("nothing worth converting" not in str(exc))
        raise


@FEW
@given(net=drawn_nets(), config=configs())
def test_conversion_is_exact_and_there_is_a_way_back(net, config):
    model, dynamic, clips = converted(net, config)
    for batch in (clips, clips[:1], torch.cat([clips, clips], 2), clips[..., :-1]):
        assert torch.equal(dynamic(batch), model(batch))
    back = vr.unload(deciding(dynamic, clips))
    assert torch.equal(back(clips), model(clips))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in back.state_dict().items())
    assert back.state_dict().keys() == model.state_dict().keys()


@FEW
@given(net=drawn_nets(), config=configs())
def test_full_is_the_original_whatever_the_gates_say(net, config):
    model, dynamic, clips = converted(net, config)
    deciding(dynamic, clips)
    with vr.full(dynamic):
        assert torch.equal(dynamic(clips), model(clips))
    assert torch.equal(vr.specialize(dynamic, {})(clips), model(clips))


@FEW
@given(net=drawn_nets(), config=configs())
def test_a_batch_is_its_clips(net, config):
    _, dynamic, clips = converted(net, config)
    deciding(dynamic, clips)
    together = dynamic(clips)
    torch.testing.assert_close(together, torch.cat([dynamic(clip[None]) for clip in clips]), **NEAR)
    torch.testing.assert_close(dynamic(clips.flip(0)), together.flip(0), **NEAR)


@FEW
@given(net=drawn_nets(), config=configs())
def test_what_is_saved_comes_back_to_the_bit(net, config):
    _, dynamic, clips = converted(net, config)
    deciding(dynamic, clips)
    with tempfile.TemporaryDirectory() as folder:
        loaded = vr.load(vr.save(dynamic, folder), base=RandomNet(net[0]))
    assert all(torch.equal(value, dynamic.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert torch.equal(loaded(clips), dynamic(clips))


@FEW
@given(net=drawn_nets(), config=configs())
def test_the_plan_prices_what_then_runs(net, config):
    model, dynamic, clips = converted(net, config)
    plan = vr.scan(model, clips, config)
    for level in ("full", "middle", "cheapest"):
        with vr.policy(dynamic, plan.policy(level)):
            decisions = with_decisions(dynamic)(clips)[1]
        assert set(clip_macs(decisions, dense_macs(dynamic, clips)).tolist()) == {getattr(plan.reach, level)}


def test_the_draws_are_of_every_kind():
    """The control: what is drawn has all that is claimed, and its gates do decide."""
    kinds, groups, skipped = set(), set(), []

    @settings(max_examples=40)
    @given(net=drawn_nets())
    def look(net):
        drawn, clips = net[0], clips_of(net[1]).float()
        kinds.update(layer.kind for layer in drawn)
        groups.update(layer.groups for layer in drawn)
        config = vr.ConvertConfig(min_channels=1, min_frames=1, min_macs_share=0.0)
        dynamic = vr.convert(build(drawn, clips, torch.float32), clips, config)
        randomise_gates(dynamic, clips)
        decisions = with_decisions(dynamic)(clips)[1]
        skipped.append(any(bool((d.weights[:, 0] == 0).any()) for d in decisions.values()))
        assert regions(dynamic)

    look()
    assert kinds == {"plain", "residual", "concat", "paths", "excite"}
    assert groups == {1, 2, 3}
    assert sum(skipped) > len(skipped) / 2


@pytest.mark.slow
@settings(max_examples=300)
@given(net=drawn_nets(), config=configs())
def test_many_more(net, config):
    model, dynamic, clips = converted(net, config)
    assert torch.equal(dynamic(clips), model(clips))
    deciding(dynamic, clips)
    torch.testing.assert_close(dynamic(clips), torch.cat([dynamic(clip[None]) for clip in clips]), **NEAR)
    assert torch.equal(vr.unload(dynamic)(clips), model(clips))
