"""What is known about a network by name: the input it expects (`Spec`), and how it is had (`Entry`).

N clips, B boxes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from vared2_fx.errors import ZooError

Library = Literal["pytorchvideo", "torchvision", "vared2_fx"]
RGB = tuple[float, float, float]
Clips = Tensor | list[Tensor]
"""First argument of a network: clips, images, or a list with one tensor per pathway."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """The clip that a network expects, and what it answers.

    A clip is cut from a video so: resample the video to `fps`, take `frames` frames `sampling_rate` apart,
    scale the shorter side to `short_side`, cut out the central `crop` x `crop`, divide by 255, subtract
    `mean`, divide by `std`. The network answers one logit per class.

    Most networks take a batch of such clips. `pack` makes of it what the others take instead.

    Raises:
        ZooError: a size, rate or standard deviation is not positive, the crop is larger than the frame, or
            `pathways` and `still` do not go with `frames`.
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
    pathways: tuple[int, ...] = ()
    """Frames of each pathway, slow before fast, for a network that takes a list of tensors; the last pathway has
    all `frames`. Empty for a network that takes one tensor."""
    boxes: bool = False
    """Whether the network takes boxes as a second argument: (B, 5), each the index of a clip in the batch and
    x1, y1, x2, y2 in pixels of the crop. It then answers once per box: (B, num_classes)."""
    still: bool = False
    """Whether the network takes single images, (N, 3, crop, crop); `frames` is 1."""

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
            raise ZooError(f"Spec({self.name!r}): mean={self.mean}, std={self.std}; three numbers each, std above 0.")
        if self.pathways and not 1 <= min(self.pathways) <= max(self.pathways) == self.pathways[-1] == self.frames:
            raise ZooError(
                f"Spec({self.name!r}): pathways={self.pathways}; each has at least 1 frame, the last all {self.frames}."
            )
        if self.still and (self.frames != 1 or self.pathways):
            raise ZooError(f"Spec({self.name!r}): still=True goes with frames=1 and no pathways.")

    def pack(self, clips: Tensor) -> Clips:
        """Make of a batch of clips what the network takes as its first argument.

        Args:
            clips: (N, 3, T, crop, crop). T is `frames`, or another length for networks that take it.

        Returns:
            `clips` itself for most networks. With `pathways`, a new list, slow before fast: of each pathway its
            share of the frames, spread evenly from the first to the last (as pytorchvideo's SlowFast is
            trained); a pathway with all frames is `clips` itself. With `still`, the first frame, (N, 3, crop, crop).
        """
        if self.still:
            return clips[:, :, 0]
        if not self.pathways:
            return clips
        num_frames = clips.shape[2]
        return [_spread(clips, max(1, num_frames * frames // self.frames)) for frames in self.pathways]

    def example_inputs(self, batch: int = 1) -> Clips | tuple[Clips, Tensor]:
        """Make up a batch of normalised clips: noise, the same at every call, for tracing, shapes and timing.

        Args:
            batch: number of clips (N).

        Returns:
            (batch, 3, frames, crop, crop), float32, on the CPU. What `pack` makes of that for networks with
            `pathways` (a list) and `still`. With `boxes` the tuple (clips, boxes), two boxes per clip.
        """
        generator = torch.Generator().manual_seed(0)
        shape = (batch, 3, self.frames, self.crop, self.crop)
        clips = self.pack(torch.randn(shape, generator=generator, device="cpu"))
        if not self.boxes:
            return clips
        corners = self.crop * torch.tensor([[0.1, 0.1, 0.5, 0.9], [0.4, 0.2, 0.9, 1.0]], device="cpu")
        return clips, torch.cat([torch.arange(2 * batch, device="cpu")[:, None] // 2, corners.repeat(batch, 1)], dim=1)

    def example_args(self, batch: int = 1) -> tuple[Clips, ...]:
        """Make up the positional arguments of a call, `model(*spec.example_args())`, whatever the network takes.

        Args:
            batch: number of clips (N).

        Returns:
            `example_inputs` as a tuple: (clips,), or (clips, boxes).
        """
        inputs = self.example_inputs(batch)
        return inputs if isinstance(inputs, tuple) else (inputs,)


def _spread(clips: Tensor, num_frames: int) -> Tensor:
    if num_frames == clips.shape[2]:
        return clips
    return clips.index_select(2, torch.linspace(0, clips.shape[2] - 1, num_frames, device=clips.device).long())


class Builder(Protocol):
    """Makes a network; imports its library only when called."""

    def __call__(self, *, num_classes: int, pretrained: bool) -> nn.Module:
        """Return a network with `num_classes` logits, in whatever mode its library leaves it.

        Args:
            num_classes: length of the answer. With `pretrained`, always `Spec.num_classes`.
            pretrained: with the library's own weights, downloaded if need be.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The names under which another implementation of a network publishes its weights."""

    source: str
    """Where such files come from, as errors say it."""
    rename: Callable[[str], str]
    """From the name of a tensor in our network to its name in such a file."""


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
    """Asks the library for the address of its weights; None if they come with it, or if there are none (`build`
    says so then)."""
    layouts: tuple[Layout, ...] = ()
    """Names other than its own under which a user's file may hold its weights."""
