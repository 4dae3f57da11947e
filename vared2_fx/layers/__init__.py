"""What the passes put into a network; knows no graph."""

from vared2_fx.layers.gate import Gate, fixed_decisions
from vared2_fx.layers.geometry import FULL, Choice, ChoiceGrid, ConvGeometry, computed_frames
from vared2_fx.layers.inside import SelfGated, recorded_decisions
from vared2_fx.layers.rebuild import ChannelRebuild, FrameRebuild, predict_channels
from vared2_fx.layers.region import ConvVariant, Decision, DynamicConv, RegionCost

__all__ = [
    "FULL",
    "ChannelRebuild",
    "Choice",
    "ChoiceGrid",
    "ConvGeometry",
    "ConvVariant",
    "Decision",
    "DynamicConv",
    "FrameRebuild",
    "Gate",
    "RegionCost",
    "SelfGated",
    "computed_frames",
    "fixed_decisions",
    "predict_channels",
    "recorded_decisions",
]
