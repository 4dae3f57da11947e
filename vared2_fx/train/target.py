"""Coming down to a share of the multiply-adds, and staying there [ours].

N clips.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

TOLERANCE = 0.02
"""How far above the target an epoch may compute and still count as having reached it."""

_PROPORTIONAL = 5.0
_INTEGRAL = 50.0
"""Per unit of error and run: an error of 0.02 that lasts a tenth of a run adds 0.1."""
_LOWEST, _HIGHEST = -1.0, 5.0
_SMOOTH = 0.9
_TRUST = 0.5
"""How much of a newly seen gap between training and evaluation is believed."""


class TargetController:
    """The price of multiply-adds, step by step, such that evaluation computes the target's share of them.

    A fixed price overshoots or never arrives: what gates give up for it depends on the network and the clips. This one
    is a PI controller on the share that training expects. Training weighs choices where evaluation takes one, so the
    two differ; what an evaluation shows of that is allowed for from then on. Below the target the price is negative:
    what may be spent, is.
    """

    def __init__(self, target: float, num_steps: int) -> None:
        """Come to `target`, a share of the original's multiply-adds, within a run of `num_steps`."""
        self.target, self._num_steps = target, max(1, num_steps)
        self._integral, self._gap = 0.0, 0.0
        self._share: float | None = None

    def price(self, share: float) -> float:
        """What a step is to charge for the share of the multiply-adds, −1 … 5.

        Args:
            share: that this step's clips are expected to use in the mean, over all processes.
        """
        self._share = share if self._share is None else _SMOOTH * self._share + (1 - _SMOOTH) * share
        error = self._share + self._gap - self.target
        self._integral = _clamped(self._integral + _INTEGRAL * error / self._num_steps)
        return _clamped(_PROPORTIONAL * error + self._integral)

    def evaluated(self, share: float) -> None:
        """Say what an evaluation just computed, as a share of the original's multiply-adds."""
        if self._share is not None:
            self._gap += _TRUST * (share - self._share - self._gap)

    def state_dict(self) -> dict[str, float | None]:
        """All that `price` remembers."""
        return {"integral": self._integral, "gap": self._gap, "share": self._share}

    def load_state_dict(self, state: Mapping[str, float | None]) -> None:
        """Go on from `state_dict`."""
        self._integral, self._gap = state["integral"] or 0.0, state["gap"] or 0.0
        self._share = state["share"]


def charge(usage: Tensor, price: float, correct: Tensor) -> Tensor:
    """`price` times the mean share of the multiply-adds, a scalar to add to the loss.

    Args:
        usage: of each clip, float (N,).
        price: of `TargetController.price`. Above zero only clips that are classified correctly push towards cheaper
            choices [VA-RED², section 3, as we understand it]; below zero all may spend more.
        correct: bool (N,).
    """
    if price > 0:
        usage = torch.where(correct, usage, usage.detach())
    return price * usage.mean()


def _clamped(value: float) -> float:
    return min(_HIGHEST, max(_LOWEST, value))
