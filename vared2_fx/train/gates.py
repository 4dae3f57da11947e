"""Gates fitted to what each clip needs, weights left alone: variants first, gates second [ours].

N clips, F features of a gate; J frame strides, I channel shares.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from vared2_fx.batches import Batch, read_labelled
from vared2_fx.errors import DataError, TrainError
from vared2_fx.layers import Choice, Gate
from vared2_fx.modes import evaluating
from vared2_fx.packing import packer
from vared2_fx.passes.rewrite import regions
from vared2_fx.policy.fix import policy
from vared2_fx.train.evaluate import check_scores
from vared2_fx.train.variants import ladder_of

_STEPS, _BATCH, _LR, _WEIGHT_DECAY = 400, 512, 1e-2, 3.0
_PRICED = 0.9
"""Weight of the expected price at the last step; by itself it holds gates at a choice between two."""
_NOISE = 0.7
"""Added to the standardised features, in standard deviations: some hundred clips are soon known by heart."""
_LOST = 3.0
"""Cross-entropy from which on an answer is simply wrong: one hopeless clip shall not outweigh all others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateFit:
    """What `fit_gates` aimed at."""

    targets: dict[Choice, int]
    """Clips for which each choice was the best by itself, dearest first."""

    @property
    def num_clips(self) -> int:
        """Clips that were looked at."""
        return sum(self.targets.values())


def fit_gates(dynamic: fx.GraphModule, loader: Iterable[Any], *, loss_weight: float = 3.0, rounds: int = 2) -> GateFit:
    """Teach each gate to decide so that multiply-adds and loss together come out least.

    Every clip runs with each choice, taken in all regions alike, which gives a price for each: the share of the
    network's multiply-adds, plus `loss_weight` times the cross-entropy. Each gate then learns, from what it sees, the
    decision of least expected price. So how much an error costs counts, not only that it is one: a frame stride too
    coarse by one step is often harmless, one too coarse by two hardly ever.

    The first round shows the gates what they see under full, middle and cheapest choices; each further round also what
    they see under their own decisions.

    Take clips that the weights were not trained on: of those they know by heart, any choice is right.

    Args:
        dynamic: a converted network; its gates are trained in place, everything else stays. Its mode is restored.
        loader: batches as dicts with "video" and "label", or pairs (clips, labels). It may shuffle and augment.
        loss_weight: price of a cross-entropy of 1, as a share of the original's multiply-adds; the larger, the less
            is risked, and saved. 1 … 10 is usual.
        rounds: passes over the loader.

    Returns:
        For how many clips each choice was the best.

    Raises:
        TrainError: gates of kind `soft_modulation`, which do not take one choice; or a number out of range.
        DataError: the loader is empty, or a batch has no labels that fit the network.
    """
    gates = {path: region.gate for path, region in regions(dynamic).items()}
    if any(gate.kind == "soft_modulation" for gate in gates.values()):
        raise TrainError("fit_gates: gates of kind soft_modulation weigh several choices; convert with gate='softmax'.")
    if not 0 < loss_weight < math.inf or rounds < 1:
        raise TrainError(
            f"fit_gates: loss_weight={loss_weight}, rounds={rounds}; expected a weight above 0, and at least one round."
        )
    look = _Look(dynamic, gates, loss_weight)
    for number in range(rounds):
        look.over(loader, own=number > 0)
        for path, gate in gates.items():
            _regress(gate, torch.cat(look.features[path]), torch.cat(look.prices), look.ladder, first=number == 0)
    best = Counter(look.ladder[place] for prices in look.known.values() for place in [int(prices.argmin())])
    return GateFit(targets={choice: best[choice] for choice in look.ladder})


