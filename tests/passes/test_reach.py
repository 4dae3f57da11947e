"""What is reachable, said before anything is converted, is what the converted network then takes."""

import pytest
import torch
from networks import CONVS, Net, make_clip, tiny_net
from torch import Tensor, nn

import vared2_fx as vr
from vared2_fx import ConvertConfig, FinetuneConfig
from vared2_fx.config import read_target
from vared2_fx.errors import ConvertError
from vared2_fx.passes.reach import level_index, reach_of
from vared2_fx.passes.rewrite import with_decisions
from vared2_fx.policy.reach import reachable
from vared2_fx.policy.statistics import clip_macs, dense_macs

CLIP = make_clip(2, 3, 9, 20, 16)
CONFIGS = {
    "default": ConvertConfig(),
    "soft": ConvertConfig(gate="soft_modulation", gate_hidden=5, gate_bins=3),
    "cheap operations": ConvertConfig(frame_rebuild="interpolate", channel_rebuild="depthwise"),
    "more": ConvertConfig(frame_strides=(1, 3, 9), channel_shares=(1.0, 0.75, 0.5, 0.1), min_channels=1),
    "one layer": ConvertConfig(include=("grouped",)),
    "nothing": ConvertConfig(min_channels=99),
}


def taken(dynamic, choices, clip: Tensor = CLIP) -> int:
    """Multiply-adds of a clip when the choices are forced: what evaluation counts."""
    with vr.policy(dynamic, choices):
        decisions = with_decisions(dynamic)(clip)[1]
    (macs,) = set(clip_macs(decisions, dense_macs(dynamic, clip)).tolist())
    return macs


@pytest.mark.parametrize("level", ["full", "middle", "cheapest"])
@pytest.mark.parametrize("config", [name for name in CONFIGS if name != "nothing"])
def test_the_plans_numbers_are_the_converted_networks(config, level):
    model = tiny_net()
    plan = vr.scan(model, CLIP, CONFIGS[config])
    dynamic = vr.convert(model, CLIP, CONFIGS[config])
    assert taken(dynamic, plan.policy(level)) == getattr(plan.reach, level)
    assert plan.reach.dense == plan.macs == dense_macs(dynamic, CLIP)
    assert reachable(dynamic, CLIP) == plan.reach


def test_also_at_another_size_of_clips():
    config = ConvertConfig(min_macs_share=0.0)
    dynamic = vr.convert(tiny_net(), CLIP, config)
    small = make_clip(1, 3, 3, 8, 12)  # with so few frames R = 4 is not offered
    plan = vr.scan(tiny_net(), small, config)
    assert {region.grid.frame_strides for region in plan.regions} == {(1, 2)}
    reach = reachable(dynamic, small)
    for level in ("full", "middle", "cheapest"):
        assert getattr(reach, level) == taken(dynamic, plan.policy(level), small)


def test_no_policy_is_cheaper_than_the_cheapest_or_dearer_than_full():
    model, generator = tiny_net(), torch.Generator().manual_seed(0)
    plan, dynamic = vr.scan(model, CLIP), vr.convert(model, CLIP)
    for _ in range(20):
        draws = torch.randint(6, (len(CONVS),), generator=generator).tolist()
        macs = taken(dynamic, {r.path: r.grid.all()[d] for r, d in zip(plan.regions, draws, strict=True)})
        assert plan.reach.cheapest <= macs <= plan.reach.full
    assert plan.reach.cheapest < plan.reach.middle < plan.reach.dense < plan.reach.full


def test_by_hand():
    """One 1×1×1 convolution of 8 channels on 4 frames of 10 pixels, of a network of 10 000 multiply-adds."""
    prices = [8 * 8 * 40, 8 * 4 * 40 + 4 * 40, 8 * 8 * 20 + 8 * 40, 8 * 4 * 20 + 4 * 20 + 8 * 40]
    reach = reach_of(10_000, [(prices, 100)])
    assert (reach.full, reach.middle, reach.cheapest) == (10_100, 10_100 - 2560 + 1600, 10_100 - 2560 + 1040)
    assert str(reach) == "reachable: 101.0 % (full), 91.4 % (middle), 85.8 % (cheapest policy) of 10 kMACs"


