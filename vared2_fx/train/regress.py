"""One gate fitted to prices: what it learns, and whether that holds for clips that it did not learn from [ours].

N rows, each a clip as a gate saw it under some policy; F features of the gate; J frame strides, I channel shares.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vared2_fx.layers import Choice, Gate

_STEPS, _BATCH, _LR, _WEIGHT_DECAY = 250, 256, 1e-2, 3.0
_TRIAL_STEPS = 100
"""Of each part of the cross-validation, which only asks whether there is anything to learn."""
_PRICED = 0.9
"""Weight of the expected price at the last step; by itself it holds gates at a choice between two."""
_NOISE = 0.7
"""Added to the standardised features, in standard deviations: some hundred clips are soon known by heart."""
_FOLDS, _FEWEST = 3, 12
"""Parts of the cross-validation, and the fewest videos of which one says anything."""
_EVIDENCE = 2.0
"""Standard errors by which a gate has to be ahead; by one, a sixth of all gates that know nothing would be."""
_SETTLED = 2.0
"""What a choice for all is ahead of the others by, once it is settled."""


def standardise(gate: Gate, features: Tensor) -> None:
    """Let the gate measure its features (N, F) by their mean and deviation here."""
    mean, var = gate.scale.running_mean, gate.scale.running_var
    assert mean is not None
    assert var is not None
    with torch.no_grad():
        mean.copy_(features.mean(0))
        var.copy_(features.var(0, unbiased=False) + 1e-4)  # a feature that is constant here need not be elsewhere
        gate.out.bias.zero_()  # no choice is ahead of the others, as the full one was


def fit_gate(gate: Gate, features: Tensor, prices: Tensor, ladder: list[Choice], sources: Tensor | None) -> bool:
    """Fit a gate, or settle it at the choice that is best for all where it tells no clips apart.

    Args:
        gate: trained in place; its mode is kept.
        features: what it saw, (N, F).
        prices: of each choice of `ladder` in all regions alike, (N, choices).
        ladder: choices of the network; where several are one for this region, the best of them counts.
        sources: int64 (N,), the number of the video that a row is from. None: believe the gate, settle nothing.

    Returns:
        Whether it tells clips apart.
    """
    grid, training = gate.grid, gate.training
    table = prices.new_full((len(prices), len(grid.frame_strides), len(grid.channel_shares)), math.inf)
    for place, choice in enumerate(ladder):
        i, j = grid.index(grid.nearest(choice))
        table[:, i, j] = table[:, i, j].minimum(prices[:, place])
    gate.eval()
    with torch.no_grad():
        seen = gate.standardised(features.to(gate.out.weight.dtype)).float()
    apart = sources is None or _tells_apart(gate, seen, table, sources)
    if apart:
        _regress(gate, seen, table, steps=_STEPS)
    else:
        _settle(gate, table)
    gate.train(training)
    return apart


def _tells_apart(gate: Gate, seen: Tensor, table: Tensor, sources: Tensor) -> bool:
    """Whether copies of it that learn from other videos decide cheaper than the one choice that was best for those.

    By more than `_EVIDENCE` standard errors over the videos. With too few of them nobody can say: it is believed.
    """
    videos, video = torch.unique(sources, return_inverse=True)
    if len(videos) < _FEWEST:
        return True
    fold = torch.randperm(len(videos), device=video.device)[video] % _FOLDS
    saved = torch.zeros(len(table), device=table.device)
    for number in range(_FOLDS):
        held = fold == number
        learner = copy.deepcopy(gate)
        _regress(learner, seen[~held], table[~held], steps=_TRIAL_STEPS)
        with torch.no_grad():
            z = learner.logits(seen[held].to(gate.out.weight.dtype))
        strides, shares = z[:, : table.shape[1]].argmax(1), z[:, table.shape[1] :].argmax(1)
        rows, one = table[held], int(table[~held].mean(0).argmin())
        saved[held] = rows.flatten(1)[:, one] - rows[torch.arange(len(rows), device=rows.device), strides, shares]
    per_video = torch.zeros(len(videos), device=saved.device).index_add_(0, video, saved) / video.bincount()
    return bool(per_video.mean() > _EVIDENCE * per_video.std() / math.sqrt(len(videos)))


def _settle(gate: Gate, table: Tensor) -> None:
    stride, share = divmod(int(table.mean(0).argmin()), table.shape[2])
    with torch.no_grad():
        gate.out.weight.zero_()
        gate.out.bias.fill_(-_SETTLED)
        gate.out.bias[[stride, table.shape[1] + share]] = _SETTLED


def _regress(gate: Gate, seen: Tensor, table: Tensor, *, steps: int) -> None:
    """AdamW on the gate's two layers; features (N, F) are standardised, prices (N, J, I)."""
    decayed = [gate.hidden.weight, gate.out.weight]
    free = [*gate.norm.parameters(), gate.hidden.bias, gate.out.bias]  # with decay, not even one choice for all is sure
    groups = [{"params": decayed, "weight_decay": _WEIGHT_DECAY}, {"params": free, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=_LR)
    best = table.flatten(1).argmin(1)
    stride, share = best // table.shape[2], best % table.shape[2]
    for step in range(steps):
        some = torch.randperm(len(seen))[:_BATCH].to(seen.device)
        clips = seen[some]
        z = gate.logits((clips + _NOISE * torch.randn_like(clips)).to(gate.out.weight.dtype)).float()
        strides, shares = z[:, : table.shape[1]], z[:, table.shape[1] :]
        price = torch.einsum("nij,ni,nj->n", table[some], strides.softmax(1), shares.softmax(1)).mean()
        # From the price alone a softmax that has settled on a choice soon knows no better one.
        wrong = F.cross_entropy(strides, stride[some]) + F.cross_entropy(shares, share[some])
        optimizer.zero_grad()
        wrong.lerp(price, _PRICED * step / steps).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.zero_grad()
