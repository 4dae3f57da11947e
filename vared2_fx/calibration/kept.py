"""Which channels to keep so that the others are best predicted from them.

C channels, K of them kept.
"""

import heapq

import torch
from torch import Tensor


def choose_kept(gain: Tensor, kept: int) -> Tensor:
    """Choose channels such that, each map predicted from the one of them that suits it best, the most is explained.

    Greedy: the next channel is the one by which the variance explained grows most. What it explains of a map that
    others explain already counts only as far as it exceeds that, so the gain shrinks as more are chosen, and the
    result is within 1 − 1/e of the best (submodular maximisation; ours).

    Args:
        gain: variance that channel i explains of map j, at [i, j], (C, number of maps); see `explained`.
        kept: K.

    Returns:
        int64 (K,), the most useful first, so that the first of them are the choice for a smaller K.
    """
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
    return torch.tensor(chosen)


def explained(covariance: Tensor) -> Tensor:
    """Variance of channel j that channel i explains in a linear fit, (C, C) at [i, j]."""
    variance = covariance.diagonal()
    return torch.where(variance[:, None] > 0, covariance.square() / variance[:, None], 0.0)