def test_levels():
    assert [level_index([10, 6, 2, 6], level) for level in ("full", "middle", "cheapest")] == [0, 1, 2]
    assert level_index([10, 12], "cheapest") == 0  # a rebuild that costs more than it saves
    assert level_index([10, 4], "middle") == 1  # as near to 7 as the full one: the cheaper


def test_scan_shows_it():
    assert str(vr.scan(tiny_net(), CLIP).reach) in str(vr.scan(tiny_net(), CLIP))
    nothing = vr.scan(tiny_net(), CLIP, CONFIGS["nothing"])
    assert nothing.reach.full == nothing.reach.cheapest == nothing.macs
    assert "reachable" not in str(nothing)


class TwoClips(Net):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head((self.a(x) + self.b(y)).mean((2, 3, 4)))


def test_without_shapes_nothing_is_known():
    plan = vr.scan(TwoClips())
    assert plan.reach is None
    assert plan.policy("full") == {"a": (1, 1.0), "b": (1, 1.0)}
    with pytest.raises(ConvertError, match="what a costs is unknown; scan with example_inputs"):
        plan.policy("cheapest")
    with pytest.raises(ConvertError, match="unknown without the clip's size; pass example_inputs"):
        vr.scan(TwoClips(), target_macs=0.5)


def test_scanning_draws_no_random_numbers():
    model, before = tiny_net(), torch.get_rng_state()
    vr.scan(model, CLIP)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("written", "share"),
    [("65%", 0.65), (" 65 % ", 0.65), ("0.65", 0.65), (0.65, 0.65), (1, 1.0), ("100%", 1.0), ("0.5%", 0.005)],
)
def test_targets_as_users_state_them(written, share):
    assert FinetuneConfig(target_macs=written).target_macs == pytest.approx(share)
    assert FinetuneConfig(target_macs=written) == FinetuneConfig(target_macs=read_target("here", written))
    assert vr.scan(tiny_net(), CLIP, target_macs=written if share > 0.5 else "60%").macs


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("much", "'much' is no share; write 0.65 or '65%'"),
        (True, "is no share"),
        ("nan", "is no share"),
        ("", "is no share"),
        (65, r"target_macs=65.0; it is a share of the original's multiply-adds, above 0 and at most 1"),
        ("65", "above 0 and at most 1"),
        ("0%", "target_macs=0%; .*above 0"),
        (-0.5, "above 0"),
        ("101 %", "at most 1"),
    ],
)
def test_what_is_no_target(written, message):
    for use in (lambda: FinetuneConfig(target_macs=written), lambda: vr.scan(tiny_net(), CLIP, target_macs=written)):
        with pytest.raises(ConvertError, match=message):
            use()


def test_a_target_out_of_reach_is_refused_with_the_range():
    reach = vr.scan(tiny_net(), CLIP).reach
    low, high = (f"{100 * macs / reach.dense:.1f} %" for macs in (reach.cheapest, reach.full))
    with pytest.raises(
        ConvertError, match=rf"scan: a target of 1.0 % .* reaches from {low} .* to {high} .*Offer coarser"
    ):
        vr.scan(tiny_net(), CLIP, target_macs="1%")
    just = reach.cheapest / reach.dense
    assert vr.scan(tiny_net(), CLIP, target_macs=just).reach == reach
    with pytest.raises(ConvertError, match="out of reach"):
        vr.scan(tiny_net(), CLIP, target_macs=just - 1e-6)


def test_prices_need_no_weights():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv3d(3, 8, 3), nn.Conv3d(8, 8, 1))
    assert vr.scan(model, CLIP.to("meta")).reach.cheapest > 0
