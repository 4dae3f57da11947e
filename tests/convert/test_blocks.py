"""Granularity block and stage: exact at first, every choice as its static graph, everything else as for `conv`."""

import copy
import pickle

import pytest
import torch
from block_networks import CLIP, NETWORKS, block_net
from networks import make_clip, randomise_gates, randomise_rebuilds
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

import vared2_fx as vr
from vared2_fx import ConvertConfig
from vared2_fx.errors import ConvertError
from vared2_fx.layers import Choice, DynamicBlock
from vared2_fx.passes.rewrite import regions, with_decisions

GRANULARITIES = ("block", "stage")
CHOICES = [Choice(r, share) for r in (1, 2, 4) for share in (1.0, 0.5)]


def converted(name: str, granularity: str, **options: object) -> tuple[nn.Module, fx.GraphModule]:
    model = block_net(name)
    options = {"frame_strides": (1, 2, 4), "gate": "gumbel", **options}
    return model, vr.convert(model, CLIP, ConvertConfig(granularity=granularity, **options))


def everything(test):
    test = pytest.mark.parametrize("granularity", GRANULARITIES)(test)
    return pytest.mark.parametrize("name", NETWORKS)(test)


@everything
def test_the_converted_network_computes_what_the_original_computed(name, granularity):
    model, dynamic = converted(name, granularity)
    assert all(isinstance(region, DynamicBlock) for region in regions(dynamic).values())
    for clip in (CLIP, make_clip(1, 3, 5, 36, 28), make_clip(2, 3, 13, 32, 32), 100 * CLIP):
        assert torch.equal(dynamic(clip), model(clip))
    for choice in ((2, 1.0), (1, 0.5)):
        with vr.policy(dynamic, {"*": choice}):  # the control
            assert not torch.allclose(dynamic(CLIP), model(CLIP), rtol=1e-3, atol=1e-3)


@everything
@pytest.mark.parametrize("num_frames", [5, 8])
def test_a_policy_and_the_specialised_graph_agree(name, granularity, num_frames):
    _, dynamic = converted(name, granularity)
    randomise_rebuilds(dynamic)
    clip = make_clip(2, 3, num_frames, 32, 32)
    fewest = min(region.out_frames(size[0]) for region, size in sizes_of(dynamic, clip).values())
    for choice in (choice for choice in CHOICES if choice.frame_stride <= fewest):
        with vr.policy(dynamic, {"*": choice}):
            expected = dynamic(clip)
        static = vr.specialize(dynamic, {"*": choice})
        assert not regions(static)
        torch.testing.assert_close(static(clip), expected, rtol=0, atol=0)
        torch.testing.assert_close(fx.symbolic_trace(static)(clip), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "granularity"), [("Inception", "block"), ("Residual", "stage"), ("Plain", "block")])
def test_specialised_graphs_export_and_compile_without_breaks(name, granularity):
    _, dynamic = converted(name, granularity)
    static = vr.specialize(randomise_rebuilds(dynamic), {"*": (2, 0.5)})
    expected = static(CLIP)
    exported = torch.export.export(static, (CLIP,)).module()
    torch.testing.assert_close(exported(CLIP), expected, rtol=1e-5, atol=1e-5)
    batch, frames = torch.export.Dim("batch", max=16), torch.export.Dim.AUTO
    clip = make_clip(3, 3, 12, 32, 32)
    flexible = torch.export.export(static, (CLIP,), dynamic_shapes=({0: batch, 2: frames},)).module()
    torch.testing.assert_close(flexible(clip), static(clip), rtol=1e-5, atol=1e-5)


@everything
def test_clips_with_too_few_frames_take_a_finer_stride(name, granularity):
    model, dynamic = converted(name, granularity)
    for num_frames in (1, 2, 3):
        clip = make_clip(2, 3, num_frames, 32, 32)
        try:
            expected = model(clip)
        except RuntimeError:
            continue  # too short for the original, too
        with vr.policy(dynamic, {"*": (4, 1.0)}):
            output, decisions = with_decisions(dynamic)(clip)
        assert output.isfinite().all()
        if num_frames == 1:
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
            assert all((d.macs[0] == d.macs[-1]).all() for d in decisions.values())


@everything
def test_each_clip_of_a_batch_gets_what_it_gets_alone(name, granularity):
    _, dynamic = converted(name, granularity)
    randomise_rebuilds(dynamic)
    clips = make_clip(6, 3, 8, 32, 32)
    randomise_gates(dynamic, clips)
    together, decisions = with_decisions(dynamic)(clips)
    picked = torch.cat([decision.weights for decision in decisions.values()], dim=1)
    assert len(picked.unique(dim=0)) > 1, "the clips should choose differently"
    for clip, expected in zip(clips, together, strict=True):
        torch.testing.assert_close(dynamic(clip[None])[0], expected, rtol=1e-4, atol=1e-5)


