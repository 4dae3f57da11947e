"""Gates fitted to what each clip needs, weights left alone: variants first, gates second [ours].

N clips, F features of a gate.
"""

import copy
import hashlib
import logging
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
from vared2_fx.train.evaluate import check_scores, evaluate
from vared2_fx.train.regress import fit_gate, standardise
from vared2_fx.train.variants import ladder_of

log = logging.getLogger(__name__)

_LOST = 3.0
"""Cross-entropy from which on an answer is simply wrong: one hopeless clip shall not outweigh all others."""
_WEIGHTS, _TRIES = (0.02, 50.0), 6
"""Least and largest price of a loss that is tried for a target, and how often the interval is halved."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateFit:
    """What `fit_gates` aimed at."""

    targets: dict[Choice, int]
    """Clips for which each choice was the best by itself, dearest first."""
    loss_weight: float
    """What a loss of 1 counted: as asked for, or as the target wanted it."""
    settled: tuple[str, ...]
    """Regions that take one choice for all clips, as their gates told none apart; see `fit_gates`."""

    @property
    def num_clips(self) -> int:
        """Clips that were looked at."""
        return sum(self.targets.values())


def fit_gates(
    dynamic: fx.GraphModule,
    loader: Iterable[Any],
    *,
    loss_weight: float = 3.0,
    target: float | None = None,
    settle: bool = False,
    rounds: int = 2,
) -> GateFit:
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
        target: mean share of the original's multiply-adds to stay within on these clips, 0 … 1. The `loss_weight` that
            comes nearest is then searched for, and the one given not used. Where gates are settled, shares may be
            reached in steps only.
        settle: believe a gate only if what it learned pays on clips that it did not learn from, in a cross-validation,
            beside the one choice that is best for all; otherwise it takes that choice for every clip. Takes twice as
            long; worth it where clips are few, a thousand or less, and choices far from alike. Clips of one
            "video_name" are held out together.
        rounds: passes over the loader.

    Returns:
        For how many clips each choice was the best, and which regions are settled.

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
    if target is not None and not 0 < target <= 1:
        raise TrainError(f"fit_gates: target={target}, expected a share above 0 and at most 1.")
    look = _Look(dynamic, gates)
    for number in range(rounds):
        look.over(loader, own=number > 0)
        if number == 0:
            for path, gate in gates.items():
                standardise(gate, torch.cat(look.features[path]))
        if target is None:
            settled = look.fit(loss_weight, settle=settle)
        else:
            loss_weight, settled = _within(target, look, loader, settle=settle)
    for path in settled:
        log.info("%s: what its gate sees tells no clips apart; it takes one choice for all", path)
    best = Counter(look.ladder[int((look.shares + loss_weight * loss).argmin())] for loss in look.known.values())
    targets = {choice: best[choice] for choice in look.ladder}
    return GateFit(targets=targets, loss_weight=loss_weight, settled=tuple(settled))


def _within(target: float, look: "_Look", loader: Iterable[Any], *, settle: bool) -> tuple[float, list[str]]:
    """Fit with the largest price of a loss at which gates stay within the target; halves an interval of its logarithm.

    Returns that price, and what is settled.
    """
    before, found = _state(look.gates), None
    least, most = (math.log(weight) for weight in _WEIGHTS)
    for number in range(_TRIES):
        middle = (least + most) / 2 if number else least  # cheap gates are within any target that can be reached
        _restore(look.gates, before)
        settled = look.fit(math.exp(middle), settle=settle)
        within = evaluate(look.dynamic, loader).share <= target
        least, most = (middle, most) if within else (least, middle)
        if within or found is None:
            found = math.exp(middle), settled, _state(look.gates)
    assert found is not None
    _restore(look.gates, found[2])
    return found[:2]


def _state(gates: dict[str, Gate]) -> dict[str, dict[str, Tensor]]:
    return {path: copy.deepcopy(gate.state_dict()) for path, gate in gates.items()}


def _restore(gates: dict[str, Gate], state: dict[str, dict[str, Tensor]]) -> None:
    for path, gate in gates.items():
        gate.load_state_dict(state[path])


class _Look:
    """What the gates see, and what each choice would cost the clip that they see it of."""

    def __init__(self, dynamic: fx.GraphModule, gates: dict[str, Gate]) -> None:
        self.dynamic, self.gates = dynamic, gates
        self.pack, self.like = packer(dynamic), next(dynamic.parameters())
        self.ladder: list[Choice] = []
        self.shares = torch.empty(0)
        self.features: dict[str, list[Tensor]] = {path: [] for path in gates}
        self.losses: list[Tensor] = []  # (N, choices) of everything in `features`
        self.known: dict[bytes, Tensor] = {}  # (choices,) losses of every clip seen, by its values
        self.sources: list[Tensor] = []  # (N,) number of the video that each is from
        self.numbers: dict[str | bytes, int] = {}  # of videos, by name; of clips without one by their values

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
                losses = self._losses(batch, labels, watch=not own)
                if own:
                    with _watched(self.gates, self.features):
                        self.dynamic(*self.pack(batch.video))
                    self._note(batch, losses)
        if not self.losses:
            raise DataError("fit_gates: the loader gave no clips.")

    def fit(self, loss_weight: float, *, settle: bool) -> list[str]:
        """Fit all gates to the clips seen so far; the paths of those that take one choice for all."""
        prices = self.shares + loss_weight * torch.cat(self.losses)
        sources = torch.cat(self.sources) if settle else None
        told = {
            path: fit_gate(gate, torch.cat(self.features[path]), prices, self.ladder, sources)
            for path, gate in self.gates.items()
        }
        return [path for path, apart in told.items() if not apart]

    def _losses(self, batch: Batch, labels: Tensor, *, watch: bool) -> Tensor:
        """(N, choices); of clips that were seen before as they were, as weights are left alone."""
        keys = [_key(clip) for clip in batch.video]
        if not watch and all(key in self.known for key in keys):
            return torch.stack([self.known[key] for key in keys])
        found = []
        for place, choice in enumerate(self.ladder):
            shown = watch and place in {0, len(self.ladder) // 2, len(self.ladder) - 1}
            with policy(self.dynamic, {"*": choice}), _watched(self.gates, self.features if shown else {}):
                output = self.dynamic(*self.pack(batch.video)).float()
            check_scores(labels, output)
            if not output.isfinite().all():
                raise TrainError(f"fit_gates: the network's scores are not finite with {choice} in all regions.")
            found.append(F.cross_entropy(output, labels, reduction="none").clamp_max(_LOST))
        losses = torch.stack(found, 1)
        self.known.update(zip(keys, losses, strict=True))
        self._note(batch, losses)
        return losses

    def _note(self, batch: Batch, losses: Tensor) -> None:
        """Losses and sources of what was watched since the last time, once for each choice that was watched."""
        names: list[str] | list[bytes] = batch.names or [_key(clip) for clip in batch.video]
        numbers = [self.numbers.setdefault(name, len(self.numbers)) for name in names]
        for _ in range(len(next(iter(self.features.values()))) - len(self.losses)):
            self.losses.append(losses)
            self.sources.append(torch.tensor(numbers, device=losses.device))


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
