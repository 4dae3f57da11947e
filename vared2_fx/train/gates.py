"""Gates fitted to what each clip needs, weights left alone: variants first, gates second [ours]."""

import logging
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from vared2_fx.errors import TrainError
from vared2_fx.layers import Choice
from vared2_fx.passes.rewrite import regions
from vared2_fx.train.evaluate import evaluate
from vared2_fx.train.look import Look, restore, state_of
from vared2_fx.train.regress import settled_place, standardise
from vared2_fx.train.settle import proven, settled_choices

log = logging.getLogger(__name__)

_WEIGHTS, _TRIES = (0.02, 50.0), 6
"""Least and largest price of a loss that is tried for a target, and how often the interval is halved."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateFit:
    """What `fit_gates` aimed at."""

    targets: dict[Choice, int]
    """Clips for which each choice was the best by itself, dearest first."""
    loss_weight: float
    """What a loss of 1 counted: as asked for, or as the target wanted it."""
    settled: dict[str, Choice] | None
    """What each region takes for every clip, where gates that decide did no better; None: gates decide. Without
    regions whose gates were left as they were."""

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

    Take clips that the weights were not trained on: of those they know by heart, any choice is right. A few thousand
    do: what the gates see is kept, about 10 kB per clip and gate, twice that with `settle`.

    A gate that is not asked once for every clip, as in a branch that some batch does not take, stays as it was, which
    the log says.

    Args:
        dynamic: a converted network; its gates are trained in place, everything else stays. Its mode is restored.
        loader: batches as dicts with "video" and "label", or pairs (clips, labels). It may shuffle and augment.
        loss_weight: price of a cross-entropy of 1, as a share of the original's multiply-adds; the larger, the less
            is risked, and saved. 1 … 10 is usual.
        target: mean share of the original's multiply-adds to stay within on these clips, 0 … 1. The `loss_weight` that
            comes nearest is then searched for in the last round.
        settle: believe the gates only if what they learn pays on clips that they did not learn from, in a
            cross-validation, beside static choices; otherwise each region takes one choice for every clip: the same in
            all regions, or, where that pays in a cross-validation too, each its own, found by trying each of its
            choices while the others stay. Takes up to sixty passes over the clips more; for where clips are few.
            Clips of one "video_name" are held out together; of a loader that augments, clips have to have one.
        rounds: passes over the loader.

    Returns:
        For how many clips each choice was the best, and whether gates are settled.

    Raises:
        TrainError: gates of kind `soft_modulation`, which do not take one choice; or a number out of range.
        DataError: the loader is empty, or a batch has no labels that fit the network.
    """
    check_fittable("fit_gates", dynamic)
    gates = {path: region.gate for path, region in regions(dynamic).items()}
    if not 0 < loss_weight < math.inf or rounds < 1:
        raise TrainError(
            f"fit_gates: loss_weight={loss_weight}, rounds={rounds}; expected a weight above 0, and at least one round."
        )
    if target is not None and not 0 < target <= 1:
        raise TrainError(f"fit_gates: target={target}, expected a share above 0 and at most 1.")
    look = Look(dynamic, gates)
    before = {gate: place for gate in gates.values() if (place := settled_place(gate)) is not None}
    for number in range(rounds):
        look.over(loader, own=number > 0)
        if number == 0:
            for path, gate in look.gates.items():
                standardise(gate, torch.cat(look.features[path]))
        if target is None or number < rounds - 1:
            look.fit(loss_weight)
        else:
            loss_weight = _within(target, look, loader)
    settled = None
    if settle and look.gates and not proven(look, loader, loss_weight):
        settled = settled_choices(look, loader, loss_weight, target, before)
        log.info(
            "gates that decide do no better on clips that they did not learn from: settled, at %s",
            ", ".join(f"{choice} in {count} regions" for choice, count in Counter(settled.values()).most_common()),
        )
    best = Counter(look.ladder[int((look.shares + loss_weight * loss).argmin())] for loss in look.known.values())
    targets = {choice: best[choice] for choice in look.ladder}
    return GateFit(targets=targets, loss_weight=loss_weight, settled=settled)


def check_fittable(where: str, dynamic: fx.GraphModule) -> None:
    """Refuse gates that cannot be fitted, as they do not take one choice.

    Raises:
        TrainError: some are of kind `soft_modulation`; the text begins with `where`.
    """
    if any(region.gate.kind == "soft_modulation" for region in regions(dynamic).values()):
        raise TrainError(
            f"{where}: gates of kind soft_modulation weigh several choices, and cannot be fitted; convert with "
            "gate='softmax', or train with schedule='joint'."
        )


def _within(target: float, look: Look, loader: Iterable[Any]) -> float:
    """Fit with the largest price of a loss at which gates stay within the target; halves an interval of its logarithm.

    Returns that price.
    """
    before, found = state_of(look.gates), None
    least, most = (math.log(weight) for weight in _WEIGHTS)
    for number in range(_TRIES):
        middle = (least + most) / 2 if number else least  # cheap gates are within any target that can be reached
        restore(look.gates, before)
        look.fit(math.exp(middle))
        within = evaluate(look.dynamic, loader).share <= target
        least, most = (middle, most) if within else (least, middle)
        if within or found is None:
            found = math.exp(middle), state_of(look.gates)
    assert found is not None
    restore(look.gates, found[1])
    return found[0]