@everything
def test_counted_multiply_adds_are_those_that_run(name, granularity):
    """The report's price of each choice, the work that a policy runs, and torch's count of the specialised graph."""
    _, dynamic = converted(name, granularity)
    dense = executed_macs(block_net(name), CLIP)
    for choice in CHOICES:
        static = vr.specialize(dynamic, {"*": choice})
        priced = dense
        for region, size in sizes_of(dynamic).values():
            taken = region.grid.nearest(choice)
            priced += len(CLIP) * (region.conv_macs(size, taken) - region.conv_macs(size))
        assert executed_macs(static, CLIP) == priced
        with vr.policy(dynamic, {"*": choice}):
            assert executed_macs(dynamic, CLIP) == priced


@torch.no_grad()
def executed_macs(model: nn.Module, clip: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(clip)
    return counter.get_total_flops() // 2


def sizes_of(dynamic: fx.GraphModule, clip: Tensor = CLIP) -> dict[str, tuple[DynamicBlock, tuple[int, int, int]]]:
    """Each region, and (T, H, W) of what it reads."""
    found: dict[str, tuple[DynamicBlock, tuple[int, int, int]]] = {}
    hooks = []
    for path, region in regions(dynamic).items():

        def note(module: DynamicBlock, args: tuple[Tensor, Tensor], path: str = path) -> None:
            found[path] = module, tuple(args[0].shape[2:])

        hooks.append(region.register_forward_pre_hook(note))
    dynamic(clip)
    for hook in hooks:
        hook.remove()
    return found


@everything
@pytest.mark.parametrize("gate", ["gumbel", "softmax", "soft_modulation"])
def test_every_parameter_gets_a_gradient(name, granularity, gate):
    _, dynamic = converted(name, granularity, gate=gate)
    randomise_rebuilds(dynamic)
    randomise_gates(dynamic, CLIP, spread=0.5)
    dynamic.train()
    output, decisions = with_decisions(dynamic)(CLIP)
    (output.square().mean() + vr.efficiency_loss(decisions)).backward()
    missing = [path for path, parameter in dynamic.named_parameters() if parameter.grad is None]
    assert not missing
    assert all(parameter.grad.isfinite().all() for parameter in dynamic.parameters())
    for region in regions(dynamic).values():
        assert any(parameter.grad.any() for parameter in region.gate.parameters())


@everything
def test_copies_pickles_and_saves_are_the_same(name, granularity, tmp_path):
    _, dynamic = converted(name, granularity)
    randomise_rebuilds(dynamic)
    randomise_gates(dynamic, CLIP)
    expected = dynamic(CLIP)
    vr.save(dynamic, tmp_path / "saved")
    for again in (
        copy.deepcopy(dynamic),
        pickle.loads(pickle.dumps(dynamic)),
        vr.load(tmp_path / "saved", base=block_net(name, seed=3)),
    ):
        assert torch.equal(again(CLIP), expected)
        assert again.state_dict().keys() == dynamic.state_dict().keys()
        for parameter in again.parameters():  # and shares nothing with the first, but all with its own variants
            parameter.data.mul_(1.1)
        with vr.policy(again, {"*": (2, 0.5)}):
            scaled = again(CLIP)
        torch.testing.assert_close(vr.specialize(again, {"*": (2, 0.5)})(CLIP), scaled, rtol=0, atol=0)
        assert torch.equal(dynamic(CLIP), expected)


@everything
def test_unload_gives_the_original_back(name, granularity):
    model, dynamic = converted(name, granularity)
    randomise_rebuilds(dynamic)
    original = vr.unload(dynamic)
    assert torch.equal(original(CLIP), model(CLIP))
    assert original.state_dict().keys() == model.state_dict().keys()
    block_net(name, seed=1).load_state_dict(original.state_dict())


@everything
def test_the_report_adds_up(name, granularity):
    _, dynamic = converted(name, granularity)
    randomise_gates(dynamic, CLIP)
    made = vr.report(dynamic, CLIP, timing_clips=1, timing_repeats=1)
    assert {row.path for row in made.dynamic} == regions(dynamic).keys()
    assert sum(row.computed_macs.total for row in made.layers) == made.totals.computed_macs.total
    assert all(sum(choice.clips for choice in row.choices) == len(CLIP) for row in made.dynamic)
    assert all(row.timing is not None for row in made.dynamic)
    assert str(made)


def test_weights_that_change_are_seen_by_what_was_folded():
    _, dynamic = converted("Residual", "block")
    with vr.policy(dynamic, {"*": (1, 0.5)}), torch.no_grad():
        before = dynamic(CLIP)
        for parameter in dynamic.parameters():
            parameter.mul_(1.01)
        after = dynamic(CLIP)
        assert not torch.equal(before, after)
        assert torch.equal(vr.specialize(copy.deepcopy(dynamic), {"*": (1, 0.5)})(CLIP), after)


def test_blocks_need_the_size_of_a_clip():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv3d(3, 8, 3), nn.Linear(8 * 7 * 7 * 7, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).flatten(1))

    with pytest.raises(ConvertError, match="granularity='block' needs the clip's size"):
        vr.convert(Odd(), config=ConvertConfig(granularity="block"))
