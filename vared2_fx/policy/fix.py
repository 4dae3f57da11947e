"""Fixing what the gates decide: for a while, or for good."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

from torch import fx, nn

from vared2_fx.errors import ConvertError
from vared2_fx.layers import FULL, Choice, ChoiceGrid, fixed_decisions
from vared2_fx.passes.decisions import without_decisions
from vared2_fx.passes.leaves import WHOLE
from vared2_fx.passes.rewrite import called_regions, fix_choices, regions, remove_gates
from vared2_fx.passes.trace import CONVERSION, copy_model
from vared2_fx.patterns import check_pattern, matching, no_match
from vared2_fx.wrappers import unwrapped

log = logging.getLogger(__name__)

Choices = Mapping[str, tuple[int, float]]
"""Choices by path, shell pattern or `re:` pattern (see `vared2_fx.patterns`): `{"blocks.3": (2, 0.5)}` is R = 2,
r = 1/2 for all inside `blocks.3`. Later entries win."""


@contextmanager
def policy(dynamic: fx.GraphModule, choices: Choices) -> Iterator[dict[str, Choice]]:
    """Let regions compute fixed choices inside the block, whatever their gates would decide.

    Holds for this thread only; blocks nest, the inner one wins; the network itself is not changed.

    Args:
        dynamic: a converted network, maybe inside a wrapper.
        choices: (R, r) by path pattern; a region that does not offer its choice takes the nearest one, one in which
            the choice does not pay (`autotune`) the full one.

    Yields:
        The choice of each region that a pattern names.

    Raises:
        ConvertError: a pattern matches no region, or `dynamic` holds none.
    """
    found = regions(converted("policy", dynamic))
    named = resolve_choices({path: region.grid for path, region in found.items()}, choices)
    taken = {path: found[path].gate.taken(choice) for path, choice in named.items()}
    with fixed_decisions({found[path].gate: found[path].grid.index(choice) for path, choice in taken.items()}):
        yield taken


@contextmanager
def full(dynamic: fx.GraphModule) -> Iterator[None]:
    """Let every region compute everything inside the block; otherwise like `policy`."""
    with policy(dynamic, {"*": FULL}):
        yield


def specialize(dynamic: fx.GraphModule, choices: Choices, *, share_weights: bool = True) -> fx.GraphModule:
    """Make the static network that computes fixed choices.

    Args:
        dynamic: a converted network; not changed.
        choices: as for `policy`; regions that no pattern names are computed in full.
        share_weights: False gives the result weights of its own, which do not follow those of `dynamic`.

    Returns:
        A GraphModule of plain operators without gates, which can be traced, exported and compiled again. Clips need
        more than one frame where some are skipped.

    Raises:
        ConvertError: a pattern matches no region, or `dynamic` holds none.
    """
    dynamic = converted("specialize", dynamic)
    grids = {path: region.grid for path, region in regions(dynamic).items()}
    static = fix_choices(dynamic, dict.fromkeys(grids, FULL) | resolve_choices(grids, choices))
    return static if share_weights else cast("fx.GraphModule", copy_model(static))


def unload(dynamic: fx.GraphModule) -> nn.Module:
    """Give back the original network: plain convolutions in place of the regions, no gates.

    Args:
        dynamic: a converted network; not changed.

    Returns:
        A network with weights of its own, those that `dynamic` has now. Parameters have the original's names:
        `model.load_state_dict(unload(dynamic).state_dict())` takes fine-tuned weights back into the original class.
        (It is of the original class already where torch.fx could not follow the network's own forward function.)

    Raises:
        ConvertError: `dynamic` holds no dynamic region, so that nothing of it can be undone.
    """
    original = cast("fx.GraphModule", copy_model(remove_gates(converted("unload", dynamic))))
    original.meta.pop(CONVERSION, None)
    vars(original).pop(CONVERSION, None)
    whole: nn.Module | None = original._modules.get(WHOLE)
    return original if whole is None else whole


def resolve_choices(grids: Mapping[str, ChoiceGrid], choices: Choices) -> dict[str, Choice]:
    """The choice of every region that a pattern names.

    Raises:
        ConvertError: a pattern matches none of the regions.
    """
    taken = {}
    for pattern, (stride, share) in choices.items():
        check_pattern("policy", pattern)
        paths = matching(pattern, grids)
        if not paths:
            raise no_match("policy", pattern, grids, "dynamic regions")
        for path in paths:
            taken[path] = grids[path].nearest((stride, share))
            if taken[path] != (stride, share):
                log.info("%s: R=%s r=%g is not offered, takes %s", path, stride, share, taken[path])
    return taken


def converted(where: str, dynamic: nn.Module) -> fx.GraphModule:
    """`dynamic` without its wrappers and outputs of decisions.

    Raises:
        ConvertError: it holds no dynamic region; the text begins with `where`.
    """
    network = unwrapped(dynamic)
    if isinstance(network, fx.GraphModule):
        network = without_decisions(network)
    if not isinstance(network, fx.GraphModule) or next(called_regions(network), None) is None:
        raise ConvertError(
            f"{where}: this {type(network).__name__} holds no dynamic region. Pass what convert or load returned; what "
            "was specialised has lost its gates."
        )
    return network
