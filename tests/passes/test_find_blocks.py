"""Blocks and stages are found in the graph, whatever its modules are called."""

import pytest
import torch
from block_networks import CLIP, NETWORKS, block_net
from networks import Net, make_clip
from torch import Tensor, nn

import vared2_fx as vr
from vared2_fx import ConvertConfig
from vared2_fx.errors import ConvertError
from vared2_fx.passes.plan import Plan

EXPECTED = {
    ("Residual", "block"): [
        ("stem", 1),
        ("stage1.0.a-c", 5),
        ("stage1.0.shortcut", 1),
        ("stage1.1.a-c", 3),
        ("stage2.0.a-c", 3),
        ("stage2.0.shortcut", 1),
        ("stage2.1.a-c", 5),
    ],
    ("Residual", "stage"): [("stem", 1), ("stage1", 9), ("stage2", 9)],
    ("Inception", "block"): [("stem", 1), ("one", 1), ("two", 2), ("three", 1), ("last", 1)],
    ("Inception", "stage"): [("stem-last", 6)],
    ("Plain", "block"): [("conv1-conv2b", 3), ("conv3-conv3b", 2)],
    ("Plain", "stage"): [("conv1", 1), ("pool1-conv2b", 2), ("pool2-conv3b", 2)],
    ("Strided", "block"): [("stem", 1), ("a-b", 2), ("shortcut", 1)],
    ("Strided", "stage"): [("stem-shortcut", 4)],
}


def scanned(model: nn.Module, granularity: str, **options: object) -> Plan:
    return vr.scan(model, CLIP, ConvertConfig(granularity=granularity, min_macs_share=0.0, **options))


@pytest.mark.parametrize(("name", "granularity"), EXPECTED)
def test_what_is_found(name, granularity):
    plan = scanned(block_net(name), granularity)
    assert [(region.path, len(region.convs)) for region in plan.regions] == EXPECTED[name, granularity]
    assert plan.regions[0].in_shape == (3, 8, 32, 32)
    assert all(entry.region or entry.reason == "no_block" for entry in plan.entries)
    for region in plan.regions:
        assert region.path in str(plan)
        assert region.choice_macs[0] == sum(entry.macs for entry in plan.entries if entry.region == region.path)


@pytest.mark.parametrize("name", NETWORKS)
def test_names_do_not_matter(name):
    class Renamed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.x = nn.ModuleList([inner])

        def forward(self, clip: Tensor) -> Tensor:
            return self.x[0](clip)

    for granularity in ("block", "stage"):
        plan, renamed = (scanned(model, granularity) for model in (block_net(name), Renamed(block_net(name))))
        assert [r.convs for r in renamed.regions] == [tuple(f"x.0.{c}" for c in r.convs) for r in plan.regions]


def test_channels_are_slimmed_between_convolutions_only():
    shares = {region.path: region.grid.channel_shares for region in scanned(block_net("Residual"), "block").regions}
    assert shares["stem"] == shares["stage1.0.shortcut"] == (1.0,), "one convolution: others read all of its channels"
    assert shares["stage1.0.a-c"] == shares["stage2.1.a-c"] == (1.0, 0.5)


def test_what_leads_to_the_output_keeps_its_channels():
    """Also through a convolution in groups, whose channels go with those that it reads."""
    model = block_net("Plain")
    dynamic = vr.convert(model, CLIP, ConvertConfig(granularity="block", min_channels=1))
    static = vr.specialize(dynamic, {"*": (1, 0.5)})
    seen = {}
    for name in ("conv1", "conv2", "conv2b", "conv3", "conv3b"):
        static.get_submodule(name).register_forward_hook(
            lambda m, args, out, name=name: seen.update({name: (args[0].shape[1], out.shape[1])})
        )
    static(CLIP)
    assert seen == {"conv1": (3, 5), "conv2": (5, 12), "conv2b": (12, 12), "conv3": (12, 8), "conv3b": (8, 16)}


class Grouped(Net):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Sequential(nn.Conv3d(8, 16, 3, padding=1, groups=4), nn.ReLU(), nn.Conv3d(16, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).relu()).mean((2, 3, 4)))


