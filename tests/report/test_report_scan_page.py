"""The page of a plan."""

import pytest
from block_networks import CLIP, block_net
from networks import make_clip, tiny_net
from torch import nn

from vared2_fx import ConvertConfig, scan, scan_page


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
    plan = scan(tiny_net(), make_clip(1, 3, 8, 16, 16), ConvertConfig(exclude=("down.*",), min_macs_share=0))
    page = scan_page(plan, redundancy={"expand": 0.87})
    assert "<strong>excluded</strong>: 1 convolution" in page
    assert ">0.87</td>" in page
    assert ">0.87</td>" not in scan_page(plan)


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
