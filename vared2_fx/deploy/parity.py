"""Whether what an engine computes is what the network computes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from vared2_fx.deploy.signature import Signature
from vared2_fx.errors import DeployError
from vared2_fx.modes import evaluating, unchanged
from vared2_fx.passes.check import largest_difference, other_batches, other_lengths
from vared2_fx.passes.deploy.pipeline import Precision

FLOAT32 = 1e-3
"""Largest difference allowed in fp32, as a share of the largest output value. Folding rounds every weight once more
and engines add up in other orders, 6e-8 each, which a hundred layers multiply. A weight that is wrong shows as
percents."""
BF16_FLOOR, BF16_CEILING, BF16_FACTOR = 2e-2, 0.3, 3.0
"""In bf16, whose rounding is 65536 times as coarse, what a network makes of it differs as much as networks do. So the
measure is torch's own autocast on the same inputs: three times
its distance from fp32 is allowed, at least the floor, never more than the ceiling."""

Args = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """How far a deployed network was from the one it was made of, in torch in fp32, when it was made."""

    difference: float
    """Largest, as a share of the largest output value, over all inputs tried."""
    tolerance: float
    """What was allowed."""
    shapes: tuple[str, ...]
    """Shapes of the inputs tried."""

    def __str__(self) -> str:
        return f"{self.difference:.1e} of the largest output, {self.tolerance:.1e} allowed, on {', '.join(self.shapes)}"


def compare(
    own: nn.Module,
    run: Callable[[Args], list[Tensor]],
    args: Args,
    output: Any,
    signature: Signature,
    precision: Precision,
    *,
    other_sizes: bool = True,
) -> Parity:
    """Run both on the example, and compare.

    Args:
        own: the network in float32; the caller's copy of it, as its mode changes for a while.
        run: the engine.
        args: the example.
        output: what the network gives for it.
        signature: what the engine takes.
        precision: in what it computes.
        other_sizes: also at another batch size and at another clip length, where both take these.

    Raises:
        DeployError: an output differs by more than is allowed, or in shape or number.
    """
    worst, allowed, shapes = 0.0, FLOAT32 if precision == "fp32" else BF16_FLOOR, []
    for inputs, before in _answers(own, args, output, signature, other_sizes):
        after = run(tree_map_only(Tensor, torch.clone, inputs))
        sizes = " ".join("×".join(map(str, x.shape)) for x in tree_leaves(inputs))
        if [x.shape for x in before] != [x.shape for x in after]:
            raise DeployError(
                f"deploy: on inputs of shape {sizes} the network gives {[tuple(x.shape) for x in before]}, the engine "
                f"{[tuple(x.shape) for x in after]}. Please report this network."
            )
        tolerance = FLOAT32 if precision == "fp32" else _bf16_tolerance(own, inputs, before)
        difference = _largest(before, after)
        if not difference <= tolerance:
            raise DeployError(
                f"deploy: on inputs of shape {sizes} the engine's output differs from the network's by "
                f"{difference:.2g} of its largest value, more than the {tolerance:.2g} that {precision} may. "
                + ("Try precision='fp32'." if precision == "bf16" else "Please report this network.")
            )
        worst, allowed = max(worst, difference), max(allowed, tolerance)
        shapes.append(sizes)
    return Parity(difference=worst, tolerance=allowed, shapes=tuple(shapes))


def _answers(
    own: nn.Module, args: Args, output: Any, signature: Signature, other_sizes: bool
) -> Iterator[tuple[Args, list[Tensor]]]:
    """Inputs to try, each with what the network itself gives for it."""
    yield args, _tensors(output)
    for others in (other_batches(args), other_lengths(args)) if other_sizes else ():
        for other in filter(signature.accepts, others):
            try:
                answer = _evaluate(own, other)
            except Exception:  # a size that the network itself refuses
                continue
            yield other, answer
            break


def _evaluate(own: nn.Module, args: Args) -> list[Tensor]:
    with unchanged(own), evaluating(own):
        return _tensors(own(*tree_map_only(Tensor, torch.clone, args)))


def _tensors(output: Any) -> list[Tensor]:
    return [x for x in tree_leaves(output) if isinstance(x, Tensor)]


def _bf16_tolerance(own: nn.Module, args: Args, before: list[Tensor]) -> float:
    try:
        with torch.autocast("cpu", torch.bfloat16):
            rounded = [x.float() for x in _evaluate(own, args)]
    except (RuntimeError, NotImplementedError):
        return BF16_FLOOR
    return min(BF16_CEILING, max(BF16_FLOOR, BF16_FACTOR * _largest(before, rounded)))


def _largest(before: list[Tensor], after: list[Tensor]) -> float:
    return max((largest_difference(a, b) for a, b in zip(before, after, strict=True)), default=0.0)
