"""Clips of a fixed length and size from video files, ready for a network.

Legend: B clips, T frames, H height, W width.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pytorchvideo.data.clip_sampling import ConstantClipsPerVideoSampler, RandomClipSampler
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from vared2_fx.data.listing import VideoListing, list_videos
from vared2_fx.data.video import VideoFile
from vared2_fx.errors import DataError

if TYPE_CHECKING:
    from vared2_fx.zoo.spec import Spec


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig:
    """What a clip is: which frames of a video, at which size, in which range of values."""

    frames: int
    """Frames that the network sees, T."""

    crop: int
    """Height and width that the network sees, in pixels."""

    short_side: int
    """Length to which a frame's shorter side is scaled before cropping, in pixels; at least `crop`."""

    sampling_rate: int = 1
    """Distance between two frames of the clip, in frames at `fps`."""

    fps: float = 30.0
    """Frame rate that `sampling_rate` refers to, in frames per second. A video with another rate is read at
    the same times, so that motion keeps its speed."""

    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    """Subtracted from each RGB channel after scaling to 0...1."""

    std: tuple[float, float, float] = (0.225, 0.225, 0.225)
    """Divides each RGB channel after that."""

    def __post_init__(self) -> None:
        for name in ("frames", "crop", "short_side", "sampling_rate", "fps"):
            if not getattr(self, name) > 0:
                raise DataError(f"ClipConfig: {name}={getattr(self, name)}, but it must be above 0.")
        if self.crop > self.short_side:
            raise DataError(
                f"ClipConfig: crop={self.crop} does not fit into short_side={self.short_side}. "
                f"Set short_side to {self.crop} or more."
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise DataError(f"ClipConfig: mean={self.mean}, std={self.std}: three numbers each (R, G, B), std above 0.")

    @classmethod
    def from_spec(cls, spec: "Spec") -> "ClipConfig":
        """Take the input that a network of the zoo was trained on."""
        return cls(
            frames=spec.frames,
            crop=spec.crop,
            short_side=spec.short_side,
            sampling_rate=spec.sampling_rate,
            fps=spec.fps,
            mean=spec.mean,
            std=spec.std,
        )

    @property
    def duration_s(self) -> float:
        """Length of a clip in seconds."""
        return float(self._span)

    @property
    def _span(self) -> Fraction:
        return Fraction(self.frames * self.sampling_rate) / Fraction(self.fps).limit_denominator(10_000)

    def times_s(self, start_s: float) -> list[float]:
        """When each frame of a clip that starts at `start_s` is on screen: T ascending times, in seconds.

        They spread evenly over the whole clip, first and last frame included, like pytorchvideo's
        `uniform_temporal_subsample` over `frames * sampling_rate` frames.
        """
        steps = torch.linspace(0, self.frames * self.sampling_rate - 1, self.frames, dtype=torch.float64)
        return [start_s + int(step) / self.fps for step in steps.tolist()]


def clip_transform(
    config: ClipConfig, *, training: bool = False, flip: bool = True, crop: tuple[int, int] = (0, 1)
) -> v2.Compose:
    """Build the way from decoded frames to network input.

    Args:
        config: size and normalisation.
        training: random crop and flip; else the centre.
        flip: in training, mirror half of the clips. Turn it off where left and right differ in meaning.
        crop: in evaluation (n, of): the n-th, from 0, of so many crops along the longer side; of 1, the centre.

    Returns:
        A transform (T, 3, H, W) uint8 -> (T, 3, crop, crop) float32. Resizing is done on bytes: a quarter
        of the memory, and within half a grey level of float.
    """
    steps: list[Any] = [v2.Resize(config.short_side, antialias=True)]
    steps.append(v2.RandomCrop(config.crop) if training else partial(_crop_of, size=config.crop, place=crop))
    if training and flip:
        steps.append(v2.RandomHorizontalFlip())
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(config.mean, config.std)]
    return v2.Compose(steps)


def read_clip(path: str | Path, config: ClipConfig) -> Tensor:
    """Read the clip in the middle of one video, as in evaluation.

    Returns:
        (1, 3, T, crop, crop) float32. A video shorter than the clip is filled up with its last frame.

    Raises:
        DataError: the file is missing, is no video, or nothing of it can be decoded.
    """
    with VideoFile(path) as video:
        frames, _ = video.frames_at(config.times_s(_even_start(video.duration_s, config, 0, 1)))
    return _to_input(clip_transform(config)(frames)).unsqueeze(0)


