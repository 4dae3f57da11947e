"""What is known about a network by name: the input it expects (`Spec`), and how it is had (`Entry`)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from vared2_fx.errors import ZooError

Library = Literal["pytorchvideo", "torchvision", "vared2_fx"]
RGB = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """The clip that a network expects, and what it answers.

    A clip is cut from a video so: resample the video to `fps`, take `frames` frames `sampling_rate` apart,
    scale the shorter side to `short_side`, cut out the central `crop` x `crop`, divide by 255, subtract
    `mean`, divide by `std`. The network answers one logit per class.

    Raises:
        ZooError: a size, rate or standard deviation is not positive, or the crop is larger than the frame.
    """

    name: str
    """Name in the zoo."""
    library: Library
    """Where the network's code and its pretrained weights come from."""
    frames: int
    """Frames of one clip (T)."""
    crop: int
    """Height and width of the network's input, in pixels."""
    short_side: int
    """Length of a frame's shorter side before cropping, in pixels."""
    sampling_rate: int
    """Distance between two frames of the clip, in frames of a video of `fps`."""
    fps: float
    """Frame rate that `sampling_rate` refers to, in frames per second."""
    mean: RGB
    """Mean per colour channel, of values in [0, 1]."""
    std: RGB
    """Standard deviation per colour channel, of values in [0, 1]."""
    num_classes: int
    """Classes of the pretrained weights."""

    def __post_init__(self) -> None:
        for field in ("frames", "crop", "short_side", "sampling_rate", "fps", "num_classes"):
            if not getattr(self, field) > 0:
                raise ZooError(f"Spec({self.name!r}): {field}={getattr(self, field)}; it must be above 0.")
        if self.crop > self.short_side:
            raise ZooError(
                f"Spec({self.name!r}): a crop of {self.crop} pixels does not fit a short side of "
                f"{self.short_side}. Raise short_side or lower crop."
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ZooError(
                f"Spec({self.name!r}): mean={self.mean}, std={self.std}; three numbers each, std above 0."
            )

    def example_inputs(self, batch: int = 1) -> Tensor:
        """Make up a batch of normalised clips: noise, the same at every call, for tracing, shapes and timing.

        Args:
            batch: number of clips (N).

        Returns:
            (batch, 3, frames, crop, crop), float32, on the CPU.
        """
        generator = torch.Generator().manual_seed(0)
        shape = (batch, 3, self.frames, self.crop, self.crop)
        return torch.randn(shape, generator=generator, device="cpu")


class Builder(Protocol):
    """Makes a network; imports its library only when called."""

    def __call__(self, *, num_classes: int, pretrained: bool) -> nn.Module:
        """Return a network with `num_classes` logits, in whatever mode its library leaves it.

        Args:
            num_classes: length of the answer. With `pretrained`, always `Spec.num_classes`.
            pretrained: with the library's own weights, downloaded if need be.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A row of the zoo."""

    spec: Spec
    """What the network expects."""
    build: Builder
    """Makes the network."""
    head: str
    """Path of the last layer, `nn.Linear` or a 1x1x1 `nn.Conv3d`: replaced for another number of classes."""
    url: Callable[[], str] | None
    """Asks the library for the address of its weights; None if they come with the library."""
