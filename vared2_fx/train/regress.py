"""One gate fitted to prices, or settled at one choice [ours].

N rows, each a clip as a gate saw it under some policy; F features of the gate; J frame strides, I channel shares.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vared2_fx.layers import Choice, Gate

_STEPS, _BATCH, _LR, _WEIGHT_DECAY = 250, 256, 1e-2, 3.0
_PRICED = 0.9
"""Weight of the expected price at the last step; by itself it holds gates at a choice between two."""
_NOISE = 0.7
"""Added to the standardised features, in standard deviations: some hundred clips are soon known by heart."""
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


def fit_gate(gate: Gate, features: Tensor, prices: Tensor, ladder: list[Choice]) -> None:
    """Fit a gate in place; its mode is kept.

    Args:
        gate: whose norms stay as they are.
        features: what it saw, (N, F).
        prices: of each choice of `ladder` in all regions alike, (N, choices).
        ladder: choices of the network; where several are one for this region, the best of them counts.
    """
    grid, training = gate.grid, gate.training
    table = prices.new_full((len(prices), len(grid.frame_strides), len(grid.channel_shares)), math.inf)
    for place, choice in enumerate(ladder):
        i, j = grid.index(grid.nearest(choice))
        table[:, i, j] = table[:, i, j].minimum(prices[:, place])
    gate.eval()
    with torch.no_grad():
        seen = gate.standardised(features.to(gate.out.weight.dtype)).float()
    _regress(gate, seen, table)
    gate.train(training)


@torch.no_grad()
def unlearn(gate: Gate) -> None:
    """Let a gate begin anew, with the mean and the deviation that it measures its features by."""
    for layer in (gate.hidden, gate.norm, gate.out):
        layer.reset_parameters()
    gate.out.bias.zero_()


@torch.no_grad()
def settle_gate(gate: Gate, choice: Choice) -> None:
    """Let a gate take the choice of its own that is nearest for every clip, whatever it sees."""
    stride, share = gate.grid.index(gate.grid.nearest(choice))
    gate.out.weight.zero_()
    gate.out.bias.fill_(-_SETTLED)
    gate.out.bias[[stride, len(gate.grid.frame_strides) + share]] = _SETTLED


def settled_place(gate: Gate) -> tuple[int, int] | None:
    """Where in its grid the choice of a settled gate is; None: it decides."""
    if gate.out.weight.any():
        return None
    strides, shares = torch.split(gate.out.bias, [len(gate.grid.frame_strides), len(gate.grid.channel_shares)])
    return int(strides.argmax()), int(shares.argmax())


def _regress(gate: Gate, seen: Tensor, table: Tensor) -> None:
    """AdamW on the gate's two layers; features (N, F) are standardised, prices (N, J, I)."""
    decayed = [gate.hidden.weight, gate.out.weight]
    free = [*gate.norm.parameters(), gate.hidden.bias, gate.out.bias]  # with decay, not even one choice for all is sure
    groups = [{"params": decayed, "weight_decay": _WEIGHT_DECAY}, {"params": free, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=_LR)
    best = table.flatten(1).argmin(1)
    stride, share = best // table.shape[2], best % table.shape[2]
    for step in range(_STEPS):
        some = torch.randperm(len(seen))[:_BATCH].to(seen.device)
        clips = seen[some]
        z = gate.logits((clips + _NOISE * torch.randn_like(clips)).to(gate.out.weight.dtype)).float()
        strides, shares = z[:, : table.shape[1]], z[:, table.shape[1] :]
        price = torch.einsum("nij,ni,nj->n", table[some], strides.softmax(1), shares.softmax(1)).mean()
        # From the price alone a softmax that has settled on a choice soon knows no better one.
        wrong = F.cross_entropy(strides, stride[some]) + F.cross_entropy(shares, share[some])
        optimizer.zero_grad()
        wrong.lerp(price, _PRICED * step / _STEPS).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.zero_grad()
