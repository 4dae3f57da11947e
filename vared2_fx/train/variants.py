"""Choices that are not the gates': how weights learn each of them before any gate decides [ours]."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from vared2_fx.layers import Choice, ChoiceGrid, Gate
from vared2_fx.passes.rewrite import regions, with_decisions
from vared2_fx.policy.fix import policy
from vared2_fx.policy.statistics import clip_macs, dense_macs

_FORGIVING = 0.3


def uniform_choices(dynamic: fx.GraphModule) -> list[Choice]:
    """Every choice that some region offers, the full one first."""
    return list(dict.fromkeys(choice for region in regions(dynamic).values() for choice in region.grid.all()))


def ladder_of(dynamic: fx.GraphModule, clip: tuple[Any, ...]) -> tuple[list[Choice], Tensor]:
    """The choices that all regions can take alike, dearest first, and what each costs: float (choices,).

    Args:
        dynamic: a converted network in evaluation mode.
        clip: the arguments of a call with one clip.
    """
    observed, dense, shares = with_decisions(dynamic), dense_macs(dynamic, clip), {}
    for choice in uniform_choices(dynamic):
        with policy(dynamic, {"*": choice}):
            shares[choice] = int(clip_macs(observed(*clip)[1], dense)[0]) / dense
    ladder = sorted(shares, key=lambda choice: shares[choice], reverse=True)
    device = next(dynamic.parameters()).device
    return ladder, torch.tensor([shares[choice] for choice in ladder], device=device)


def trained_choices(dynamic: fx.GraphModule) -> list[Choice]:
    """The choices to train in all regions alike: all, but of several frame strides above 1 not the coarsest.

    What that one gets wrong it cannot learn from so few frames; trained on it, it only guesses with more confidence,
    and gates take guesses for knowledge. A single stride above 1 is all there is to save frames with, and is trained.
    """
    choices = uniform_choices(dynamic)
    strides = {choice.frame_stride for choice in choices if choice.frame_stride > 1}
    if len(strides) < 2:
        return choices
    return [choice for choice in choices if choice.frame_stride < max(strides)]


def drawn_policies(gates: Sequence[Gate], choices: Sequence[Choice]) -> Iterator[Mapping[Gate, tuple[int, int]]]:
    """Two policies to train on a batch: one of `choices` for all regions alike; for each region one of its own.

    The first makes each choice good by itself, which is what gates are taught to aim at. The second makes the network
    bear a gate that decides otherwise than the rest, as some always will.
    """
    alike = choices[int(torch.randint(len(choices), ()))]
    yield {gate: gate.grid.index(gate.grid.nearest(alike)) for gate in gates}
    yield {gate: _draw(gate.grid) for gate in gates}


def _draw(grid: ChoiceGrid) -> tuple[int, int]:
    """A choice of `grid`, as likely as it is dear."""
    choices = grid.all()
    cost = torch.tensor([choice.channel_share / choice.frame_stride for choice in choices])
    return grid.index(choices[int(torch.multinomial(cost, 1))])


def forgiving_loss(output: Tensor, labels: Tensor) -> Tensor:
    """(1 − p^q) / q of the label's probability p, q = 0.3: as cross-entropy, but it gives up what is hopeless."""
    right = output.softmax(1).gather(1, labels[:, None]).clamp_min(1e-6)
    return ((1 - right**_FORGIVING) / _FORGIVING).mean()
