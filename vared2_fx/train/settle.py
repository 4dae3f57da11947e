"""Whether gates are worth asking, and what all clips take where they are not [ours].

N clips.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vared2_fx.batches import read_labelled
from vared2_fx.errors import DataError
from vared2_fx.layers import Choice, Gate
from vared2_fx.modes import evaluating
from vared2_fx.train.look import Look, names_of, restore, state_of
from vared2_fx.train.regress import settle_gate, unlearn

_FOLDS, _FEWEST = 2, 12
"""Parts of the cross-validation, and the fewest videos of which one says anything."""
_WEIGHTS, _TRIES = (1e-4, 1e4), 60
"""Least and largest price of a loss that is tried for a target, and how often the interval is halved."""
_PASSES = 16
"""Passes over the clips, at most, to try single regions' choices in: where these are many, each is shown some clips."""
_TOO_DEAR = 1e6
"""Price of a share above the target: the least of them is taken where none is within."""

Decisions = Mapping[Gate, tuple[int, int]]


def proven(look: Look, loader: Iterable[Any], loss_weight: float) -> bool:
    """Whether gates do better on videos that they did not learn from than the static choices best for the others.

    By the standard error over the clips. With too few videos nobody can say: they are believed. Gates are left as they
    are; for the proof they begin anew, since they may have learned from any video before.

    Raises:
        DataError: the loader augments, and does not say which clips are one video's.
    """
    if len(look.numbers) < _FEWEST:
        return True
    prices = look.prices(loss_weight)
    fitted, saved = state_of(look.gates), list[Tensor]()
    for held in _held_out(look):
        for gate in look.gates.values():
            unlearn(gate)
        look.regress(prices, (~held[torch.cat(look.sources).cpu()]).to(prices.device))
        static = _static(look, loader, ~held, loss_weight, None)
        saved.append(_prices(look, loader, held, [*static, {}], loss_weight, None))
    restore(look.gates, fitted)
    alike, mixed, gated = torch.cat(saved, 1)
    return _better(gated, min(alike, mixed, key=lambda some: float(some.mean())))


def settled_choices(
    look: Look, loader: Iterable[Any], loss_weight: float, target: float | None, before: dict[Gate, tuple[int, int]]
) -> dict[str, Choice]:
    """Settle all gates: each takes one choice for every clip, which may differ from region to region.

    It differs only where that pays on videos from which it was not chosen, as in `proven`: the least of many noisy
    figures looks better than it is.

    Args:
        look: at the clips.
        loader: the same clips.
        loss_weight: of a loss of 1, as in `fit_gates`.
        target: mean share of the multiply-adds to stay within, if it can be; the least loss is then what counts.
        before: where gates were settled before they were fitted; if all were, that stays unless something is better.

    Returns:
        The choice of each region.
    """
    known = [before] if all(gate in before for gate in look.gates.values()) else []
    alike, mixed = _static(look, loader, None, loss_weight, target)
    candidates = [*known, alike]
    if mixed != alike and _mixing_pays(look, loader, loss_weight, target):
        candidates.append(mixed)
    prices = _prices(look, loader, None, candidates, loss_weight, target).mean(1)
    found = candidates[int(prices.argmin())]
    choices = {path: gate.grid[found[gate]] for path, gate in look.gates.items()}
    for path, choice in choices.items():
        settle_gate(look.gates[path], choice)
    return choices


def _mixing_pays(look: Look, loader: Iterable[Any], loss_weight: float, target: float | None) -> bool:
    """Whether a choice of each region's own does better than one for all, on videos that neither was chosen from."""
    if len(look.numbers) < _FEWEST:
        return True
    found = []
    for held in _held_out(look):
        static = _static(look, loader, ~held, loss_weight, target)
        found.append(_prices(look, loader, held, static, loss_weight, target))
    alike, mixed = torch.cat(found, 1)
    return _better(mixed, alike)


def _held_out(look: Look) -> list[Tensor]:
    """Bool (videos,), for each part of a cross-validation."""
    part = torch.randperm(len(look.numbers)) % _FOLDS
    return [part == number for number in range(_FOLDS)]


def _better(prices: Tensor, others: Tensor) -> bool:
    """Whether prices (N,) are less than others of the same clips, by more than the standard error."""
    gains = others - prices
    return bool(gains.mean() > gains.std() / math.sqrt(len(gains)))


def _static(
    look: Look, loader: Iterable[Any], some: Tensor | None, loss_weight: float, target: float | None
) -> tuple[Decisions, Decisions]:
    """The best choice for all regions alike, and the best mixture: for each region one of its own.

    For the mixture, what each region would cost, in multiply-adds and in loss, if it alone left the best choice for all
    is measured, and the best of these are taken as if none depended on another.
    """
    uniform = [look.alike(choice) for choice in look.ladder]
    outcomes = _outcomes(look, loader, some, uniform)
    place = int(_price(outcomes, loss_weight, target).mean(1).argmin())
    alike, share = uniform[place], float(outcomes[place, 0].mean())
    others = [
        (gate, index)
        for gate in look.gates.values()
        for choice in gate.grid.all()
        if gate.taken(choice) == choice and (index := gate.grid.index(choice)) != alike[gate]
    ]
    changes = _changes(look, loader, some, alike, others)
    room = None if target is None else target - share
    return alike, _mixed(alike, others, changes, loss_weight, room)


