"""What regions decided over data, summed up region by region.

N clips; J frame strides, I channel shares.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from vared2_fx.layers import Choice, ChoiceGrid, Decision
from vared2_fx.passes.leaves import called_path
from vared2_fx.policy.statistics import computed_choices, computed_macs, entropy_bits


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerDecisions:
    """One region over all clips."""

    share: float
    """Multiply-adds that were computed, gate and cheap operations included, as a share of those in full."""
    entropy: float
    """Entropy of its choices over the clips, in bits; 0: all clips got the same."""
    choices: Mapping[Choice, int] = field(default_factory=dict)
    """Clips for which each choice was taken, of all that the region offers."""


class DecisionCounts:
    """Counts batch after batch."""

    def __init__(self) -> None:
        """Begin with no clip."""
        self._computed: Counter[str] = Counter()
        self._dense: Counter[str] = Counter()
        self._choices: dict[str, Counter[tuple[int, int]]] = {}

    def add(self, decisions: Mapping[str, Decision]) -> None:
        """Count what `with_decisions` returned for a batch; fetched from the device in three pieces."""
        if not decisions:
            return
        values = list(decisions.values())
        computed = torch.stack([computed_macs(decision).sum() for decision in values]).tolist()
        dense = torch.stack([decision.macs[0, 0] for decision in values]).tolist()
        choices = torch.stack([computed_choices(decision) for decision in values]).tolist()
        for name, spent, full, picked in zip(decisions, computed, dense, choices, strict=True):
            path = called_path(name)
            self._computed[path] += spent
            self._dense[path] += full * len(picked)
            self._choices.setdefault(path, Counter()).update(map(tuple, picked))

    def found(self, grids: Mapping[str, ChoiceGrid]) -> dict[str, LayerDecisions]:
        """By path of the region, in the order in which they run; `grids` are the regions' choices by path."""
        return {
            path: LayerDecisions(
                share=self._computed[path] / max(1, self._dense[path]),
                entropy=entropy_bits(choices.values()),
                choices={choice: choices[grids[path].index(choice)] for choice in grids[path].all()},
            )
            for path, choices in self._choices.items()
        }
