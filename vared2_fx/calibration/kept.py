"""Which channels to keep so that the others are best predicted from them.

C channels, K of them kept.
"""

import heapq

import torch
from torch import Tensor


def choose_kept(covariance: Tensor, kept: int, weight: Tensor | None = None) -> Tensor:
    """Choose channels such that the others, each predicted from the one kept channel that suits it, are off by least.

    Greedy: the next channel is the one by which the variance explained grows most. What it explains of a channel that
    others explain already counts only as far as it exceeds that, so the gain shrinks as more are chosen, and the
    result is within 1 − 1/e of the best (submodular maximisation; ours).

    Args:
        covariance: of the channels, (C, C).
        kept: K.
        weight: (C,) what an error in each channel counts; None: alike.

    Returns:
        int64 (K,), ascending.
    """
    gain = explained(covariance)
    gain = gain if weight is None else gain * weight
    best = torch.zeros_like(gain[0])
    bounds = [(-total, channel) for channel, total in enumerate(gain.sum(1).tolist())]
    heapq.heapify(bounds)
    chosen: list[int] = []
    while len(chosen) < kept:
        _, channel = heapq.heappop(bounds)
        growth = -float((gain[channel] - best).clamp_min(0).sum())
        if bounds and (growth, channel) > bounds[0]:  # it shrank below another's bound
            heapq.heappush(bounds, (growth, channel))
            continue
        chosen.append(channel)
        best = torch.maximum(best, gain[channel])
    return torch.tensor(sorted(chosen))


def explained(covariance: Tensor) -> Tensor:
    """Variance of channel j that channel i explains in a linear fit, (C, C) at [i, j]."""
    variance = covariance.diagonal()
    return torch.where(variance[:, None] > 0, covariance.square() / variance[:, None], 0.0)