class VideoDataset(Dataset[dict[str, Any]]):
    """Clips of listed videos, map-style: every clip of a video, one after the other.

    An item is a dict: "video" (3, T, crop, crop) float32, "label" int, "video_name" str (the path),
    "video_index", "clip_index" and "crop_index" int, "num_missing" int (frames filled up because the video is shorter
    than the clip). Crops of a clip follow each other; it is decoded once for them. A video that cannot be read never
    raises: its "video" is None and "error" says why;
    `collate_clips` drops and counts it.

    Args:
        source: folder, CSV or listing, see `list_videos`.
        config: what a clip is.
        training: a random clip of each video with random crop and flip, a new one each time; else
            `clips_per_video` clips spread evenly over the video (one: its middle), cropped in the centre.
        clips_per_video: clips from each video in evaluation.
        crops_per_clip: crops of each of them, spread evenly along the longer side of the frame; three is usual.
        classes: names in label order, see `list_videos`.
        flip: in training, mirror half of the clips.

    Raises:
        DataError: as `list_videos`, or `clips_per_video` or `crops_per_clip` is below 1, or above 1 in training.
    """

    def __init__(
        self,
        source: str | Path | VideoListing,
        config: ClipConfig,
        *,
        training: bool = False,
        clips_per_video: int = 1,
        crops_per_clip: int = 1,
        classes: Sequence[str] | str | Path | None = None,
        flip: bool = True,
    ) -> None:
        for name, number in (("clips_per_video", clips_per_video), ("crops_per_clip", crops_per_clip)):
            if number < 1 or (training and number > 1):
                raise DataError(
                    f"{name}={number}: 1 or more in evaluation; in training leave it at 1: "
                    "each epoch takes another random clip of each video."
                )
        self.listing = list_videos(source, classes=classes)
        self.config = config
        self.training = training
        self.clips_per_video = clips_per_video
        self.crops_per_clip = crops_per_clip
        self._transforms = [
            clip_transform(config, training=training, flip=flip, crop=(place, crops_per_clip))
            for place in range(crops_per_clip)
        ]
        self._last: tuple[tuple[str, int], tuple[Tensor, int]] | None = None

    def __len__(self) -> int:
        return len(self.listing) * self.clips_per_video * self.crops_per_clip

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """Read a clip.

        Args:
            key: the index; or (index, seed), where the seed settles every random choice, whatever process
                reads the clip. Without one, training draws it from torch's global generator.
        """
        index, seed = key if isinstance(key, tuple) else (key, None)
        clip, crop_index = divmod(index, self.crops_per_clip)
        video_index, clip_index = divmod(clip, self.clips_per_video)
        path, label = self.listing.videos[video_index]
        places = {"video_index": video_index, "clip_index": clip_index, "crop_index": crop_index}
        item = {"label": label, "video_name": path, **places}
        if self.training and seed is None:
            seed = int(torch.randint(2**62, ()))
        try:
            with _seeded(seed):
                frames, num_missing = self._decoded(path, clip_index)
                video = _to_input(self._transforms[crop_index](frames))
        except DataError as error:
            return {**item, "video": None, "error": str(error)}
        except Exception as error:  # whatever a damaged file brings about in a decoder
            return {**item, "video": None, "error": f"`{path}`: {type(error).__name__}: {error}"}
        return {**item, "video": video, "num_missing": num_missing}

    def _decoded(self, path: str, clip_index: int) -> tuple[Tensor, int]:
        """The frames of a clip (T, 3, H, W) uint8, and how many of them are filled up."""
        if self._last is not None and self._last[0] == (path, clip_index):
            return self._last[1]
        with VideoFile(path) as video:
            decoded = video.frames_at(self.config.times_s(self._start_s(video.duration_s, clip_index)))
        if self.crops_per_clip > 1:
            self._last = (path, clip_index), decoded
        return decoded

    def _start_s(self, duration_s: float, clip_index: int) -> float:
        if not self.training:
            return _even_start(duration_s, self.config, clip_index, self.clips_per_video)
        return float(RandomClipSampler(self.config._span)(0.0, duration_s, {}).clip_start_sec)


def _even_start(duration_s: float, config: ClipConfig, clip_index: int, clips_per_video: int) -> float:
    """Start of clip `clip_index`, in seconds, such that the clips lie symmetric in the video.

    pytorchvideo's sampler puts the first of K starts at 0 and the last 1/K before the last possible one; of
    2K starts every second one is symmetric.
    """
    sampler = ConstantClipsPerVideoSampler(config._span, 2 * clips_per_video)
    next_clip = partial(sampler, 0.0, duration_s, {})
    starts = [float(next_clip().clip_start_sec) for _ in range(2 * clip_index + 2)]
    return starts[-1]


def _crop_of(frames: Tensor, *, size: int, place: tuple[int, int]) -> Tensor:
    """Cut `size` × `size` out of (T, 3, H, W): in the middle of the shorter side, at `place` along the longer one."""
    number, of = place
    height, width = frames.shape[2:]
    if of == 1 or min(height, width) < size:
        centre: Tensor = v2.functional.center_crop(frames, [size, size])
        return centre
    along = round((max(height, width) - size) * number / (of - 1))
    across = round((min(height, width) - size) / 2)
    top, left = (along, across) if height > width else (across, along)
    return frames[:, :, top : top + size, left : left + size]


def _to_input(frames: Tensor) -> Tensor:
    return frames.transpose(0, 1).contiguous()  # (T, 3, H, W) -> (3, T, H, W)


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Seed the generators that pytorchvideo and torchvision draw from; put them back afterwards."""
    if seed is None:
        yield
        return
    state = random.getstate()
    random.seed(seed)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        random.setstate(state)
