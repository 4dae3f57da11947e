"""Choices taken in all regions alike, and how weights learn them [ours]."""

from torch import Tensor, fx

from vared2_fx.layers import Choice
from vared2_fx.passes.rewrite import regions

_FORGIVING = 0.3


def uniform_choices(dynamic: fx.GraphModule) -> list[Choice]:
    """Every choice that some region offers, the full one first."""
    return list(dict.fromkeys(choice for region in regions(dynamic).values() for choice in region.grid.all()))


def trained_choices(dynamic: fx.GraphModule) -> list[Choice]:
    """The choices to train by themselves: all reduced ones but the coarsest frame stride.

    What that one gets wrong it cannot learn from so few frames; trained on it, it only guesses with more confidence,
    and gates take guesses for knowledge.
    """
    reduced = uniform_choices(dynamic)[1:]
    coarsest = max(choice.frame_stride for choice in reduced)
    return [choice for choice in reduced if choice.frame_stride < coarsest] or reduced


def forgiving_loss(output: Tensor, labels: Tensor) -> Tensor:
    """(1 − p^q) / q of the label's probability p, q = 0.3: as cross-entropy, but it gives up what is hopeless."""
    right = output.softmax(1).gather(1, labels[:, None]).clamp_min(1e-6)
    return ((1 - right**_FORGIVING) / _FORGIVING).mean()
