"""The page of a plan."""

import pytest
from block_networks import CLIP, block_net
from networks import make_clip, tiny_net
from torch import nn

from vared2_fx import ConvertConfig, redundancy, scan, scan_page


@pytest.mark.parametrize("granularity", ["conv", "block", "stage"])
def test_every_convolution_is_there(granularity, tmp_path):
    plan = scan(block_net("Residual"), CLIP, ConvertConfig(granularity=granularity, min_macs_share=0))
    page = scan_page(plan, tmp_path / "scan.html")
    assert (tmp_path / "scan.html").read_text(encoding="utf-8") == page
    for entry in plan.entries:
        assert f">{entry.path}</button>" in page
    assert f"{100 * plan.reach.cheapest / plan.reach.dense:.1f} %" in page
    assert "src=" not in page


def test_reasons_and_redundancy():
    model = tiny_net()
    plan = scan(model, make_clip(1, 3, 8, 16, 16), ConvertConfig(exclude=("down.*",), min_macs_share=0))
    found = redundancy(model, make_clip(4, 3, 8, 16, 16))
    page = scan_page(plan, redundancy=found)
    assert "<strong>excluded</strong>: 1 convolution" in page
    assert "measured on 4 clips" in page
    for layer in found.layers:
        assert f">{layer.by_frame.r2:.2f}</td>" in page
        assert f">{layer.by_channel.r2:.2f}</td>" in page
    assert "Frames R²" not in scan_page(plan)


@pytest.mark.parametrize("granularity", ["conv", "block", "stage"])
def test_the_graph_shows_every_convolution_and_what_is_decided_together(granularity):
    plan = scan(block_net("Residual"), CLIP, ConvertConfig(granularity=granularity, min_macs_share=0))
    page = scan_page(plan)
    assert page.count(' class="box"') == len(plan.entries)
    assert page.count('class="filled"') == len(plan.entries)
    for entry in plan.converted:
        assert f"{entry.path}: {entry.operation}" in page
        assert f"decided in {entry.region}" in page
    names = {node.name for node in plan.graph}
    assert {entry.path for entry in plan.entries} <= names
    assert all(source in names for node in plan.graph for source in node.reads)


def test_nothing_to_convert_and_unknown_sizes():
    nothing = scan(nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 8 * 8, 2)), make_clip(1, 3, 4, 8, 8))
    assert "Nothing worth converting" in scan_page(nothing)


def test_names_are_text():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module("<script>alert(1)</script>", nn.Conv3d(3, 16, 3, padding=1))

        def forward(self, x):
            return getattr(self, "<script>alert(1)</script>")(x)

    page = scan_page(scan(Odd(), make_clip(1, 3, 8, 16, 16)))
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
