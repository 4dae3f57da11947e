"""Mixup: training clips blended with each other (Zhang et al., 2018).

N clips, C channels, T frames, H height, W width.
"""

import torch
from torch import Tensor


def mixed(video: Tensor, alpha: float) -> tuple[Tensor, float]:
    """Blend every clip with the one at the batch's other end.

    timm's and torchvision's need the number of classes, an even batch or labels; clips alone serve distillation, too.

    Args:
        video: (N, C, T, H, W).
        alpha: of Beta(α, α), above 0, from which the weight is drawn, by torch's global generator.

    Returns:
        The blended clips, and the weight of each clip itself, 0.5 … 1; the other one has the rest.
    """
    drawn = float(torch.distributions.Beta(alpha, alpha).sample())
    kept = max(drawn, 1.0 - drawn)
    return video.lerp(video.flip(0), 1.0 - kept), kept