def test_groups_are_kept_whole():
    """At 0.6, 3 of 4 groups: 6 of 8 channels, 12 of 16."""
    config = ConvertConfig(granularity="block", channel_shares=(1.0, 0.6), min_channels=1)
    static = vr.specialize(vr.convert(Grouped().eval(), CLIP, config), {"*": (1, 0.6)})
    first, grouped, last = (static.get_submodule(path).geometry for path in ("a", "b.0", "b.2"))
    assert (first.in_channels, first.out_channels) == (3, 6)
    assert (grouped.in_channels, grouped.out_channels, grouped.groups) == (6, 12, 3)
    assert (last.in_channels, last.out_channels) == (12, 8)


def test_what_is_excluded_parts_a_block():
    plan = scanned(block_net("Residual"), "block", exclude=("stage1.1.b",))
    assert [r.path for r in plan.regions if r.path.startswith("stage1.1")] == ["stage1.1.a-act_a", "stage1.1.b-c"]
    (entry,) = (entry for entry in plan.entries if entry.path == "stage1.1.b.0")
    assert entry.reason == "excluded"


class ReadOutside(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.head(self.b(y.relu()).mean((2, 3, 4)) + y.mean((2, 3, 4)))


def test_what_is_read_outside_ends_a_block():
    assert [region.path for region in scanned(ReadOutside().eval(), "block").regions] == ["a", "b"]


class WritesOver(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.head((self.b(torch.relu_(y)) + y).mean((2, 3, 4)))


def test_a_value_that_is_written_over_is_no_input():
    """Its skipped frames would stay as they were, for the others that read them."""
    model = WritesOver().eval()
    dynamic = vr.convert(model, CLIP, ConvertConfig(granularity="block", min_macs_share=0.0))
    assert torch.equal(dynamic(CLIP), model(CLIP))
    second = vr.scan(model, CLIP, ConvertConfig(granularity="block", min_macs_share=0.0)).regions[-1]
    assert [node.name for node in second.nodes] == ["relu_", "b"], "what it reads, and what it computes"


class LooksAtSizes(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        return self.head((self.b(y) * y.shape[2]).mean((2, 3, 4)))


def test_what_is_not_known_stays_outside():
    model = LooksAtSizes().eval()
    plan = scanned(model, "stage")
    assert all("mul" not in node.name for region in plan.regions for node in region.nodes)
    assert torch.equal(vr.convert(model, CLIP, ConvertConfig(granularity="stage"))(CLIP), model(CLIP))


class OneFrame(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).mean(2, keepdim=True)).mean((2, 3, 4)))


def test_where_there_is_no_time_there_is_no_block():
    plan = scanned(OneFrame().eval(), "block")
    assert [region.path for region in plan.regions] == ["a"]
    assert [entry.reason for entry in plan.entries] == ["convert", "no_block"]
    assert "no run of layers" in plan.entries[1].detail


def test_nothing_in_any_block_is_an_error_that_says_so():
    class Squashed(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.b(self.a(x.mean(2, keepdim=True))).mean((2, 3, 4)))

    with pytest.raises(ConvertError, match="no run of layers through it"):
        vr.convert(Squashed().eval(), make_clip(1, 3, 8, 16, 16), ConvertConfig(granularity="block"))


class Valid(Net):
    """Its second convolution gives two frames less than it reads; the third, of an even kernel, one more."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv3d(8, 8, 3, padding=(0, 1, 1))
        self.c = nn.Conv3d(8, 8, (2, 1, 1), padding=(1, 0, 0))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.b(self.a(x).relu()).relu()).mean((2, 3, 4)))


@pytest.mark.parametrize("granularity", ["block", "stage"])
def test_what_loses_or_adds_frames_at_the_ends_is_in_no_block(granularity):
    """Of half of the frames it would lose as many, which are twice as far apart, or have none left."""
    plan = scanned(Valid(), granularity)
    assert [region.convs for region in plan.regions] == [("a",)]
    assert [(entry.path, entry.reason) for entry in plan.skipped if entry.path in "bc"] == [
        ("b", "no_block"),
        ("c", "no_block"),
    ]
