"""The runner: order, log, and the name of the pass that failed."""

import logging
import sys
from functools import partial

import pytest
from networks import CONVS, make_clip, tiny_net
from torch import fx

import vared2_fx as vr
from vared2_fx import ConvertConfig
from vared2_fx.errors import ConvertError
from vared2_fx.passes.pipeline import pipeline, run_passes
from vared2_fx.passes.planning import make_plan
from vared2_fx.passes.rewrite import gate_convs, regions
from vared2_fx.passes.trace import trace


def renamed(gm: fx.GraphModule, *, seen: list[str], name: str) -> fx.GraphModule:
    seen.append(name)
    return gm


def test_passes_run_in_order():
    seen, gm = [], trace(tiny_net())
    assert run_passes(gm, [partial(renamed, seen=seen, name=name) for name in "abc"]) is gm
    assert seen == ["a", "b", "c"]


def test_what_changed_is_logged(caplog):
    gm = trace(tiny_net())
    with caplog.at_level(logging.INFO, "vared2_fx"):
        run_passes(
            gm, [*pipeline(ConvertConfig(), make_plan(gm, config=ConvertConfig())), partial(renamed, seen=[], name="")]
        )
    first, second = [record.message for record in caplog.records if record.name.startswith("vared2_fx")]
    assert first.startswith("gate_convs: Conv3d 6 -> 0, DynamicConv 0 -> 6, Gate 0 -> 6 (")
    assert second.startswith("renamed: nothing to change (")


def test_the_pipeline_carries_out_the_plan():
    config = ConvertConfig(exclude=("grouped",), frame_strides=(1, 3))
    gm = trace(tiny_net())
    plan = make_plan(gm, config=config)
    out = run_passes(gm, pipeline(config, plan))
    assert {path: region.grid for path, region in regions(out).items()} == {r.path: r.grid for r in plan.regions}
    assert set(regions(out)) == set(CONVS) - {"grouped"}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions take no notes before Python 3.11")
def test_an_error_names_its_pass():
    with pytest.raises(ConvertError, match="`nowhere` is called 0 times") as error:
        run_passes(trace(tiny_net()), [partial(gate_convs, sites={"nowhere": None}, config=ConvertConfig())])
    assert error.value.__notes__ == ["in the pass gate_convs"]


def test_nothing_is_left_of_the_example_in_the_result():
    dynamic = vr.convert(tiny_net(), make_clip(1, 3, 8, 16, 16))
    assert all(not node.meta for node in dynamic.graph.nodes)
