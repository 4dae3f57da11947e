"""Rewrites: regions go in, decisions come out, choices get fixed; what they start from stays."""

import pytest
import torch
from networks import CONVS, Net, make_clip, randomise_gates, randomise_rebuilds, tiny_net
from torch import Tensor, nn

import vared2_fx as vr
from vared2_fx import Choice, ConvertConfig
from vared2_fx.errors import ConvertError
from vared2_fx.layers import ChannelRebuild, ChoiceGrid, ConvVariant, DynamicConv, FrameRebuild, Gate
from vared2_fx.passes.rewrite import fix_choices, gate_convs, make_region, regions, with_decisions
from vared2_fx.passes.trace import calls, trace

CLIP = make_clip(4, 3, 8, 16, 16)
GRID = ChoiceGrid((1, 2), (1.0, 0.5))


def moody(**config: object):
    """A converted network whose gates decide differently from clip to clip."""
    dynamic = vr.convert(tiny_net(), config=ConvertConfig(**config))
    return randomise_gates(randomise_rebuilds(dynamic), CLIP)


def test_full_gates_keep_every_bit():
    model = tiny_net()
    gated = gate_convs(trace(model), sites=dict.fromkeys(CONVS, GRID), config=ConvertConfig())
    assert torch.equal(gated(CLIP), model(CLIP))
    for region in regions(gated).values():
        region.gate.out.bias.data[0] = -9.0  # the control: now R = 2
    assert not torch.allclose(gated(CLIP), model(CLIP))


def test_regions_are_where_the_sites_were():
    traced = trace(tiny_net())
    gated = gate_convs(traced, sites={"expand": GRID, "stem.0": GRID}, config=ConvertConfig())
    assert list(regions(gated)) == ["stem.0", "expand"]
    assert regions(gated)["expand"].body is traced.get_submodule("expand")
    assert [node.target for node in calls(gated, Gate)] == ["stem.0.gate", "expand.gate"]
    assert regions(traced) == {}


def test_the_source_graph_stays():
    traced = trace(tiny_net())
    code, names, before = traced.code, [name for name, _ in traced.named_modules()], traced(CLIP)
    gate_convs(traced, sites=dict.fromkeys(CONVS, GRID), config=ConvertConfig())
    assert traced.code == code
    assert [name for name, _ in traced.named_modules()] == names
    assert torch.equal(traced(CLIP), before)


def test_no_site_no_change():
    traced = trace(tiny_net())
    assert gate_convs(traced, sites={}, config=ConvertConfig()).code == traced.code


class CalledTwice(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.b(self.a(x))).mean((2, 3, 4)))


@pytest.mark.parametrize(("site", "times"), [("b", 2), ("c", 0)])
def test_sites_must_be_called_once(site, times):
    traced = trace(CalledTwice())
    with pytest.raises(ConvertError, match=rf"`{site}` is called {times} times.*exclude=\('{site}',\)"):
        gate_convs(traced, sites={"a": GRID, site: GRID}, config=ConvertConfig())
    assert regions(traced) == {}


def test_regions_are_built_as_the_config_says():
    config = ConvertConfig(
        gate="soft_modulation",
        gate_hidden=5,
        gate_bins=3,
        normalize=False,
        frame_rebuild="interpolate",
        channel_rebuild="depthwise",
    )
    grid = ChoiceGrid((1, 2, 6), (1.0, 0.5, 0.25))
    region = make_region(nn.Conv3d(4, 10, 3), grid, config, mean=None)
    gate = region.gate
    assert (gate.kind, gate.num_bins, gate.normalize) == ("soft_modulation", 3, False)
    assert gate.hidden.weight.shape == (5, 5 * 3 * 4), "five views, three bins, four channels"
    assert gate.out.out_features == 6
    assert [rebuild.stride for rebuild in region.frame_rebuilds] == [2, 6]
    assert [rebuild.kept for rebuild in region.channel_rebuilds] == [5, 3]
    assert all(rebuild.next_scale is not None for rebuild in region.frame_rebuilds)
    assert all(rebuild.scale.shape[1:] == (1, 1, 3, 3) for rebuild in region.channel_rebuilds)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32])
