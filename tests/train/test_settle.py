"""Static choices of each region, where no gate is worth asking."""

import torch
from torch import nn

import vared2_fx as vr
from vared2_fx import ConvertConfig
from vared2_fx.passes.rewrite import regions
from vared2_fx.train import settle
from vared2_fx.train.look import Look
from vared2_fx.train.settle import settled_choices


class TwoBranches(nn.Module):
    """One that adds nothing, whatever it is given, and one that sees whether any frame is bright."""

    def __init__(self):
        super().__init__()
        self.idle = nn.Conv3d(3, 8, (1, 3, 3), padding=(0, 1, 1))
        self.needed = nn.Conv3d(3, 8, (1, 3, 3), padding=(0, 1, 1))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            self.needed.weight[:, :, :, 1, 1] = 1.0

    def forward(self, clips):
        brightness = (self.needed(clips) + self.idle(clips)).mean((1, 2, 3, 4))
        return torch.stack([torch.full_like(brightness, 5.0), 10 * brightness], 1)


def looked_at(*, seed: int = 0, chance: bool = False):
    """The network, half of whose clips have one bright frame, which may be any, and gates that have seen them.

    With `chance` both branches see frames that flicker, and labels have nothing to do with what they see.
    """
    torch.manual_seed(seed)
    clips = torch.zeros(32, 3, 8, 16, 16)
    for number in range(16):
        clips[number, :, number % 8] = 8 / 3
    network = TwoBranches()
    if chance:
        clips = torch.rand(32, 3, 8, 1, 1).expand(32, 3, 8, 16, 16)
        for branch in (network.idle, network.needed):
            nn.init.normal_(branch.weight, std=0.3)
    dynamic = vr.convert(network, clips[:1], ConvertConfig(channel_shares=(1.0,), min_macs_share=0.0))
    labels = (torch.arange(32) < 16).long()
    batch = {"video": clips, "label": labels[torch.randperm(32)] if chance else labels}
    look = Look(dynamic, {path: region.gate for path, region in regions(dynamic).items()})
    look.over([batch], own=False)
    return dynamic, batch, look


def test_what_an_idle_region_leaves_goes_to_the_one_that_counts():
    dynamic, batch, look = looked_at()
    found = settled_choices(look, [batch], 1.0, 0.7, {})
    assert found == {"idle": (4, 1.0), "needed": (1, 1.0)}
    evaluation = vr.evaluate(dynamic, [batch])
    assert evaluation.share <= 0.7
    assert all(layer.entropy == 0 for layer in evaluation.layers.values())


def test_many_choices_share_the_clips_and_come_to_the_same(monkeypatch):
    monkeypatch.setattr(settle, "_PASSES", 1)  # each of four is tried on every fourth clip
    _, batch, look = looked_at()
    halves = [{key: value[part] for key, value in batch.items()} for part in (slice(0, 13), slice(13, 32))]
    assert settled_choices(look, halves, 1.0, 0.7, {}) == {"idle": (4, 1.0), "needed": (1, 1.0)}


def test_a_mixture_that_is_ahead_by_chance_is_not_taken():
    _, batch, look = looked_at(seed=3, chance=True)
    alike, mixed = settle._static(look, [batch], None, 1.0, 0.7)
    losses = settle._prices(look, [batch], None, [alike, mixed], 1.0, 0.7).mean(1)
    assert losses[1] < losses[0], "on the clips that it was chosen from"
    assert len(set(settled_choices(look, [batch], 1.0, 0.7, {}).values())) == 1


def test_without_a_target_a_loss_has_its_price():
    _, batch, look = looked_at()
    assert settled_choices(look, [batch], 1e-6, None, {}) == {"idle": (4, 1.0), "needed": (4, 1.0)}
    assert settled_choices(look, [batch], 1e3, None, {}) == {"idle": (4, 1.0), "needed": (1, 1.0)}


def test_a_target_out_of_reach_is_come_near_to():
    _, batch, look = looked_at()
    assert settled_choices(look, [batch], 1.0, 0.01, {}) == {"idle": (4, 1.0), "needed": (4, 1.0)}


def test_what_was_settled_stays_unless_something_is_better():
    """Choices of the idle region differ by nothing but their cost, which does not count within a target."""
    _, batch, look = looked_at()
    places = {"idle": (2, 1.0), "needed": (1, 1.0)}
    before = {gate: gate.grid.index(gate.grid.nearest(places[path])) for path, gate in look.gates.items()}
    assert settled_choices(look, [batch], 1.0, 0.9, before) == places
    assert settled_choices(look, [batch], 1.0, None, before) == {"idle": (4, 1.0), "needed": (1, 1.0)}
