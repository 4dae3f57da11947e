"""Reordered channels compute the same; what has a fixed order keeps it."""

import pytest
import torch
from block_networks import NETWORKS, block_net
from networks import Net, make_clip, randomise_gates, randomise_rebuilds, tiny_net
from torch import fx, nn

import vared2_fx as vr
from vared2_fx import ConvertConfig
from vared2_fx.errors import ConvertError
from vared2_fx.passes.reorder import FreeChannels, free_channels, reorder_channels
from vared2_fx.passes.rewrite import regions

CLIPS = make_clip(4, 3, 8, 32, 32, dtype=torch.float64)


def reordered(free: FreeChannels, seed: int = 0) -> FreeChannels:
    generator = torch.Generator().manual_seed(seed)
    orders = {}
    for values in set(free.sets.values()):
        channels = next(iter(values)).meta["shape"][1]
        orders[values] = torch.randperm(channels, generator=generator)
    reorder_channels(free, orders)
    return free


def convert(model: nn.Module, **config: object) -> fx.GraphModule:
    torch.manual_seed(0)
    return vr.convert(model.double(), CLIPS, ConvertConfig(**config))


@pytest.mark.parametrize("granularity", ["conv", "block"])
@pytest.mark.parametrize("name", [*NETWORKS, "TinyNet"])
def test_the_full_choice_is_as_before(name, granularity):
    dynamic = convert(tiny_net() if name == "TinyNet" else block_net(name), granularity=granularity)
    before = {name: value.clone() for name, value in dynamic.state_dict().items()}
    with vr.full(dynamic), torch.no_grad():
        full = dynamic(CLIPS)
        free = reordered(free_channels(dynamic, CLIPS))
        # 1e-12: sums in another order round otherwise
        torch.testing.assert_close(dynamic(CLIPS), full, rtol=1e-12, atol=1e-12)
    moved = {name for name, value in dynamic.state_dict().items() if not torch.equal(value, before[name])}
    assert free.sets
    assert any(name.endswith("weight") and ".gate." not in name for name in moved)


@pytest.mark.parametrize("name", ["TinyNet", "Residual", "Strided"])
def test_gates_decide_as_before(name):
    """Frame choices only, with frames held: then nothing but the order of channels could make a difference."""
    model = tiny_net() if name == "TinyNet" else block_net(name)
    dynamic = convert(model, channel_shares=(1.0,), frame_strides=(1, 2))
    randomise_rebuilds(dynamic)
    randomise_gates(dynamic, CLIPS)
    observed = vr.with_decisions(dynamic)
    with torch.no_grad():
        output, decisions = observed(CLIPS)
        free = reordered(free_channels(dynamic, CLIPS))
        again, same = observed(CLIPS)
    assert any(free.entries[path] in free.sets for path in regions(dynamic)), "a gate whose input is reordered"
    assert any((decision.weights[:, 1] == 1).any() for decision in decisions.values()), "frames are skipped"
    for path, decision in decisions.items():
        assert torch.equal(decision.weights, same[path].weights), path
    torch.testing.assert_close(output, again, rtol=1e-10, atol=1e-10)


def test_trained_gates_that_see_some_channels_only_are_not_blinded():
    model = nn.Sequential(nn.Conv3d(3, 40, 3, padding=1), nn.ReLU(), nn.Conv3d(40, 8, 3, padding=1))
    dynamic = convert(model)
    reordered(free_channels(dynamic, CLIPS))  # untrained ones heed no channel
    randomise_gates(dynamic, CLIPS)
    before = {name: value.clone() for name, value in dynamic.state_dict().items()}
    with pytest.raises(ConvertError, match="the gate of `2` is trained, on the first 32 of 40 channels"):
        reordered(free_channels(dynamic, CLIPS))
    assert all(torch.equal(value, before[name]) for name, value in dynamic.state_dict().items())


def test_the_order_matters_where_only_some_channels_are_computed():
    dynamic = convert(tiny_net())
    with vr.policy(dynamic, {"stem.0": (1, 0.5)}), torch.no_grad():
        before = dynamic(CLIPS)
        reordered(free_channels(dynamic, CLIPS))
        assert not torch.allclose(dynamic(CLIPS), before)


def free_convs(model: nn.Module) -> set[str]:
    free = free_channels(convert(model, min_channels=2), CLIPS)
    return {str(node.target) for node in free.sets if free.roles[node].kind == "conv"}


def test_fixed_orders_are_left_alone():
    assert free_convs(tiny_net()) == {"stem.0", "depthwise.0", "expand"}, "three groups, and what is flattened"
    assert "one.0" not in free_convs(block_net("Inception")), "is concatenated"


class Shared(Net):
    """One weight in two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv3d(8, 8, 3, padding=1)
        self.c.weight = self.b.weight

    def forward(self, x):
        return self.head(self.c(self.b(self.a(x).relu()).relu()).mean((2, 3, 4)))


class Twice(Net):
    """One convolution in two places."""

    def forward(self, x):
        return self.head(self.b(self.b(self.a(x).relu()).relu()).mean((2, 3, 4)))


class Read(Net):
    """A weight that is read as a value."""

    def forward(self, x):
        return self.head(self.b(self.a(x).relu()).mean((2, 3, 4))) + self.b.weight.mean((0, 2, 3, 4))[:4]


class Scaled(Net):
    """A factor for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factors", torch.arange(8.0).view(8, 1, 1, 1))

    def forward(self, x):
        return self.head(self.b(self.a(x).relu() * self.factors).mean((2, 3, 4)))


@pytest.mark.parametrize("kind", [Shared, Twice, Read, Scaled])
def test_what_others_read_has_a_fixed_order(kind):
    torch.manual_seed(0)
    assert free_convs(Net()) == {"a"}
    assert free_convs(kind()) == set()
