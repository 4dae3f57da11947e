"""Granularity `auto`: real times decide, so tests hold what must be whatever they are."""

import copy

import pytest
import torch
from block_networks import block_net
from networks import make_clip

import vared2_fx as vr
from vared2_fx import ConvertConfig, auto
from vared2_fx.auto import pick, places
from vared2_fx.errors import ConvertError
from vared2_fx.passes.rewrite import regions

CLIPS = make_clip(2, 3, 8, 32, 32)
AUTO = ConvertConfig(granularity="auto", min_macs_share=0.0)


def test_what_is_picked():
    assert pick({"block": 1.10, "stage": 1.10}) == "block"
    assert pick({"block": 1.10, "stage": 1.30}) == "stage"
    assert pick({"block": 0.98, "stage": 1.01}) == "stage"
    assert pick({"block": 1.01}) == "block"
    assert pick({"block": 1.01, "stage": 0.9}) == "block"
    assert pick({"block": 0.99, "stage": 1.0}) is None
    assert pick({"stage": 0.9}) is None


def test_every_region_of_both_plans_has_one_place():
    model = block_net("Residual")
    both = [vr.scan(model, CLIPS, ConvertConfig(granularity=kind, min_macs_share=0.0)) for kind in ("block", "stage")]
    found = places(*both)
    assert [place.stage for place in found if place.stage] == list(both[1].regions)
    assert sorted(block.path for place in found for block in place.blocks) == sorted(r.path for r in both[0].regions)
    assert max(len(place.blocks) for place in found) == 3, "two residual branches and a shortcut"


@pytest.mark.parametrize("name", ["Residual", "Inception"])
def test_it_is_exact_and_says_why(name, tmp_path, monkeypatch):
    measure, times = auto._measure, []

    def measured_once(*args):  # scan and convert measure each for itself, and may come to another plan
        if not times:
            times.append(measure(*args))
        return times[0]

    monkeypatch.setattr(auto, "_measure", measured_once)
    model = block_net(name)
    before = copy.deepcopy(model.state_dict())
    plan = vr.scan(model, CLIPS, AUTO)
    text = str(plan)
    for region in plan.regions:
        assert region.path in text
        assert region.why.startswith(("in blocks, as with R=2", "as a stage, as with R=2"))
    for entry in plan.skipped:
        if entry.reason == "not_faster":
            assert "gets no faster in torch" in entry.detail
    convs = [path for region in plan.regions for path in region.convs]
    assert sorted(convs) == sorted(entry.path for entry in plan.converted), "each in one region"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    if not plan.regions:
        return  # nothing was faster, this time
    dynamic = vr.convert(model, CLIPS, AUTO)
    torch.testing.assert_close(dynamic(CLIPS), model(CLIPS), rtol=1e-4, atol=1e-5)
    vr.save(dynamic, tmp_path / "auto")
    again = vr.load(tmp_path / "auto", base=model)
    assert list(regions(again)) == list(regions(dynamic)), "loading measures nothing"
    assert torch.equal(again.eval()(CLIPS), dynamic.eval()(CLIPS))


def test_a_mixed_plan_of_blocks_and_stages_converts():
    """Whatever was faster here: one place as a stage, the other as blocks."""
    from vared2_fx.auto import _merged
    from vared2_fx.convert import apply_plan
    from vared2_fx.passes.planning import make_plan
    from vared2_fx.passes.shapes import measure_shapes
    from vared2_fx.passes.trace import copy_model, trace

    model = block_net("Residual")
    gm = measure_shapes(trace(copy_model(model)), CLIPS)
    both = {}
    for kind in ("block", "stage"):
        config = ConvertConfig(granularity=kind, min_macs_share=0.0)
        both[kind] = make_plan(gm, config=config, source=model, input_shape=tuple(CLIPS.shape))
    first, *others = places(both["block"], both["stage"])
    assert first.stage is not None
    chosen = {first.stage.path: first.stage} | {b.path: b for place in others for b in place.blocks}
    plan = _merged(both["block"], gm, chosen, {})
    dynamic = apply_plan(gm, plan, AUTO, None).eval()
    assert plan.regions[0].path == first.stage.path
    assert len(plan.regions) > 2
    torch.testing.assert_close(dynamic(CLIPS), model(CLIPS), rtol=1e-4, atol=1e-5)
    with vr.policy(dynamic, {"*": (2, 0.5)}):
        assert not torch.allclose(dynamic(CLIPS), model(CLIPS))
        fixed = dynamic(CLIPS)
    torch.testing.assert_close(vr.specialize(dynamic, {"*": (2, 0.5)})(CLIPS), fixed, rtol=1e-4, atol=1e-5)


def test_an_engine_that_is_none_is_refused():
    with pytest.raises(ConvertError, match="engine='tensorrt', expected one of torch, compile, onnx, openvino"):
        ConvertConfig(granularity="auto", engine="tensorrt")
