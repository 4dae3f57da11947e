"""What the passes put into a network; knows no graph."""

from vared2_fx.layers.block import DynamicBlock
from vared2_fx.layers.block_geometry import BlockGeometry, PoolGeometry, Step
from vared2_fx.layers.conv import ConvVariant, DynamicConv
from vared2_fx.layers.gate import Gate, fixed_decisions
from vared2_fx.layers.geometry import FULL, Choice, ChoiceGrid, ConvGeometry, computed_frames
from vared2_fx.layers.inside import SelfGated, recorded_decisions
from vared2_fx.layers.parts import FrameReturn, FrameSkip, SlimConv, SlimNorm
from vared2_fx.layers.rebuild import ChannelRebuild, FrameRebuild, predict_channels
from vared2_fx.layers.region import Decision, DynamicRegion, RegionCost, StaticRegion, recomputing

__all__ = [
    "FULL",
    "BlockGeometry",
    "ChannelRebuild",
    "Choice",
    "ChoiceGrid",
    "ConvGeometry",
    "ConvVariant",
    "Decision",
    "DynamicBlock",
    "DynamicConv",
    "DynamicRegion",
    "FrameRebuild",
    "FrameReturn",
    "FrameSkip",
    "Gate",
    "PoolGeometry",
    "RegionCost",
    "SelfGated",
    "SlimConv",
    "SlimNorm",
    "StaticRegion",
    "Step",
    "computed_frames",
    "fixed_decisions",
    "predict_channels",
    "recomputing",
    "recorded_decisions",
]
