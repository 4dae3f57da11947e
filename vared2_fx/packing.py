"""From a batch of clips, as loaders give it, to what a network is called with.

N clips, C channels, T frames, H height, W width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vared2_fx import zoo
from vared2_fx.convert import conversion
from vared2_fx.errors import ConvertError, DataError

Pack = Callable[[Tensor], tuple[Any, ...]]
"""(N, C, T, H, W) → the positional arguments of a call, anew for each call."""


def packer(model: nn.Module, *, boxes: bool = False) -> Pack:
    """How `model` takes clips: as they are, or as the zoo's `Spec.pack` arranges them.

    Args:
        model: a network, converted or not.
        boxes: let a network that takes boxes have one for each clip, the whole frame. Otherwise it is refused: its
            answers are per box, and no loader gives boxes.

    Raises:
        DataError: the network takes boxes, or lists that nothing says how to fill.
    """
    try:
        made = conversion(model)
        source, nesting = made.source, made.plan.nesting
    except ConvertError:
        source, nesting = getattr(model, "vared2_source", None), ()
    if source is None:
        if nesting:
            raise DataError(
                f"{type(model).__name__} takes lists or dicts, and only the zoo's networks say how clips become such. "
                "Call it in a loop of your own: with_decisions gives what its gates decide."
            )
        return lambda clips: (clips,)
    spec = zoo.spec(str(source["name"]))
    if not spec.boxes:
        return lambda clips: (spec.pack(clips),)
    if not boxes:
        raise DataError(
            f"{spec.name} answers for each box, and a loader's batches have no boxes. Call it in a loop of your own: "
            "with_decisions gives what its gates decide."
        )
    return lambda clips: (spec.pack(clips), _whole_frames(clips))


def takes_boxes(model: nn.Module) -> bool:
    """Whether `model` is a converted network of the zoo that takes boxes."""
    source = conversion(model).source
    return source is not None and zoo.spec(str(source["name"])).boxes


def _whole_frames(clips: Tensor) -> Tensor:
    """One box for each clip: (N, 5), its index and x1, y1, x2, y2."""
    height, width = clips.shape[-2:]
    boxes = clips.new_zeros(len(clips), 5)
    boxes[:, 0] = torch.arange(len(clips))
    boxes[:, 3], boxes[:, 4] = width, height
    return boxes
