"""A dynamic block: several layers under one gate [ours].

N clips, C channels, T frames, H height, W width; J frame strides, I channel shares.
"""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, fx, nn
from typing_extensions import Self

from vared2_fx.layers.block_geometry import BlockGeometry
from vared2_fx.layers.gate import Gate
from vared2_fx.layers.geometry import FULL, Choice, Size, computed_frames
from vared2_fx.layers.rebuild import ChannelRebuild, FrameRebuild
from vared2_fx.layers.region import DynamicRegion


class DynamicBlock(DynamicRegion):
    """A run of layers with one input and one output that computes what its decision asks for.

    A variant skips frames once, at the input, computes fewer channels between its convolutions, and rebuilds the
    frames once, at the output. In training, too, only what was picked is computed; the weight of a choice scales its
    output, so that the gate gets a gradient. A decision that weighs several choices gives their weighted sum, each
    computed by itself.
    """

    def __init__(
        self,
        body: nn.Module,
        gate: Gate,
        frame_rebuilds: list[FrameRebuild],
        channel_rebuilds: Sequence[Sequence[ChannelRebuild]],
        statistics: Sequence[Sequence[nn.BatchNorm3d]],
        variants: Mapping[Choice, fx.GraphModule],
        geometries: Mapping[float, BlockGeometry],
        prefix: str = "",
    ) -> None:
        """Make the block.

        Args:
            body: the layers as they were; not changed.
            gate: decides; kept here so that the parts of a region stay together.
            frame_rebuilds: Φt for each frame stride after the first.
            channel_rebuilds: Φc for each channel share after the first, one for each place that is slimmed.
            statistics: of the norms, for each choice after the full one.
            variants: the block at each choice; made of the modules of all the other arguments.
            geometries: of what a variant computes, by channel share.
            prefix: path, in the network, of the module in which the names of `body` begin.
        """
        super().__init__(body, gate, frame_rebuilds, _nested(channel_rebuilds))
        self.statistics, self.prefix = _nested(statistics), prefix
        self._variants, self._geometries = dict(variants), dict(geometries)  # own no weights: no submodules

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast; variants follow, whose buffers would otherwise be those of before."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for variant in self._variants.values():
            for node in variant.graph.find_nodes(op="get_attr"):
                owner, _, name = str(node.target).rpartition(".")
                setattr(variant.get_submodule(owner), name, getattr(self.body.get_submodule(owner), name))
        return self

    def variant(self, choice: Choice) -> nn.Module:
        """The block at one fixed choice, sharing weights."""
        return self._variants[choice]

    def statistics_of(self, choice: Choice) -> nn.ModuleList:
        """The norms' statistics at `choice`, or at the nearest that the block offers; none for the full one."""
        place = self.grid.all().index(self.grid.nearest(choice))
        found = self.statistics[place - 1] if place else nn.ModuleList()
        assert isinstance(found, nn.ModuleList)
        return found

    def out_frames(self, in_frames: int) -> int:
        """T of the output for T of the input."""
        return self._geometries[1.0].out_frames(in_frames)

    def conv_macs(self, in_size: Size, choice: Choice = FULL) -> int:
        """Multiply-adds of the convolutions alone for one clip of `in_size` (T, H, W) at `choice`."""
        t, h, w = in_size
        frames = len(computed_frames(t, self._stride(choice.frame_stride, t)))
        return self._geometries[choice.channel_share].macs((frames, h, w))

    def cheap_macs(self, in_size: Size, choice: Choice = FULL) -> int:
        """Multiply-adds of Φt for one clip of `in_size` (T, H, W) at `choice`; Φc is part of kernels."""
        stride = self._stride(choice.frame_stride, in_size[0])
        if stride == 1:
            return 0
        rebuild = self.frame_rebuilds[self.grid.frame_strides.index(stride) - 1]
        assert isinstance(rebuild, FrameRebuild)
        return rebuild.macs(self._geometries[1.0].out_size(in_size))

    def _train(self, x: Tensor, decision: Tensor) -> Tensor:
        # What no clip's choice used gets a gradient of zero, for which distributed training waits.
        unused = sum(parameter.sum() for module in self.added() for parameter in module.parameters())
        return self._bucketed(x, decision) + 0 * unused

    def _run(self, x: Tensor, decision: Tensor, j: int, i: int, alone: bool) -> Tensor:
        if alone and not self.training:
            return self._at(j, i, x)
        num_strides = len(self.grid.frame_strides)
        strides, shares = decision[:, :num_strides], decision[:, num_strides:]
        weights = strides[:, :, None] * shares[:, None, :]
        weighed = [(j, i)] if alone else weights.amax(0).nonzero().tolist()
        total: Tensor | None = None
        for at, to in weighed:
            part = self._at(at, to, x) * weights[:, at, to, None, None, None, None]
            total = part if total is None else total + part
        assert total is not None
        return total

    def _at(self, j: int, i: int, x: Tensor) -> Tensor:
        stride, share = self.grid[j, i]
        y: Tensor = self._variants[Choice(self._stride(stride, x.shape[2]), share)](x)
        return y

    def _stride(self, stride: int, in_frames: int) -> int:
        """The coarsest offered stride up to `stride` that leaves a frame of a clip; gates ask for no other."""
        frames = self.out_frames(in_frames)
        return max((r for r in self.grid.frame_strides if r <= min(stride, frames)), default=1)


def _nested(modules: Sequence[Sequence[nn.Module]]) -> nn.ModuleList:
    return nn.ModuleList(nn.ModuleList(group) for group in modules)
