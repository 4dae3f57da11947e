"""The cheapest and the dearest clips of the data, kept while it runs by: how they look, and what was decided.

C channels, T frames, H height, W width.
"""

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vared2_fx.report.document import ClipChoice, Example

EACH = 4
"""Clips of either extreme."""
FRAMES, SIDE_PX, QUALITY = 8, 112, 60
"""Of a strip: frames at most, longer side in pixels, and JPEG's quality; 2 to 4 kB a frame."""


class Extremes:
    """Keeps the cheapest and the dearest clips so far; of equals the first."""

    def __init__(self, *, pictures: bool) -> None:
        """Keep small pictures of their frames, too, if `pictures`."""
        self._pictures = pictures
        self._cheap: list[tuple[int, Example]] = []
        self._dear: list[tuple[int, Example]] = []

    def add(self, number: int, macs: int, video: Tensor, choices: Callable[[], tuple[ClipChoice, ...]]) -> None:
        """Look at clip `number` (C, T, H, W) that took `macs`; `choices` is asked only if it is kept."""
        for kept, extreme, sign in self._lists():
            if len(kept) == EACH and sign * macs >= sign * kept[-1][0]:
                continue
            frames = jpeg_frames(video) if self._pictures else ()
            kept.append((macs, Example(clip=number, extreme=extreme, frames=frames, choices=choices())))
            kept.sort(key=lambda item: (sign * item[0], item[1].clip))
            del kept[EACH:]

    def _lists(self) -> Iterable[tuple[list[tuple[int, Example]], Literal["cheap", "dear"], int]]:
        return (self._cheap, "cheap", 1), (self._dear, "dear", -1)

    def found(self, num_clips: int) -> tuple[Example, ...]:
        """The cheapest, then the dearest of `num_clips`; no clip is in both."""
        return without_repeats([item[1] for item in self._cheap], [item[1] for item in self._dear], num_clips)


def without_repeats(cheap: Sequence[Example], dear: Sequence[Example], num_clips: int) -> tuple[Example, ...]:
    """Of few clips the cheaper half counts as cheap, the rest as dear."""
    few = (num_clips + 1) // 2
    chosen = cheap[: min(EACH, few)]
    taken = {example.clip for example in chosen}
    rest = [example for example in dear if example.clip not in taken]
    return (*chosen, *rest[: min(EACH, num_clips - few)])


def jpeg_frames(video: Tensor) -> tuple[str, ...]:
    """Small pictures of a clip (C, T, H, W): JPEG in base64.

    Brightness is stretched from the clip's darkest to its brightest values, since a normalised clip does not tell what
    it was before. A clip of other than three channels is shown in grey, by its first one.
    """
    from PIL import Image

    picked = torch.linspace(0, video.shape[1] - 1, min(FRAMES, video.shape[1])).round().long()
    frames = video[: 3 if video.shape[0] == 3 else 1][:, picked.to(video.device)].float().transpose(0, 1)
    height, width = frames.shape[2:]
    scale = min(1.0, SIDE_PX / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    if scale < 1.0:
        frames = F.interpolate(frames, size=size, mode="bilinear", antialias=True, align_corners=False)
    low, high = frames.amin(), frames.amax()
    pixels = ((frames - low) / (high - low).clamp_min(1e-6) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
    encoded = []
    for frame in pixels.expand(-1, -1, -1, 3).contiguous().numpy():
        out = io.BytesIO()
        Image.fromarray(frame).save(out, "JPEG", quality=QUALITY, optimize=True)
        encoded.append(base64.b64encode(out.getvalue()).decode())
    return tuple(encoded)
