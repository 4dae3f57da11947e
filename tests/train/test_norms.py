"""Recalibrated norms have the statistics of what their choice computes."""

import copy

import pytest
import torch
from block_networks import CLIP, block_net
from networks import make_clip, tiny_net

import vared2_fx as vr
from vared2_fx import ConvertConfig
from vared2_fx.errors import DataError, TrainError
from vared2_fx.layers import DynamicBlock, SlimNorm
from vared2_fx.passes.rewrite import regions
from vared2_fx.train.regress import settle_gate

LOADER = [make_clip(4, 3, 8, 32, 32, seed=seed) for seed in range(3)]


def converted(granularity: str = "block", strides: tuple = (1, 2), shares: tuple = (1.0,)) -> torch.fx.GraphModule:
    config = ConvertConfig(granularity=granularity, frame_strides=strides, channel_shares=shares)
    return vr.convert(block_net("Residual"), CLIP, config)


@pytest.mark.parametrize("granularity", ["block", "stage"])
@pytest.mark.parametrize("choice", [(2, 1.0), (1, 0.5)])
def test_statistics_are_those_of_what_the_choice_computes(granularity, choice):
    dynamic = converted(granularity, (1, choice[0]) if choice[0] > 1 else (1,), (1.0, 0.5) if choice[1] < 1 else (1.0,))
    vr.recalibrate_norms(dynamic, LOADER)
    static = copy.deepcopy(vr.specialize(dynamic, {"*": choice}))
    norms = [module for module in static.modules() if isinstance(module, SlimNorm)]
    expected = {norm: (norm.statistics.running_mean.clone(), norm.statistics.running_var.clone()) for norm in norms}
    seen = {norm: [] for norm in norms}
    for norm in norms:
        norm.statistics.train()  # as each saw what the one before it made with the batch's own statistics
        norm.register_forward_pre_hook(lambda norm, args: seen[norm].append(args[0]))
    with torch.no_grad():
        for clips in LOADER:
            static(clips)
    assert norms
    for norm, inputs in seen.items():
        first = torch.stack([x.mean((0, 2, 3, 4)) for x in inputs]).mean(0)
        spread = torch.stack([x.var((0, 2, 3, 4)) for x in inputs]).mean(0)
        torch.testing.assert_close(expected[norm], (first, spread), rtol=1e-4, atol=1e-5)


def test_nothing_else_changes():
    dynamic = converted().train()
    before = {name: value.clone() for name, value in dynamic.state_dict().items()}
    model = block_net("Residual")
    assert vr.recalibrate_norms(dynamic, LOADER) == 12
    changed = {name for name, value in dynamic.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(".statistics." in name for name in changed)
    assert all(module.training for module in dynamic.modules())
    assert all(norm.momentum == 0.1 for norm in dynamic.modules() if isinstance(norm, torch.nn.BatchNorm3d))
    with vr.full(dynamic):
        assert torch.equal(dynamic.eval()(CLIP), model(CLIP))


def test_clear_errors():
    with pytest.raises(TrainError, match="no choice has batch norms of its own"):
        vr.recalibrate_norms(vr.convert(tiny_net()), LOADER)
    dynamic = converted()
    before = {name: value.clone() for name, value in dynamic.state_dict().items()}
    with pytest.raises(DataError, match="gave no clips"):
        vr.recalibrate_norms(dynamic, [])
    assert all(torch.equal(value, before[name]) for name, value in dynamic.state_dict().items()), "nothing is lost"
    assert all(isinstance(region, DynamicBlock) for region in regions(dynamic).values())


def statistics(region: DynamicBlock) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in region.statistics.state_dict().items()}


def test_settled_gates_are_measured_together():
    dynamic = converted(shares=(1.0, 0.5))
    found = regions(dynamic)
    slim, first = vr.Choice(1, 0.5), next(iter(found))
    others = [path for path, region in found.items() if slim in region.grid.all()]
    assert others
    assert first not in others
    vr.recalibrate_norms(dynamic, LOADER)
    alike = {path: statistics(region) for path, region in found.items()}
    for path, region in found.items():
        settle_gate(region.gate, vr.Choice(2, 1.0) if path == first else slim)
    vr.recalibrate_norms(dynamic, LOADER)
    for path in others:
        place = found[path].grid.all().index(slim) - 1
        changed = [name for name, value in statistics(found[path]).items() if not torch.equal(value, alike[path][name])]
        assert changed, "it sees other maps, as the first region takes another choice"
        assert all(name.startswith(f"{place}.") for name in changed), "all other choices are taken alike, as before"
    together = {path: statistics(region) for path, region in found.items()}
    assert vr.recalibrate_norms(dynamic, LOADER[:1], taken_only=True) == 4
    for path in others:
        changed = [
            name for name, value in statistics(found[path]).items() if not torch.equal(value, together[path][name])
        ]
        assert changed
        assert all(name.startswith(f"{found[path].grid.all().index(slim) - 1}.") for name in changed)
    vr.recalibrate_norms(dynamic, LOADER)
    means = [name for name in alike[first] if name.endswith(("running_mean", "running_var"))]
    assert means
    for name in means:
        torch.testing.assert_close(statistics(found[first])[name], alike[first][name])
