"""Sizes and multiply-adds of a run of operations that a clip, or some frames of it, passes through.

T frames, H height, W width.
"""

from dataclasses import dataclass, replace
from functools import cached_property, reduce

from vared2_fx.layers.geometry import ConvGeometry, Size


@dataclass(frozen=True, slots=True)
class PoolGeometry:
    """What decides the sizes of a pooling."""

    kernel_size: Size
    stride: Size
    padding: Size
    dilation: Size = (1, 1, 1)

    def out_size(self, in_size: Size) -> Size:
        """(T, H, W) of the output for (T, H, W) of the input."""
        sizes = zip(in_size, self.padding, self.dilation, self.kernel_size, self.stride, strict=True)
        t, h, w = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in sizes)
        return t, h, w


@dataclass(frozen=True, slots=True)
class Step:
    """One operation: what it reads, and what it does to sizes."""

    sources: tuple[int, ...]
    """Numbers of the steps that it reads; -1 is the input of the run."""
    operation: ConvGeometry | PoolGeometry | None = None
    """None: sizes stay, those of the largest source count."""
    squeezes: bool = False
    """Whether it comes down to one value per channel."""


@dataclass(frozen=True)
class BlockGeometry:
    """A run with one input; the last step gives its output."""

    steps: tuple[Step, ...]

    def out_size(self, in_size: Size) -> Size:
        """(T, H, W) of the output for (T, H, W) of the input."""
        return self._sizes(in_size)[-1]

    def out_frames(self, in_frames: int) -> int:
        """T of the output for T of the input; no decisions, so that it serves for a number yet unknown."""
        return reduce(lambda t, step: step.out_size((t, *step.kernel_size[1:]))[0], self._along_time, in_frames)

    def macs(self, in_size: Size) -> int:
        """Multiply-adds of the convolutions for one clip of `in_size`."""
        sizes = self._sizes(in_size)
        before = [in_size, *sizes]
        return sum(
            step.operation.macs(before[step.sources[0] + 1])
            for step in self.steps
            if isinstance(step.operation, ConvGeometry)
        )

    def then(self, following: "BlockGeometry") -> "BlockGeometry":
        """Both runs, one after the other."""
        shift = len(self.steps)
        moved = (replace(step, sources=tuple(n + shift for n in step.sources)) for step in following.steps)
        return BlockGeometry((*self.steps, *moved))

    @property
    def keeps_frames(self) -> bool:
        """Whether there are as many frames at the end, whatever their number."""
        return not self._along_time

    @cached_property
    def _along_time(self) -> tuple[ConvGeometry | PoolGeometry, ...]:
        """Operations on one way from the input to the output that change the number of frames."""
        found, place = [], len(self.steps) - 1
        while place >= 0:
            step = self.steps[place]
            kind = step.operation
            if kind is not None and (kind.stride[0], _grows(kind)) != (1, 0):
                found.append(kind)
            place = min(source for source in step.sources if source < 0 or not self._squeezed[source])
        return tuple(reversed(found))

    @cached_property
    def _squeezed(self) -> tuple[bool, ...]:
        """Whether each step gives one value per channel."""
        found: list[bool] = []
        for step in self.steps:
            read = [source >= 0 and found[source] for source in step.sources]
            found.append(step.squeezes or (bool(read) and all(read)))
        return tuple(found)

    def _sizes(self, in_size: Size) -> list[Size]:
        sizes: list[Size] = []
        for step in self.steps:
            given = [in_size if source < 0 else sizes[source] for source in step.sources]
            largest = max(given)
            sizes.append(
                (1, 1, 1) if step.squeezes else step.operation.out_size(largest) if step.operation else largest
            )
        return sizes


def _grows(kind: ConvGeometry | PoolGeometry) -> int:
    """Frames that a stride of one adds."""
    return 2 * kind.padding[0] - kind.dilation[0] * (kind.kernel_size[0] - 1)
