"""Whether a converted network still computes what the original computed."""

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from vared2_fx.errors import ConvertError
from vared2_fx.modes import evaluating, unchanged
from vared2_fx.passes.shapes import Inputs, as_args

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Largest difference allowed, as a share of the largest output value. The same convolutions run on the same values,
so most networks agree to the bit; a library may still choose another kernel for another memory layout, and sums of
some thousand products differ then by a few roundings per layer."""


def check(original: nn.Module, converted: fx.GraphModule, example_inputs: Inputs) -> float:
    """Run both networks in evaluation mode and compare.

    Returns:
        The largest difference, as a share of the largest output value.

    Raises:
        ConvertError: the outputs differ by more than `TOLERANCE`, or in shape or kind.
    """
    before = _evaluate(original, example_inputs)
    if any(tensor.is_meta for tensor in before):
        return 0.0  # no values that could differ
    after = _evaluate(converted, example_inputs)
    if len(before) != len(after) or any(a.shape != b.shape for a, b in zip(before, after, strict=False)):
        raise ConvertError(
            f"check: the original gives {[tuple(a.shape) for a in before]}, the converted network "
            f"{[tuple(b.shape) for b in after]}. Please report this network."
        )
    if [a.dtype for a in before] != [b.dtype for b in after]:
        raise ConvertError(
            f"check: the original gives {[a.dtype for a in before]}, the converted network {[b.dtype for b in after]}. "
            "Does its forward switch torch.autocast? A graph does not hold that."
        )
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        difference = _difference(a.double(), b.double())
        worst = max(worst, difference)
        if not difference <= TOLERANCE.get(a.dtype, 1e-4):
            raise ConvertError(
                f"check: the converted network's output differs from the original's by {difference:.2g} of its "
                "largest value. Keep layers out with ConvertConfig(exclude=…) to find the one; please report it."
            )
    return worst


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest |a − b| as a share of the largest finite |a|; an infinity or NaN in both is no difference."""
    same = (a == b) | (a.isnan() & b.isnan())
    if bool(same.all()):
        return 0.0
    largest = a[a.isfinite()].abs().max() if a.isfinite().any() else a.new_zeros(())
    return float(((a - b).abs()[~same] / largest.clamp_min(1e-30)).max())


def _evaluate(model: nn.Module, example_inputs: Inputs) -> list[Tensor]:
    inputs = tree_map_only(Tensor, torch.clone, as_args(example_inputs))  # a network may write into its input
    with unchanged(model), evaluating(model):
        return [leaf for leaf in tree_leaves(model(*inputs)) if isinstance(leaf, Tensor)]
