"""Calibrated cheap operations are the least squares ones; nothing else changes, and nothing at all after an error."""

import copy
import json

import pytest
import torch
from networks import Net, make_clip, randomise_rebuilds, tiny_net

import vared2_fx as vr
from vared2_fx import ConvertConfig
from vared2_fx.errors import ConvertError, DataError
from vared2_fx.layers import Choice
from vared2_fx.passes.rewrite import regions

CLIPS = make_clip(12, 3, 8, 16, 16)
LOADER = [(clips, torch.zeros(4, dtype=torch.int64)) for clips in CLIPS.split(4)]


def converted(**config: object) -> torch.fx.GraphModule:
    torch.manual_seed(0)
    return vr.convert(tiny_net(), CLIPS[:1], ConvertConfig(**config))


def unequal(dynamic: torch.fx.GraphModule, before: dict) -> set[str]:
    return {name for name, value in dynamic.state_dict().items() if not torch.equal(value, before[name])}


def state_of(dynamic: torch.fx.GraphModule) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in dynamic.state_dict().items()}


CONFIGS = [
    {},
    {"frame_rebuild": "interpolate"},
    {"channel_rebuild": "depthwise", "channel_shares": (1.0, 0.5, 0.25)},
    {"frame_strides": (1,)},
    {"channel_shares": (1.0,)},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_choice_is_nearer_than_before(config):
    dynamic = converted(**config)
    found = vr.calibrate(dynamic, LOADER, frames=True)
    assert [layer.path for layer in found.layers] == list(regions(dynamic))
    for layer in found.layers:
        assert {(fit.frame_stride, fit.channel_share) for fit in layer.choices} == set(
            regions(dynamic)[layer.path].grid.all()[1:]
        )
        for fit in layer.choices:
            assert fit.after >= fit.before - 1e-3, "ridge costs less than that"
    gains = [fit.after - fit.before for layer in found.layers for fit in layer.choices]
    assert max(gains) > 0.05


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_no_other_values_are_nearer(config):
    """Along one axis at a time, where Φ is fitted by itself; a little more or less of any value is worse."""
    dynamic = converted(**config)
    vr.calibrate(dynamic, LOADER, frames=True, ridge=0.0)
    region = regions(dynamic)["down.0"]
    with torch.no_grad():
        x = region_input(dynamic, "down.0")
        for choice in (Choice(4, 1.0), Choice(1, 0.5)):
            if region.grid.nearest(choice) != choice:
                continue
            variant, full = region.variant(choice), region.body(x)
            best = (variant(x) - full).square().sum()
            for name, parameter in variant.named_parameters():
                if "rebuild" in name:
                    for change in (1e-2, -1e-2):
                        kept = parameter.clone()
                        parameter.add_(change * make_clip(*parameter.shape).sign())
                        assert (variant(x) - full).square().sum() > best, name
                        parameter.copy_(kept)


def region_input(dynamic: torch.fx.GraphModule, path: str) -> torch.Tensor:
    seen = []
    hook = dynamic.get_submodule(path).register_forward_hook(lambda _, args, y: seen.append(args[0]))
    with vr.full(dynamic), torch.no_grad():
        dynamic.eval()(CLIPS)
    hook.remove()
    return seen[0]


def test_without_reordering_the_full_choice_keeps_every_bit():
    dynamic = converted().train()
    before, full = state_of(dynamic), tiny_net()(CLIPS)
    found = vr.calibrate(dynamic, LOADER, reorder=False)
    assert all(layer.new_channels is None for layer in found.layers)
    changed = unequal(dynamic, before)
    assert changed
    assert all("_rebuilds." in name for name in changed)
    assert all(module.training for module in dynamic.modules())
    with vr.full(dynamic.eval()):
        assert torch.equal(dynamic(CLIPS), full)


def test_the_channels_kept_are_those_that_predict_the_others():
    """Six channels in three pairs, each twice the other, after three that vary little: one of each pair is enough."""
    torch.manual_seed(0)
    model = Net()
    model.a, model.b = torch.nn.Conv3d(3, 9, 1), torch.nn.Conv3d(9, 8, 1)
    with torch.no_grad():
        model.a.weight[:3] *= 0.01
        model.a.weight[3:].copy_(
            torch.eye(3).repeat(2, 1)[:, :, None, None, None] * torch.arange(1, 7).view(6, 1, 1, 1, 1)
        )
    r2 = {}
    for reorder in (False, True):
        dynamic = vr.convert(model, CLIPS[:1], ConvertConfig(channel_shares=(1.0, 0.3), frame_strides=(1,)))
        (layer, _) = vr.calibrate(dynamic, LOADER, reorder=reorder).layers
        r2[layer.new_channels] = layer.choices[0].after
    assert r2[3] > 0.99 > 0.9 > r2[None]


def test_the_full_choice_computes_the_same_and_weights_are_only_reordered():
    dynamic = converted()
    before, full = state_of(dynamic), tiny_net()(CLIPS)
    found = vr.calibrate(dynamic, LOADER)
    new = {layer.path: layer.new_channels for layer in found.layers}
    assert new["grouped"] is None, "its groups are fixed"
    assert new["last"] is None, "a linear layer reads them"
    assert any(new.values())
    with vr.full(dynamic):
        torch.testing.assert_close(dynamic(CLIPS), full, rtol=1e-5, atol=1e-6)  # sums in another order
    for name in unequal(dynamic, before):
        if "_rebuilds." not in name:
            assert torch.equal(dynamic.state_dict()[name].flatten().sort()[0], before[name].flatten().sort()[0]), name


def test_another_order_is_better_and_kept_in_a_save(tmp_path):
    with_order, without = converted(), converted()
    better = vr.calibrate(with_order, LOADER).layers
    found = vr.calibrate(without, LOADER, reorder=False).layers
    r2 = [[fit.after for layer in some for fit in layer.choices if fit.frame_stride == 1] for some in (better, found)]
    assert sum(r2[0]) > sum(r2[1]) + 0.1
    vr.save(with_order, tmp_path)
    again = vr.load(tmp_path, base=tiny_net())
    with torch.no_grad():
        for choice in ((1, 1.0), (1, 0.5), (4, 0.5)):
            with vr.policy(with_order, {"*": choice}):
                expected = with_order(CLIPS)
            with vr.policy(again, {"*": choice}):
                assert torch.equal(again(CLIPS), expected)
        torch.testing.assert_close(vr.unload(with_order)(CLIPS), tiny_net()(CLIPS), rtol=1e-5, atol=1e-6)


def test_what_was_there_before_is_forgotten():
    fresh, random = converted(), randomise_rebuilds(converted())
    random.load_state_dict({n: v for n, v in fresh.state_dict().items() if "_rebuilds." not in n}, strict=False)
    vr.calibrate(fresh, LOADER, frames=True)
    vr.calibrate(random, LOADER, frames=True)
    assert unequal(random, state_of(fresh)) == set()
    again = state_of(fresh)
    assert not any(layer.new_channels for layer in vr.calibrate(fresh, LOADER, frames=True).layers)
    for name, value in fresh.state_dict().items():  # twice is once, but that maps come from reordered sums
        torch.testing.assert_close(value, again[name], rtol=1e-3, atol=1e-4)


def test_frames_stay_as_they_are_unless_asked_for():
    dynamic = converted()
    before = state_of(dynamic)
    vr.calibrate(dynamic, LOADER, reorder=False)
    assert not any(".frame_rebuilds." in name for name in unequal(dynamic, before))
    vr.calibrate(dynamic, LOADER, reorder=False, frames=True)
    assert any(".frame_rebuilds." in name for name in unequal(dynamic, before))


def test_batches_do_not_matter():
    one, many = converted(), copy.deepcopy(converted())
    vr.calibrate(one, CLIPS)
    vr.calibrate(many, LOADER)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, many.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_still_clips_are_rebuilt_from_one_frame():
    torch.manual_seed(0)
    model = Net()
    model.a, model.b = torch.nn.Conv3d(3, 8, 1), torch.nn.Conv3d(8, 8, 1)
    still = CLIPS[:, :, :1].expand(-1, -1, 8, -1, -1)
    for clips, high in ((still, True), (CLIPS, False)):
        (layer, _) = vr.calibrate(vr.convert(model, CLIPS[:1]), clips, frames=True).layers
        fits = [fit.after for fit in layer.choices if fit.channel_share == 1.0]
        assert len(fits) == 2
        assert (min(fits) > 1 - 1e-6) == high


def test_clips_of_other_lengths_and_a_choice_that_none_of_them_offers():
    dynamic = converted()
    found = vr.calibrate(dynamic, [CLIPS[:6], CLIPS[:6, :, :5]])
    assert all(len(layer.choices) == 5 for layer in found.layers)
    short = {layer.path: layer for layer in vr.calibrate(dynamic, CLIPS[:, :, :3]).layers}
    assert {fit.frame_stride for fit in short["stem.0"].choices} == {1, 2}


def test_a_network_that_torch_fx_cannot_follow():
    class Branching(Net):
        def forward(self, x):
            return super().forward(x if x.mean() > 10 else x + 1)

    torch.manual_seed(0)
    dynamic = vr.convert(Branching(), CLIPS[:1])
    found = vr.calibrate(dynamic, LOADER)
    assert [layer.path for layer in found.layers] == ["a", "b"]
    assert all(fit.after >= fit.before - 1e-3 for layer in found.layers for fit in layer.choices)


@pytest.mark.parametrize("config", [{}, {"channel_rebuild": "depthwise"}, {"channel_shares": (1.0,)}], ids=str)
def test_a_branch_that_no_clip_takes_is_left_as_it_is(config):
    class Branching(Net):
        def forward(self, x):
            x = self.a(x).relu()
            return self.head((self.b(x) if x.mean() > 1e3 else x).mean((2, 3, 4)))

    torch.manual_seed(0)
    dynamic = vr.convert(Branching(), CLIPS[:1], ConvertConfig(**config))
    before = state_of(dynamic)
    found = vr.calibrate(dynamic, LOADER, frames=True)
    assert {layer.path: bool(layer.choices) for layer in found.layers} == {"a": True, "b": False}
    assert str(found).endswith("no clip for any of their choices, left as they are: b")
    changed = unequal(dynamic, before)
    assert any(".a." in name for name in changed)
    assert not any(".b." in name for name in changed)


def test_wrapped_networks_and_such_that_show_decisions():
    expected = converted()
    vr.calibrate(expected, LOADER)
    for wrap in (torch.nn.DataParallel, vr.with_decisions):
        dynamic = converted()
        vr.calibrate(wrap(dynamic), LOADER)
        assert unequal(dynamic, state_of(expected)) == set()


def test_the_report_in_words_and_as_json():
    found = vr.calibrate(converted(), LOADER)
    assert all(len(line) <= 100 for line in str(found).splitlines())
    assert json.loads(found.to_json())["layers"][0]["choices"][0]["frame_stride"] == 1


@pytest.mark.parametrize(
    ("clips", "options", "match"),
    [
        ([], {}, "gave no clips"),
        (CLIPS[:1, :, :2, :8, :8], {}, "too few to fit it; pass about"),
        ([CLIPS[:4], CLIPS[:4] * float("nan")], {}, "`stem.0` gives values that are not finite"),
        (LOADER, {"ridge": -1.0}, "ridge=-1.0"),
        (LOADER, {"max_clips": 0}, "at least one clip"),
    ],
)
def test_clear_errors_change_nothing(clips, options, match, untouched):
    dynamic = converted()
    with untouched(dynamic), pytest.raises(DataError, match=match):
        vr.calibrate(dynamic, clips, **options)


def test_networks_without_regions_are_refused():
    with pytest.raises(ConvertError, match=r"calibrate: .* holds no dynamic region"):
        vr.calibrate(tiny_net(), LOADER)
