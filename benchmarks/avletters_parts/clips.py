"""AVLetters, mouths that say a letter: splits, and loaders at any number of frames and any size of picture.

N clips, T frames, H height, W width; clips are grey, so C = 1.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FRAMES, STORED, CROP = 16, (45, 60), (42, 54)
"""What the base network sees of 12 … 40 frames of 60×80: so many, resized to `STORED`, and of that a crop."""
HELD_OUT = {"val": 4}
"""Of the 20 training clips per letter those that weights never see: for gates, thresholds, the choice of an epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Clips of one split."""

    clips: tuple[np.ndarray, ...]
    """Each (T, 45, 60) float32."""
    labels: tuple[int, ...]


def data_file() -> Path:
    """Where AVLetters lies: under $VARED2_DATA, or in `shared/data` beside the project."""
    root = os.environ.get("VARED2_DATA")
    folder = Path(root) if root else Path(__file__).parents[3] / "shared" / "data"
    return folder / "avletters" / "avletters_lips.npz"


def read_parts(seed: int, num_letters: int = 26, held_out: Mapping[str, int] = HELD_OUT) -> dict[str, Part]:
    """`test`: 10 clips a letter, of repetition 3; of the others those held out, drawn by `seed`; `train`: the rest."""
    held = np.load(data_file())
    offsets, labels, repetition = (held[key] for key in ("offsets", "label", "repetition"))
    pictures = torch.from_numpy(held["frames"])[:, None].float()
    frames = F.interpolate(pictures, STORED, mode="bilinear", antialias=True)[:, 0].numpy()
    rng = np.random.default_rng(seed)
    chosen: dict[str, list[int]] = {"train": [], "test": np.flatnonzero(repetition == 3).tolist()}
    for letter in range(num_letters):
        known = rng.permutation(np.flatnonzero((labels == letter) & (repetition != 3))).tolist()
        for name, count in held_out.items():
            chosen.setdefault(name, []).extend(known[:count])
            known = known[count:]
        chosen["train"] += known
    return {
        name: Part(
            clips=tuple(frames[offsets[i] : offsets[i + 1]] for i in some if labels[i] < num_letters),
            labels=tuple(int(labels[i]) for i in some if labels[i] < num_letters),
        )
        for name, some in chosen.items()
    }


class Loader:
    """Batches {"video": (N, 1, T, H, W), "label": (N,), "video_name": [N]}; all clips over their whole length."""

    def __init__(
        self,
        part: Part,
        *,
        training: bool = False,
        batch_size: int = 16,
        frames: int = FRAMES,
        scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        """Shuffle, move, mirror, stretch and brighten where `training`; `scale` is of the height and the width."""
        self._part, self._training, self._batch_size, self._seed = part, training, batch_size, seed
        self._frames, self._size, self._epoch = frames, tuple(round(scale * side) for side in CROP), 0

    def __len__(self) -> int:
        count = len(self._part.clips)
        return max(1, count // self._batch_size) if self._training else -(-count // self._batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Draw order and augmentation of this epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        rng = np.random.default_rng((self._seed, self._epoch))
        self._epoch += 1
        order = np.arange(len(self._part.clips))
        if self._training:
            rng.shuffle(order)
        for number in range(len(self)):
            some = order[number * self._batch_size : (number + 1) * self._batch_size]
            clips = torch.stack([self._clip(self._part.clips[i], rng) for i in some])
            if self._size != CROP:
                flat = F.interpolate(clips.flatten(0, 2)[:, None], self._size, mode="bilinear", antialias=True)
                clips = flat.view(*clips.shape[:3], *self._size)
            labels = torch.tensor([self._part.labels[i] for i in some])
            yield {"video": clips, "label": labels, "video_name": [str(i) for i in some]}

    def _clip(self, frames: np.ndarray, rng: np.random.Generator) -> Tensor:
        """(1, T, 42, 54) of mean 0 and deviation 1."""
        first, last, (top, left) = 0.0, len(frames) - 1.0, ((STORED[0] - CROP[0]) // 2, (STORED[1] - CROP[1]) // 2)
        if self._training:
            first, last = rng.uniform(0, 0.12) * last, last - rng.uniform(0, 0.12) * last
            top, left = (int(rng.integers(whole - part + 1)) for whole, part in zip(STORED, CROP, strict=True))
        times = np.linspace(first, last, self._frames).round().astype(int)
        clip = torch.from_numpy(frames[times, top : top + CROP[0], left : left + CROP[1]])
        clip = (clip - clip.mean()) / (clip.std() + 1e-3)
        if self._training:
            clip = clip * rng.uniform(0.8, 1.2) + rng.uniform(-0.2, 0.2)
            if rng.random() < 0.5:
                clip = clip.flip(-1)
        return clip[None]
