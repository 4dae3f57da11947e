"""What is read from a loader: its batches, its epochs and what it draws from.

N clips, C channels, T frames, H height, W width.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vared2_fx.errors import DataError


class Batch(NamedTuple):
    """Clips, and what is known of them."""

    video: Tensor
    """(N, C, T, H, W)."""
    labels: Tensor | None
    """int64 (N,), class indices."""
    names: list[str] | None
    num_failed: int
    """Clips that the loader had to leave out of this batch."""
    failures: dict[str, str]
    """Their videos and reasons."""

    def to(self, like: Tensor) -> "Batch":
        """The batch on the device of `like`, clips in its dtype."""
        labels = None if self.labels is None else self.labels.to(like.device, non_blocking=True)
        return self._replace(video=self.video.to(like, non_blocking=True), labels=labels)


def read_batch(raw: Any) -> Batch:
    """Read a batch: clips (N, C, T, H, W); a pair (clips, labels); or a dict with "video", as pytorchvideo's.

    Of a dict also "label", "video_name", "num_failed" and "failed" are read, where it has them.

    Raises:
        DataError: it is none of these, or labels and clips differ in number.
    """
    if isinstance(raw, Mapping):
        video, labels, names = raw.get("video"), raw.get("label"), raw.get("video_name")
        num_failed, failures = int(raw.get("num_failed", 0)), dict(raw.get("failed", {}))
    elif isinstance(raw, (list, tuple)) and len(raw) == 2:
        (video, labels), names, num_failed, failures = raw, None, 0, {}
    else:
        video, labels, names, num_failed, failures = raw, None, None, 0, {}
    if not isinstance(video, Tensor) or video.dim() != 5:
        if isinstance(video, Tensor) and len(video) == 0:  # a batch that lost all its clips
            return Batch(video, torch.zeros(0, dtype=torch.int64), [], num_failed, failures)
        raise DataError(
            f"loader: a batch holds {describe(raw)}; expected clips (N, C, T, H, W), a pair (clips, labels), "
            'or a dict with "video" and, where needed, "label".'
        )
    known = None if names is None else [str(name) for name in names]
    if known is not None and len(known) != len(video):
        raise DataError(f'loader: {len(video)} clips came with {len(known)} names in "video_name".')
    return Batch(video, None if labels is None else _labels(labels, len(video)), known, num_failed, failures)


def read_labelled(raw: Any) -> tuple[Batch, Tensor]:
    """Read a batch that has to have labels; returns it and them.

    Raises:
        DataError: as `read_batch`, or there are no labels.
    """
    batch = read_batch(raw)
    if batch.labels is None:
        raise DataError(
            f'loader: a batch holds {describe(raw)}, no labels; expected a dict with "video" and "label", '
            "or a pair (clips, labels)."
        )
    return batch, batch.labels


def check_labels(labels: Tensor, scores: Tensor) -> None:
    """Refuse labels (N,) that the class scores (N, classes) have no place for.

    Raises:
        DataError: saying which.
    """
    wrong = labels[(labels < 0) | (labels >= scores.shape[1])]
    if len(wrong):
        raise DataError(
            f"A clip has label {int(wrong[0])}, but the network knows {scores.shape[1]} classes (0 to "
            f"{scores.shape[1] - 1}). Is the data labelled for another network? "
            "zoo.load(name, num_classes=…) builds one with the data's number of classes."
        )


def set_epoch(loader: Iterable[Any], epoch: int) -> None:
    """Tell a loader's sampler which epoch comes next, where it wants to know."""
    for part in (loader, getattr(loader, "sampler", None), getattr(loader, "dataset", None)):
        if callable(getattr(part, "set_epoch", None)):
            part.set_epoch(epoch)  # type: ignore[union-attr]
            return


def generators_of(*loaders: Iterable[Any]) -> list[torch.Generator]:
    """The random generators that loaders and their samplers hold, each once; without one they draw from torch's own."""
    found: list[torch.Generator] = []
    for loader in loaders:
        batches = getattr(loader, "batch_sampler", None)
        for part in (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)):
            generator = getattr(part, "generator", None)
            if isinstance(generator, torch.Generator) and all(generator is not other for other in found):
                found.append(generator)
    return found


def batches_of(clips: Any) -> Iterable[Any]:
    """Batches to go through: a loader as it is, a single Tensor of clips one clip at a time.

    Raises:
        DataError: `clips` is a tensor of another rank, or nothing that gives batches.
    """
    if isinstance(clips, Tensor):
        if clips.dim() != 5:
            raise DataError(f"Clips of shape {tuple(clips.shape)}; expected (N, C, T, H, W).")
        return list(torch.split(clips, 1))
    if not isinstance(clips, Iterable) or isinstance(clips, (str, bytes, Mapping)):
        raise DataError(
            f"Expected a loader or a tensor of clips (N, C, T, H, W), got {describe(clips)}. "
            "vared2_fx.data.make_loader makes a loader from video files."
        )
    return clips


def describe(value: Any) -> str:
    """What `value` is, for an error message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(map(repr, value)) or 'nothing'}"
    return f"a {type(value).__name__}"


def _labels(labels: Any, num_clips: int) -> Tensor:
    try:
        values = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"loader: labels are {describe(labels)}, no tensor; expected whole numbers.") from None
    if values.dim() != 1 or values.is_floating_point() or len(values) != num_clips:
        raise DataError(
            f"loader: {num_clips} clips came with labels of shape {tuple(values.shape)} and type "
            f"{str(values.dtype).removeprefix('torch.')}; expected an integer tensor, one class per clip."
        )
    return values.long()
