"""Plans: their numbers, their choices, their text."""

import re

import pytest
import torch
from networks import CONVS, Net, TinyNet, make_clip, tiny_net
from torch import Tensor, nn

import vared2_fx as vr
from vared2_fx import ConvertConfig
from vared2_fx.errors import ConvertError
from vared2_fx.layers import ChoiceGrid

CLIP = make_clip(1, 3, 8, 8, 8)


class CalledTwice(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.b(self.a(x))).mean((2, 3, 4)))


def test_a_network_with_little_to_convert_stays_as_it_is():
    model = nn.Sequential(nn.Conv3d(3, 8, 1), nn.Flatten(), nn.Linear(8 * 512, 64)).eval()
    (entry,) = (plan := vr.scan(model, CLIP)).entries
    assert (entry.reason, entry.macs, plan.macs) == ("not_worth_it", 24 * 512, 24 * 512 + 8 * 512 * 64)
    said = r"all that could convert does 4\.5 % of the network's multiply-adds, less than min_total_share=0\.05"
    assert re.search(f"Nothing worth converting, because {said}", str(plan))
    with pytest.raises(ConvertError, match=f"nothing worth converting in Sequential, because {said}"):
        vr.convert(model, CLIP)
    assert vr.scan(model, CLIP, ConvertConfig(min_total_share=0.04)).converted
    assert vr.scan(model).converted, "without shapes nothing is known of shares"


def test_few_layers_chosen_from_many_are_worth_it():
    model = Net()
    model.b = nn.Conv3d(8, 8, 1)
    plan = vr.scan(model, CLIP, ConvertConfig(exclude=("a",), min_total_share=0.5))
    assert [entry.path for entry in plan.converted] == ["b"]


def test_entries_hold_the_numbers():
    plan = vr.scan(tiny_net(), make_clip(2, 3, 8, 16, 16))
    assert [entry.path for entry in plan.entries] == list(CONVS)
    assert plan.input_shape == (2, 3, 8, 16, 16)
    assert not plan.input_is_guess
    down = plan.entries[3]
    assert down.operation == "Conv3d 13→12 3×1×1 /2×1×1"
    assert (down.in_shape, down.out_shape) == ((13, 8, 8, 8), (12, 4, 8, 8))
    assert down.macs == 13 * 12 * 3 * 4 * 64  # for one clip of the two
    assert down.region == down.path == plan.regions[3].path
    assert plan.regions[3].grid == ChoiceGrid((1, 2, 4), (1.0, 0.5))
    assert plan.macs == sum(entry.macs for entry in plan.entries) + 16 * 5


class Keywords(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(input=self.a(input=x)).mean((2, 3, 4)))


def test_a_convolution_called_by_keyword_is_measured_too():
    model = Keywords().eval()
    assert [entry.in_shape for entry in vr.scan(model, CLIP).entries] == [(3, 8, 8, 8), (8, 8, 8, 8)]
    assert torch.equal(vr.convert(model, CLIP)(CLIP), model(CLIP))


def test_all_calls_of_a_module_count():
    plan = vr.scan(CalledTwice(), CLIP)
    assert plan.entries[1].macs == 2 * 8 * 8 * 27 * 512
    assert plan.macs == sum(entry.macs for entry in plan.entries) + 8 * 4


def test_choices_that_make_no_difference_are_left_out():
    config = ConvertConfig(frame_strides=(1, 2, 4, 8, 16), channel_shares=(1.0, 0.99, 0.5, 0.49), min_channels=1)
    model = nn.Sequential(nn.Conv3d(3, 6, 1), nn.Conv3d(6, 6, 1, groups=3))
    first, grouped = vr.scan(model, CLIP, config).regions
    assert first.grid == ChoiceGrid((1, 2, 4, 8), (1.0, 0.5))  # ⌈0.99 · 6⌉ = 6, ⌈0.49 · 6⌉ = 3
    assert grouped.grid == ChoiceGrid((1, 2, 4, 8), (1.0, 0.5))  # ⌈0.5 · 3⌉ = 2 groups, also for 0.49


def test_unknown_shapes_leave_out_what_needs_them():
    class TwoClips(Net):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.head((self.a(x) + self.b(y)).mean((2, 3, 4)))

    plan = vr.scan(TwoClips())
    assert plan.input_shape is None
    assert plan.macs is None
    assert [(entry.reason, entry.macs, entry.out_shape) for entry in plan.entries] == [("convert", None, None)] * 2
    assert "TwoClips: 2 of 2 3D convolutions convert\n" in str(plan)


@pytest.mark.parametrize("field", ["include", "exclude"])
@pytest.mark.parametrize(
    ("pattern", "hint"),
    [("stem.1", "near it are stem.0"), ("dephtwise.*", "near it are depthwise.0"), ("zzzz", r"convolutions\.$")],
)
def test_a_pattern_that_matches_nothing_names_what_is_near(field, pattern, hint):
    with pytest.raises(ConvertError, match=f"ConvertConfig.{field}: '{pattern.replace('*', '.')}.*{hint}"):
        vr.scan(tiny_net(), config=ConvertConfig(**{field: (pattern,)}))


def test_a_plan_prints_within_100_columns():
    text = str(vr.scan(tiny_net(), CLIP, ConvertConfig(exclude=("grouped",), min_channels=9)))
    assert max(map(len, text.splitlines())) <= 100
    assert "TinyNet: 3 of 6 3D convolutions convert" in text
    assert all(path in text for path in CONVS)
    assert "static: excluded" in text
    assert "static, few_channels: fewer than min_channels=9 output channels" in text
    assert "guessed" not in text
    assert "guessed input 1×3×32×320×320" in str(vr.scan(tiny_net()))


def test_a_network_without_convolutions_has_an_empty_plan():
    plan = vr.scan(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8 * 8, 4)), CLIP)
    assert plan.entries == ()
    assert "0 of 0 3D convolutions" in str(plan)


def test_scan_changes_nothing(untouched):
    model = TinyNet().train()
    with untouched(model):
        vr.scan(model, CLIP)
