"""Gates fitted to prices, or settled at one choice [ours].

N rows, each a clip as a gate saw it under some policy; F features of a gate; J frame strides, I channel shares.
"""

import math
from collections.abc import Sequence

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


def fit_each(gates: Sequence[Gate], features: Sequence[Tensor], prices: Tensor, ladder: list[Choice]) -> None:
    """Fit gates in place, each by itself, all in the same steps, whose noise they share; their modes are kept.

    Args:
        gates: whose norms stay as they are.
        features: what each saw of the same clips, (N, F) with an F of its own.
        prices: of each choice of `ladder` in all regions alike, (N, choices).
        ladder: choices of the network; where several are one for a region, the best of them counts.
    """
    modes = [gate.training for gate in gates]
    for gate in gates:
        gate.eval()
    pupils = [_Pupil(gate, seen, prices, ladder) for gate, seen in zip(gates, features, strict=True)]
    decayed = [weight for gate in gates for weight in (gate.hidden.weight, gate.out.weight)]
    # With decay of these too, a gate would not even be sure of one choice for all.
    free = [weight for gate in gates for weight in (*gate.norm.parameters(), gate.hidden.bias, gate.out.bias)]
    groups = [{"params": decayed, "weight_decay": _WEIGHT_DECAY}, {"params": free, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=_LR)
    widest = max(pupil.seen.shape[1] for pupil in pupils)
    for step in range(_STEPS):
        some = torch.randperm(len(prices))[:_BATCH].to(prices.device)
        noise = _NOISE * torch.randn(len(some), widest, device=prices.device)
        optimizer.zero_grad()
        losses = [pupil.loss(some, noise, _PRICED * step / _STEPS) for pupil in pupils]
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.zero_grad()
    for gate, mode in zip(gates, modes, strict=True):
        gate.train(mode)


class _Pupil:
    """A gate, in evaluation mode, and what it learns: features (N, F) to prices (N, J, I)."""

    def __init__(self, gate: Gate, features: Tensor, prices: Tensor, ladder: list[Choice]) -> None:
        grid, self.gate = gate.grid, gate
        self.table = prices.new_full((len(prices), len(grid.frame_strides), len(grid.channel_shares)), math.inf)
        for place, choice in enumerate(ladder):
            i, j = grid.index(grid.nearest(choice))
            self.table[:, i, j] = self.table[:, i, j].minimum(prices[:, place])
        with torch.no_grad():
            self.seen = gate.standardised(features.to(gate.out.weight.dtype)).float()
        best = self.table.flatten(1).argmin(1)
        self.stride, self.share = best // self.table.shape[2], best % self.table.shape[2]

    def loss(self, some: Tensor, noise: Tensor, priced: float) -> Tensor:
        """Of some clips; `noise` may have more columns than there are features."""
        seen = self.seen[some] + noise[:, : self.seen.shape[1]]
        z = self.gate.logits(seen.to(self.gate.out.weight.dtype)).float()
        strides, shares = z[:, : self.table.shape[1]], z[:, self.table.shape[1] :]
        price = torch.einsum("nij,ni,nj->n", self.table[some], strides.softmax(1), shares.softmax(1)).mean()
        # From the price alone a softmax that has settled on a choice soon knows no better one.
        wrong = F.cross_entropy(strides, self.stride[some]) + F.cross_entropy(shares, self.share[some])
        return wrong.lerp(price, priced)


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