class _Look:
    """What the gates see, and what each choice would cost the clip that they see it of."""

    def __init__(self, dynamic: fx.GraphModule, gates: dict[str, Gate], loss_weight: float) -> None:
        self.dynamic, self.gates, self.loss_weight = dynamic, gates, loss_weight
        self.pack, self.like = packer(dynamic), next(dynamic.parameters())
        self.ladder: list[Choice] = []
        self.shares = torch.empty(0)
        self.features: dict[str, list[Tensor]] = {path: [] for path in gates}
        self.prices: list[Tensor] = []  # (N, choices) of everything in `features`
        self.known: dict[bytes, Tensor] = {}  # (choices,) of every clip seen, by its values

    def over(self, loader: Iterable[Any], *, own: bool) -> None:
        """Look at every clip, under its own decisions or under three of the ladder.

        Raises:
            DataError: the loader is empty, or a batch has no labels.
        """
        with evaluating(self.dynamic):
            for raw in loader:
                batch, labels = read_labelled(raw)
                if not len(labels):
                    continue
                batch, labels = batch.to(self.like), labels.to(self.like.device)
                if not self.ladder:
                    self.ladder, self.shares = ladder_of(self.dynamic, self.pack(batch.video[:1]))
                prices = self._prices(batch, labels, watch=not own)
                if own:
                    with _watched(self.gates, self.features):
                        self.dynamic(*self.pack(batch.video))
                    self.prices.append(prices)
        if not self.prices:
            raise DataError("fit_gates: the loader gave no clips.")

    def _prices(self, batch: Batch, labels: Tensor, *, watch: bool) -> Tensor:
        """(N, choices); of clips that were seen before as they were, as weights are left alone."""
        keys = [_key(clip) for clip in batch.video]
        if not watch and all(key in self.known for key in keys):
            return torch.stack([self.known[key] for key in keys])
        losses = []
        for place, choice in enumerate(self.ladder):
            shown = watch and place in {0, len(self.ladder) // 2, len(self.ladder) - 1}
            with policy(self.dynamic, {"*": choice}), _watched(self.gates, self.features if shown else {}):
                output = self.dynamic(*self.pack(batch.video)).float()
            check_scores(labels, output)
            if not output.isfinite().all():
                raise TrainError(f"fit_gates: the network's scores are not finite with {choice} in all regions.")
            losses.append(F.cross_entropy(output, labels, reduction="none").clamp_max(_LOST))
        prices = self.shares + self.loss_weight * torch.stack(losses, 1)
        self.known.update(zip(keys, prices, strict=True))
        self.prices += [prices] * (len(next(iter(self.features.values()))) - len(self.prices))
        return prices


def _key(clip: Tensor) -> bytes:
    return hashlib.blake2b(clip.contiguous().cpu().view(torch.uint8).numpy().tobytes(), digest_size=16).digest()


@contextmanager
def _watched(gates: dict[str, Gate], seen: dict[str, list[Tensor]]) -> Iterator[None]:
    """Note what the gates of `seen` look at."""
    hooks = [
        gates[path].register_forward_pre_hook(lambda gate, args, into=into: into.append(gate.look(args[0]).float()))
        for path, into in seen.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _regress(gate: Gate, features: Tensor, prices: Tensor, ladder: list[Choice], *, first: bool) -> None:
    """AdamW on the gate's two layers; its norms keep the statistics of the first round.

    Features (N, F), prices (N, choices).
    """
    grid = gate.grid
    table = prices.new_full((len(prices), len(grid.frame_strides), len(grid.channel_shares)), math.inf)
    for place, choice in enumerate(ladder):  # of choices that are one for this region the others may take the best
        i, j = grid.index(grid.nearest(choice))
        table[:, i, j] = table[:, i, j].minimum(prices[:, place])
    training = gate.training
    gate.eval()
    with torch.no_grad():
        if first:
            mean, var = gate.scale.running_mean, gate.scale.running_var
            assert mean is not None
            assert var is not None
            mean.copy_(features.mean(0))
            var.copy_(features.var(0, unbiased=False) + 1e-4)  # a feature that is constant here need not be elsewhere
            gate.out.bias.zero_()  # no choice is ahead of the others, as the full one was
        seen = gate.standardised(features.to(gate.out.weight.dtype)).float()
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
    gate.train(training)
