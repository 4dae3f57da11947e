"""Layers grouped by the part of the network that they are in, as far as their paths tell."""

from collections.abc import Sequence
from typing import NamedTuple

from vared2_fx.report.numbers import LayerReport

FEW = 24
"""Up to so many layers are shown one by one."""
_LEAST = 3
"""Stages, below which names of one more level are looked at."""


class Stage(NamedTuple):
    """Layers whose paths begin alike."""

    name: str
    layers: tuple[LayerReport, ...]


def stages(layers: Sequence[LayerReport]) -> tuple[Stage, ...]:
    """Group layers by the beginning of their paths, in order.

    As many names of a path count as give at least three groups, or all that there are: `layer1` of `layer1.0.conv1`,
    `blocks.2` of `blocks.2.res_blocks.0.branch2.conv_a`.
    """
    deepest = max((layer.path.count(".") + 1 for layer in layers), default=1)
    groups: dict[str, list[LayerReport]] = {}
    for depth in range(1, deepest + 1):
        groups = {}
        for layer in layers:
            groups.setdefault(".".join(layer.path.split(".")[:depth]), []).append(layer)
        if len(groups) >= _LEAST:
            break
    return tuple(Stage(name, tuple(found)) for name, found in groups.items())
