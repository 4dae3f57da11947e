"""What a network with modules that torch.fx cannot follow is good for: decisions, copies, training, saving."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from networks import randomise_gates, randomise_rebuilds
from torch import Tensor
from untraced_nets import CASES, CLIP, INSIDE, Block, InTheMiddle, made

import vared2_fx as vr
from vared2_fx import Choice
from vared2_fx.convert import conversion
from vared2_fx.layers import SelfGated
from vared2_fx.passes.rewrite import regions, with_decisions
from vared2_fx.passes.trace import fork
from vared2_fx.policy.reach import reachable
from vared2_fx.policy.statistics import clip_macs, dense_macs


@pytest.mark.parametrize("kind", CASES)
def test_decisions_come_out(kind):
    dynamic = randomise_gates(vr.convert(made(kind), CLIP), CLIP)
    output, decisions = with_decisions(dynamic)(CLIP)
    assert torch.equal(output, dynamic(CLIP))
    assert set(decisions) == set(CASES[kind][0]) - {"block.seldom"}
    assert all(decision.weights.shape[0] == 3 for decision in decisions.values())
    assert clip_macs(decisions, dense_macs(dynamic, CLIP)).shape == (3,)
    with vr.policy(dynamic, {"*": (2, 0.5)}):
        _, fixed = with_decisions(dynamic)(CLIP)
        assert all((decision.weights == fixed["a"].weights).all() for decision in fixed.values())


def test_decisions_of_a_branch_come_with_the_branch():
    dynamic = vr.convert(made(InTheMiddle))
    observed = with_decisions(dynamic)
    assert "block.seldom" not in observed(CLIP)[1]
    assert "block.seldom" in observed(CLIP + 1e5)[1]


@pytest.mark.parametrize("kind", CASES)
def test_choices_can_be_fixed_for_good(kind):
    dynamic = randomise_rebuilds(vr.convert(made(kind), CLIP))
    static = vr.specialize(dynamic, {"*": (2, 0.5)})
    with vr.policy(dynamic, {"*": (2, 0.5)}) as taken:
        assert torch.equal(static(CLIP), dynamic(CLIP))
    assert taken["b"] == Choice(2, 0.5)
    assert not any(isinstance(module, SelfGated) for module in static.modules())
    assert any(isinstance(module, SelfGated) for module in dynamic.modules())


@pytest.mark.parametrize("kind", CASES)
def test_unload_gives_the_original_back(kind):
    model = made(kind)
    original = vr.unload(vr.convert(model, CLIP))
    assert torch.equal(original(CLIP), model(CLIP))
    assert original.state_dict().keys() == model.state_dict().keys()
    model.load_state_dict(original.state_dict())


@pytest.mark.parametrize("kind", CASES)
def test_training_reaches_everything_that_runs(kind):
    dynamic = vr.convert(made(kind), CLIP).train()
    output, decisions = with_decisions(dynamic)(CLIP)
    (output.square().sum() + vr.efficiency_loss(decisions)).backward()
    missing = {name for name, parameter in dynamic.named_parameters() if parameter.grad is None}
    assert all("seldom" in name for name in missing)


@pytest.mark.parametrize("copied", [copy.deepcopy, fork, lambda d: pickle.loads(pickle.dumps(d))])
@pytest.mark.parametrize("kind", CASES)
def test_copies_decide_the_same(kind, copied):
    dynamic = randomise_gates(randomise_rebuilds(vr.convert(made(kind), CLIP)), CLIP)
    for network in (dynamic, with_decisions(dynamic)):
        ours, theirs = network(CLIP), copied(network)(CLIP)
        if isinstance(ours, tuple):
            assert ours[1].keys() == theirs[1].keys()
            ours, theirs = ours[0], theirs[0]
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", CASES)
def test_save_and_load(kind, tmp_path):
    model = made(kind)
    dynamic = randomise_gates(randomise_rebuilds(vr.convert(model, CLIP)), CLIP)
    again = vr.load(vr.save(dynamic, tmp_path / "saved"), base=made(kind))
    assert torch.equal(again(CLIP), dynamic(CLIP))
    assert conversion(again) == conversion(dynamic)


@pytest.mark.parametrize("kind", CASES)
def test_a_fork_leaves_its_source_alone(kind):
    dynamic = vr.convert(made(kind), CLIP)
    before = {path: id(region) for path, region in regions(dynamic).items()}
    vr.specialize(dynamic, {"*": (2, 0.5)})
    with_decisions(dynamic)
    vr.unload(dynamic)
    assert {path: id(region) for path, region in regions(dynamic).items()} == before


@pytest.mark.parametrize("kind", CASES)
def test_the_callers_network_is_untouched(kind, untouched):
    model = made(kind)
    with untouched(model):
        dynamic = vr.convert(model, CLIP)
        vr.scan(model)
        dynamic.train()(CLIP).sum().backward()
        dense_macs(model, CLIP)


def test_a_report_has_a_row_for_each_region_inside():
    dynamic = vr.convert(made(InTheMiddle), CLIP)
    with vr.policy(dynamic, {"*": (2, 0.5)}):
        report = vr.report(dynamic, CLIP, progress=False)
    rows = {layer.path: layer for layer in report.layers}
    assert {"a", "block.conv", "block.child.0", "b"} <= rows.keys()
    assert rows["block.conv"].kind == "dynamic"
    assert rows["block.conv"].timing is not None
    assert rows["block.conv"].computed_macs.mean < 0.5 * rows["block.conv"].dense_macs.mean
    assert report.totals.dense_macs.mean == dense_macs(dynamic, CLIP) == vr.scan(made(InTheMiddle), CLIP).macs


def test_threads_record_their_own_decisions():
    observed = with_decisions(randomise_gates(vr.convert(made(InTheMiddle), CLIP), CLIP))
    clips = [CLIP, CLIP + 1e5, CLIP[:1], -CLIP]
    expected = [observed(clip)[1] for clip in clips]
    with ThreadPoolExecutor(len(clips)) as pool:
        for _ in range(5):
            for (_, found), right in zip(pool.map(observed, clips), expected, strict=True):
                assert found.keys() == right.keys()
                assert all(torch.equal(found[path].weights, right[path].weights) for path in right)


@pytest.mark.parametrize("kind", CASES)
def test_a_network_that_shows_its_decisions_is_saved_without_them(kind, tmp_path):
    dynamic = randomise_gates(vr.convert(made(kind), CLIP))
    loaded = vr.load(vr.save(with_decisions(dynamic), tmp_path), base=made(kind))
    assert torch.equal(loaded(CLIP), dynamic(CLIP))
    assert list(loaded.state_dict()) == list(dynamic.state_dict())
    assert torch.equal(vr.unload(with_decisions(dynamic))(CLIP), made(kind)(CLIP))


@pytest.mark.parametrize("kind", CASES)
def test_what_is_reachable_is_what_a_run_takes(kind):
    model = made(kind)
    plan, dynamic = vr.scan(model, CLIP), vr.convert(model, CLIP)
    assert reachable(dynamic, CLIP) == plan.reach
    for level in ("full", "middle", "cheapest"):
        with vr.policy(dynamic, {path: tuple(choice) for path, choice in plan.policy(level).items()}):
            _, decisions = with_decisions(dynamic)(CLIP[:1])
        assert clip_macs(decisions, dense_macs(dynamic, CLIP)).tolist() == [getattr(plan.reach, level)]


class AlsoFunctional(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.conv3d(x, x.new_ones(8, 1, 1, 1, 1), groups=8))


def test_functions_inside_are_listed_and_modules_not_twice():
    model = made(InTheMiddle)
    model.block = AlsoFunctional().eval()
    entries = [(entry.path, entry.reason, entry.macs) for entry in vr.scan(model, CLIP).entries]
    assert [path for path, *_ in entries] == ["a", *INSIDE, "block", "b"]
    assert [(reason, macs) for path, reason, macs in entries if path == "block"] == [("functional", 8 * 6 * 8 * 8)]
    assert torch.equal(vr.convert(model, CLIP)(CLIP), model(CLIP))


class Caching(Block):
    """Keeps what it made at its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.bias: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None:
            self.bias = torch.ones_like(x[:1, :, :1, :1, :1])
        return super().forward(x) + self.bias


@pytest.mark.parametrize("inputs", [CLIP, None], ids=["with inputs", "without"])
def test_looking_leaves_nothing_behind_in_attributes(inputs):
    model = made(InTheMiddle)
    model.block = Caching().eval()
    dynamic = vr.convert(model, inputs)
    assert dynamic.block.bias is None
    assert torch.equal(dynamic(CLIP), model(CLIP))
