"""What a training loop needs to know of a loader: its batches, and its epochs."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vared2_fx.errors import DataError


class Batch(NamedTuple):
    """Clips and what is known of them."""

    clips: Any
    """(N, 3, T, H, W), or a list of such for networks with several inputs."""
    labels: Tensor
    """int64 (N,)."""
    names: tuple[str, ...]
    """Names of the videos; empty where the loader gives none."""

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`."""
        clips = self.clips
        if isinstance(clips, Tensor):
            moved: Any = clips.to(device, non_blocking=True)
        else:
            moved = [clip.to(device, non_blocking=True) for clip in clips]
        return Batch(moved, self.labels.to(device, non_blocking=True), self.names)


def as_batch(batch: Any) -> Batch:
    """Read a batch: a dict with "video" and "label" (pytorchvideo's form), or a pair (clips, labels).

    Raises:
        DataError: it is neither, or the labels are no integers.
    """
    if isinstance(batch, Mapping) and {"video", "label"} <= batch.keys():
        clips, labels, names = batch["video"], batch["label"], tuple(batch.get("video_name", ()))
    elif isinstance(batch, (list, tuple)) and len(batch) == 2:
        (clips, labels), names = batch, ()
    else:
        kind = f"a dict with {sorted(map(str, batch))}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise DataError(f'loader: a batch is {kind}; expected a dict with "video" and "label", or (clips, labels).')
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point():
        raise DataError("loader: labels have to be an integer tensor of shape (N,), one class index per clip.")
    return Batch(clips, labels, names)


def set_epoch(loader: Iterable[Any], epoch: int) -> None:
    """Tell a loader's sampler which epoch comes next, where it wants to know."""
    for part in (loader, getattr(loader, "sampler", None), getattr(loader, "dataset", None)):
        if callable(getattr(part, "set_epoch", None)):
            part.set_epoch(epoch)  # type: ignore[union-attr]
            return