def test_regions_follow_their_convolution(dtype, training):
    region = make_region(nn.Conv3d(4, 8, 3).to(dtype).train(training), GRID, ConvertConfig(), mean=None)
    tensors = [t for t in region.state_dict().values() if t.is_floating_point()]
    assert {tensor.dtype for tensor in tensors} == {dtype}
    assert {module.training for module in region.modules()} == {training}


def test_rebuilt_channels_start_with_the_mean_of_the_norm_that_follows():
    dynamic = vr.convert(tiny_net(), CLIP)
    for path, norm in (("stem.0", "stem.1"), ("depthwise.0", "depthwise.1"), ("down.0", "down.1"), ("last", "norm")):
        mean = dynamic.get_submodule(norm).running_mean
        rebuild = regions(dynamic)[path].channel_rebuilds[0]
        torch.testing.assert_close(rebuild.scale * mean[rebuild.source] + rebuild.bias, mean[rebuild.kept :])


@pytest.mark.parametrize("gate", ["softmax", "gumbel", "soft_modulation"])
def test_decisions_are_what_the_gates_decide(gate):
    dynamic = moody(gate=gate)
    output, decisions = with_decisions(dynamic)(CLIP)
    assert torch.equal(output, dynamic(CLIP))
    assert list(decisions) == list(CONVS)
    seen = {}
    for path, region in regions(dynamic).items():
        region.gate.register_forward_hook(lambda m, i, o, path=path: seen.update({path: o}))
        region.register_forward_hook(lambda m, i, o, path=path: seen.update({f"{path} x": i[0]}))
    dynamic(CLIP)
    for path, decision in decisions.items():
        region, in_size = regions(dynamic)[path], tuple(seen[f"{path} x"].shape[2:])
        assert torch.equal(decision.weights, seen[path])
        assert decision.macs.dtype == torch.int64
        assert decision.macs.flatten().tolist() == [region.macs(in_size, choice) for choice in region.grid.all()]
        assert decision.gate_macs == region.gate.macs(in_size)
    assert len(torch.cat([d.weights for d in decisions.values()], 1).unique(dim=0)) > 1, "all clips alike"


def test_decisions_leave_the_network_alone():
    dynamic = moody()
    code = dynamic.code
    with_decisions(dynamic)
    assert dynamic.code == code
    assert isinstance(dynamic(CLIP), Tensor)


class Structured(Net):
    def forward(self, x: Tensor) -> dict[str, object]:
        maps = self.b(self.a(x))
        return {"logits": self.head(maps.mean((2, 3, 4))), "maps": [maps]}


def test_outputs_keep_their_structure():
    model = Structured().eval()
    output, decisions = with_decisions(vr.convert(model, CLIP))(CLIP)
    assert torch.equal(output["logits"], model(CLIP)["logits"])
    assert torch.equal(output["maps"][0], model(CLIP)["maps"][0])
    assert list(decisions) == ["a", "b"]


def test_a_static_network_has_no_decisions():
    with pytest.raises(ConvertError, match="no dynamic region; convert it first"):
        with_decisions(trace(tiny_net()))


def test_fixed_choices_are_plain_operators():
    dynamic = moody()
    before, code = dynamic(CLIP), dynamic.code
    choices = dict(zip(CONVS, regions(dynamic)["stem.0"].grid.all(), strict=True))
    static = fix_choices(dynamic, choices)
    assert not any(isinstance(module, (Gate, DynamicConv)) for module in static.modules())
    assert {path: static.get_submodule(path).choice for path in CONVS} == choices
    assert dynamic.code == code
    assert torch.equal(dynamic(CLIP), before)
    ours = {id(parameter) for parameter in dynamic.parameters()}
    assert all(id(parameter) in ours for parameter in static.parameters())


def test_fixed_choices_hold_only_what_they_run():
    static = fix_choices(moody(), dict.fromkeys(CONVS, Choice(1, 1.0)))
    assert not any(isinstance(module, (FrameRebuild, ChannelRebuild)) for module in static.modules())
    assert sum(isinstance(module, ConvVariant) for module in static.modules()) == len(CONVS)


@pytest.mark.parametrize("training", [False, True])
def test_modes_are_kept(training):
    dynamic = moody().train(training)
    dynamic.norm.eval()
    for other in (with_decisions(dynamic), fix_choices(dynamic, dict.fromkeys(CONVS, Choice(2, 0.5)))):
        modes = {path: module.training for path, module in other.named_modules()}
        assert not modes.pop("norm")
        assert set(modes.values()) == {training}
