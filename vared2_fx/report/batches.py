"""What a report reads from a batch.

N clips, C channels, T frames, H height, W width.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vared2_fx.errors import ReportError


class Clips(NamedTuple):
    """Clips, and what is known of them."""

    video: Tensor
    """(N, C, T, H, W)."""
    labels: list[int] | None
    names: list[str] | None
    num_failed: int
    """Clips that the loader had to leave out of this batch."""
    failures: dict[str, str]
    """Their videos and reasons."""


def read_batch(batch: Any) -> Clips:
    """Read a batch: clips (N, C, T, H, W); a pair (clips, labels); or a dict with "video".

    Of a dict also "label", "video_name", "num_failed" and "failed" are read, where it has them.

    Raises:
        ReportError: it is none of these, or labels and clips differ in number.
    """
    if isinstance(batch, Mapping):
        video, labels, names = batch.get("video"), batch.get("label"), batch.get("video_name")
        num_failed, failures = int(batch.get("num_failed", 0)), dict(batch.get("failed", {}))
    elif isinstance(batch, (list, tuple)) and len(batch) == 2:
        (video, labels), names, num_failed, failures = batch, None, 0, {}
    else:
        video, labels, names, num_failed, failures = batch, None, None, 0, {}
    if not isinstance(video, Tensor) or video.dim() != 5:
        raise ReportError(
            f"report: a batch holds {_describe(batch)}; expected clips (N, C, T, H, W), a pair (clips, labels), "
            'or a dict with "video".'
        )
    read = None if labels is None else _labels(labels, len(video))
    known = None if names is None else [str(name) for name in names]
    if known is not None and len(known) != len(video):
        raise ReportError(f'report: {len(video)} clips came with {len(known)} names in "video_name".')
    return Clips(video, read, known, num_failed, failures)


def _labels(labels: Any, num_clips: int) -> list[int]:
    try:
        values = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise ReportError(f"report: labels are {_describe(labels)}, no tensor; expected whole numbers.") from None
    if values.dim() != 1 or values.is_floating_point() or len(values) != num_clips:
        raise ReportError(
            f"report: {num_clips} clips came with labels of shape {tuple(values.shape)} and type "
            f"{str(values.dtype).removeprefix('torch.')}; expected one whole number per clip."
        )
    return [int(value) for value in values]


def batches_of(clips: Any) -> Iterable[Any]:
    """Batches to go through: a loader as it is, a single Tensor of clips one clip at a time.

    Raises:
        ReportError: `clips` is a tensor of another rank, or nothing that gives batches.
    """
    if isinstance(clips, Tensor):
        if clips.dim() != 5:
            raise ReportError(f"report: clips of shape {tuple(clips.shape)}; expected (N, C, T, H, W).")
        return list(torch.split(clips, 1))
    if not isinstance(clips, Iterable) or isinstance(clips, (str, bytes, Mapping)):
        raise ReportError(
            f"report: expected a loader or a tensor of clips (N, C, T, H, W), got {_describe(clips)}. "
            "vared2_fx.data.make_loader makes a loader from video files."
        )
    return clips


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(map(repr, value)) or 'nothing'}"
    return f"a {type(value).__name__}"
