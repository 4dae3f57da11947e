"""Batches of clips: deterministic under a seed, and unshaken by videos that cannot be read."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler, default_collate

from vared2_fx.data.clips import ClipConfig, VideoDataset
from vared2_fx.data.listing import VideoListing, list_videos
from vared2_fx.data.probe import probe_videos

_LOG = logging.getLogger(__name__)
_KEEP = ("video", "label", "video_index", "clip_index", "crop_index")


@dataclass(kw_only=True, slots=True)
class DecodeLog:
    """What became of the clips that a loader was asked for, counted in the main process."""

    num_read: int = 0
    """Clips delivered."""

    num_short: int = 0
    """Delivered clips that were filled up with their last frame, as the video has fewer."""

    num_failed: int = 0
    """Clips dropped because nothing could be decoded."""

    failed: dict[str, str] = field(default_factory=dict)
    """Path -> reason of each video that failed at least once."""

    def add(self, batch: dict[str, Any]) -> None:
        """Count a batch of `collate_clips`."""
        self.num_read += len(batch["video_name"])
        self.num_short += batch["num_short"]
        self.num_failed += batch["num_failed"]
        self.failed.update(batch["failed"])

    def __str__(self) -> str:
        text = f"{self.num_read} clips read, {self.num_short} of them short, {self.num_failed} failed"
        return "\n  ".join([f"{text}:", *self.failed.values()]) if self.failed else text


def collate_clips(items: Sequence[dict[str, Any]], *, config: ClipConfig, labelled: bool = True) -> dict[str, Any]:
    """Stack items of `VideoDataset` to a batch; drop and count those that could not be read.

    Returns:
        "video" (B, 3, T, crop, crop) float32, "label", "video_index", "clip_index", "crop_index" int64 (B,),
        "video_name" list of B paths; "num_failed" and "num_short" int, "failed" {path: reason}. B is smaller than the
        number of items where some failed, and 0 where all did. No "label" where `labelled` is False.
    """
    keep = _KEEP if labelled else tuple(key for key in _KEEP if key != "label")
    good = [item for item in items if item["video"] is not None]
    failed = [item for item in items if item["video"] is None]
    if good:
        batch: dict[str, Any] = default_collate([{key: item[key] for key in keep} for item in good])
    else:
        batch = {key: torch.zeros(0, dtype=torch.int64) for key in keep}
        batch["video"] = torch.zeros(0, 3, config.frames, config.crop, config.crop)
    return {
        **batch,
        "video_name": [item["video_name"] for item in good],
        "num_short": sum(item["num_missing"] > 0 for item in good),
        "num_failed": len(failed),
        "failed": {item["video_name"]: item["error"] for item in failed},
    }


class EpochSampler(Sampler[tuple[int, int]]):
    """A new order in each epoch, with a seed for each clip: (index, seed).

    The same seed gives the same epochs, with any number of workers. Iterating moves on to the next epoch;
    `set_epoch` (which accelerate calls too) chooses it, to resume a run.
    """

    def __init__(self, num_items: int, *, seed: int) -> None:
        self._num_items = num_items
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` (from 0) the next one."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._num_items

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + self._epoch) % 2**63)
        self._epoch += 1
        order = torch.randperm(self._num_items, generator=generator).tolist()
        seeds = torch.randint(2**62, (self._num_items,), generator=generator).tolist()
        yield from zip(order, seeds, strict=True)


class VideoLoader(DataLoader[Any]):
    """The loader that `make_loader` returns: batches of `collate_clips`, without the empty ones.

    `log` counts over all epochs, workers included. Frameworks that rebuild a loader from its parts
    (`accelerator.prepare`) lose this class: there a batch may be empty, and carries its own counts.
    """

    log: DecodeLog
    """What became of the clips so far."""

    unreadable: tuple[tuple[str, str], ...]
    """(path, reason) of the videos that were left out from the start."""

    listing: VideoListing
    """The videos it reads."""

    clip_config: ClipConfig
    """What a clip is."""

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        for batch in super().__iter__():
            self.log.add(batch)
            if batch["video_name"]:
                yield batch


def make_loader(
    source: str | Path | VideoListing,
    config: ClipConfig,
    *,
    batch_size: int,
    training: bool = False,
    num_workers: int = 0,
    seed: int = 0,
    clips_per_video: int = 1,
    crops_per_clip: int = 1,
    classes: Sequence[str] | str | Path | None = None,
    flip: bool = True,
    probe: bool = True,
) -> VideoLoader:
    """Make batches of clips from video files.

    Args:
        source: folder, CSV or listing, see `list_videos`; from `list_unlabelled`: batches have no "label".
        config: what a clip is; `ClipConfig.from_spec(vr.zoo.spec(name))` for a network of the zoo.
        batch_size: clips in a batch.
        training: shuffled random clips; an incomplete last batch is left out, unless it is the only one.
            Else: every clip once, in order.
        num_workers: processes that decode; 0 decodes in this one. Changes nothing in the batches.
        seed: settles order, clips, crops and flips of every epoch.
        clips_per_video: evenly spread clips of each video in evaluation; `evaluate` averages over them.
        crops_per_clip: crops of each clip in evaluation, see `VideoDataset`.
        classes: names in label order; give the training loader's `listing.classes` for the other splits.
        flip: in training, mirror half of the clips.
        probe: open every video first, and leave out those that cannot be read, with a log line that names
            them. About 10 ms per video of 256×256, in each process; turn it off for a large, known data set.

    Returns:
        A `DataLoader` whose batches `collate_clips` describes.

    Raises:
        DataError: as `list_videos` and `VideoDataset`; with `probe`, when no video can be read.
    """
    listing = list_videos(source, classes=classes)
    unreadable: tuple[tuple[str, str], ...] = ()
    if probe:
        result = probe_videos(listing)
        listing, unreadable = result.usable, result.unreadable
        if unreadable:
            _LOG.warning("%s", result)
    dataset = VideoDataset(
        listing,
        config,
        training=training,
        clips_per_video=clips_per_video,
        crops_per_clip=crops_per_clip,
        flip=flip,
    )
    loader = VideoLoader(
        dataset,
        batch_size=batch_size,
        sampler=EpochSampler(len(dataset), seed=seed) if training else None,
        num_workers=num_workers,
        collate_fn=partial(collate_clips, config=config, labelled=bool(listing.classes)),
        drop_last=training and len(dataset) >= batch_size,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
    )
    loader.log, loader.unreadable = DecodeLog(), unreadable
    loader.listing, loader.clip_config = listing, config
    return loader
