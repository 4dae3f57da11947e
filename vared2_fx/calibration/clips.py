"""The few clips that calibration looks at, held in memory, and running them.

N clips, C channels, T frames, H height, W width.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from vared2_fx.batches import batches_of, read_batch
from vared2_fx.errors import DataError
from vared2_fx.packing import Pack


def kept_clips(where: str, clips: Any, max_clips: int) -> list[Tensor]:
    """The first `max_clips` of a loader, or of a tensor, in its batches: (N, C, T, H, W) each.

    Raises:
        DataError: there are none, or `max_clips` is not at least 1; the text begins with `where`.
    """
    if max_clips < 1:
        raise DataError(f"{where}: max_clips={max_clips}; at least one clip is needed.")
    batches: Iterable[Any] = batches_of(clips)
    if isinstance(clips, Tensor):
        batches = [clips]
    found: list[Tensor] = []
    missing = max_clips
    for raw in batches:
        video = read_batch(raw).video[:missing]
        if len(video):
            found.append(video)
            missing -= len(video)
        if not missing:
            break
    if not found:
        raise DataError(f"{where}: the loader gave no clips.")
    return found


def run_clips(network: nn.Module, batches: Iterable[Tensor], pack: Pack) -> None:
    """Call `network` with every batch, on its device and in its dtype."""
    like = next(network.parameters())
    for video in batches:
        network(*pack(video.to(like)))