def _mixed(
    alike: Decisions,
    others: Sequence[tuple[Gate, tuple[int, int]]],
    changes: Sequence[tuple[float, float]],
    loss_weight: float,
    room: float | None,
) -> Decisions:
    """The best decision of each region, as if none depended on another.

    Args:
        alike: one choice for all regions.
        others: what a region could take in its place.
        changes: how much more is computed, and lost, if that region alone does.
        loss_weight: of a loss of 1.
        room: how much more may be computed in all; the price of a loss is then sought.
    """
    options: dict[Gate, list[tuple[float, float, tuple[int, int]]]] = {
        gate: [(0.0, 0.0, index)] for gate, index in alike.items()
    }
    for (gate, index), (share, loss) in zip(others, changes, strict=True):
        options[gate].append((share, loss, index))

    def best(weight: float) -> dict[Gate, tuple[float, float, tuple[int, int]]]:
        return {gate: min(some, key=lambda option: option[0] + weight * option[1]) for gate, some in options.items()}

    if room is not None:
        least, most = (math.log(weight) for weight in _WEIGHTS)
        for _ in range(_TRIES):
            middle = (least + most) / 2
            within = sum(share for share, _, _ in best(math.exp(middle)).values()) <= room
            least, most = (middle, most) if within else (least, middle)
        loss_weight = math.exp(least)
    return {gate: index for gate, (_, _, index) in best(loss_weight).items()}


def _changes(
    look: Look,
    loader: Iterable[Any],
    some: Tensor | None,
    alike: Decisions,
    others: Sequence[tuple[Gate, tuple[int, int]]],
) -> list[tuple[float, float]]:
    """What each of `others` alone computes and loses more than `alike`, each on clips spread evenly over all."""
    every = math.ceil(len(others) / _PASSES)
    totals, seen = torch.zeros(len(others), 2, dtype=torch.float64), 0
    counts = torch.zeros(len(others), 1, dtype=torch.float64)
    with evaluating(look.dynamic):
        for video, labels in _clips(look, loader, some):
            usual = torch.stack(look.outcome(video, labels, alike))
            for place, (gate, index) in enumerate(others):
                mine = slice((place - seen) % every, None, every)
                if len(labels[mine]):
                    changed = (
                        torch.stack(look.outcome(video[mine], labels[mine], {**alike, gate: index})) - usual[:, mine]
                    )
                    totals[place] += changed.double().sum(1).cpu()
                    counts[place] += changed.shape[1]
            seen += len(labels)
    means = torch.where(counts > 0, totals / counts, math.inf)  # what no clip was tried with is not taken
    return [(float(share), float(loss)) for share, loss in means]


def _prices(
    look: Look,
    loader: Iterable[Any],
    some: Tensor | None,
    policies: Sequence[Decisions],
    loss_weight: float,
    target: float | None,
) -> Tensor:
    """(policies, N): what each costs each clip of all videos, or of some."""
    return _price(_outcomes(look, loader, some, policies), loss_weight, target)


def _price(outcomes: Tensor, loss_weight: float, target: float | None) -> Tensor:
    """(policies, N) of shares and losses (policies, 2, N). A target is kept in the mean over the clips."""
    shares, losses = outcomes.unbind(1)
    if target is None:
        return shares + loss_weight * losses
    mean = shares.mean(1, keepdim=True)
    return torch.where(mean <= target, losses, _TOO_DEAR * mean)


def _outcomes(look: Look, loader: Iterable[Any], some: Tensor | None, policies: Sequence[Decisions]) -> Tensor:
    """(policies, 2, N): share of the multiply-adds, and loss, all on the same clips: of all videos, or of some."""
    with evaluating(look.dynamic):
        found = [
            torch.stack([torch.stack(look.outcome(video, labels, choices)) for choices in policies])
            for video, labels in _clips(look, loader, some)
        ]
    return torch.cat(found, 2).double().cpu()


def _clips(look: Look, loader: Iterable[Any], some: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Clips and labels, batch by batch; with bool (videos,), of the videos whose number is marked.

    Raises:
        DataError: the loader augments, and does not say which clips are one video's.
    """
    for raw in loader:
        batch, labels = read_labelled(raw)
        batch, labels = batch.to(look.like), labels.to(look.like.device)
        if some is None:
            marked = torch.ones(len(labels), dtype=torch.bool)
        else:
            numbers = [look.numbers.get(name) for name in names_of(batch)]
            if None in numbers:
                raise DataError(
                    'fit_gates: with settle, clips that change from pass to pass need a "video_name", by which those '
                    "of one video are held out together."
                )
            marked = some[torch.tensor(numbers, dtype=torch.long)]
        if marked.any():
            yield batch.video[marked], labels[marked]
