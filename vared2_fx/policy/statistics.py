"""What decisions mean in multiply-adds: what was computed, and what may be expected.

N clips; J frame strides, I channel shares of a region.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, fx, nn

from vared2_fx.layers import FULL, Decision
from vared2_fx.passes.nesting import nesting_of
from vared2_fx.passes.rewrite import regions
from vared2_fx.passes.shapes import Inputs, as_args, clips_of, measure_shapes, total_macs
from vared2_fx.passes.trace import fork, trace
from vared2_fx.policy.fix import specialize


def computed_choices(decision: Decision) -> Tensor:
    """What evaluation computes for each clip: int64 (N, 2), the index of the stride and of the share.

    A decision that weighs several choices needs the finest stride and the largest share among them.
    """
    num_strides = decision.macs.shape[0]
    weighed = (decision.weights > 0).to(torch.uint8)
    return torch.stack([weighed[:, :num_strides].argmax(1), weighed[:, num_strides:].argmax(1)], dim=1)


def computed_macs(decision: Decision) -> Tensor:
    """Multiply-adds that evaluation runs in one region: int64 (N,), cheap operations and the gate counted."""
    j, i = computed_choices(decision).unbind(1)
    return decision.macs[j, i] + decision.gate_macs


def expected_macs(decision: Decision) -> Tensor:
    """Weighted mean over the choices: float (N,), gate counted, differentiable with respect to the weights.

    For one-hot weights this is `computed_macs`; weights that do not sum to one are made to.
    """
    num_strides = decision.macs.shape[0]
    strides, shares = decision.weights[:, :num_strides], decision.weights[:, num_strides:]
    precise = torch.promote_types(decision.weights.dtype, torch.float32)  # a half cannot hold multiply-adds
    strides, shares = ((w / w.sum(1, keepdim=True)).to(precise) for w in (strides, shares))
    table = decision.macs.to(precise)  # no einsum: autocast would make halves of it again
    return (strides[:, :, None] * shares[:, None, :] * table).sum((1, 2)) + decision.gate_macs


def entropy_bits(counts: Iterable[int]) -> float:
    """Entropy of a histogram, in bits; of an empty one 0."""
    known = [count for count in counts if count]
    return max(0.0, -sum(n / sum(known) * math.log2(n / sum(known)) for n in known))


def dense_macs(model: nn.Module, example_inputs: Inputs) -> int:
    """Multiply-adds per clip of a network; of a converted one with every region in full and no gate.

    Args:
        model: any network that can be traced.
        example_inputs: a clip batch, for its shape.

    Raises:
        ConvertError: the network cannot be traced or does not run on these inputs.
    """
    if isinstance(model, fx.GraphModule) and regions(model):
        static = fork(specialize(model, {"*": FULL}))
    else:
        static = trace(model, nesting_of(as_args(example_inputs)))
    return total_macs(measure_shapes(static, example_inputs)) // len(clips_of(example_inputs))


def clip_macs(decisions: Mapping[str, Decision], dense: int) -> Tensor:
    """Multiply-adds that evaluation runs for each clip in the whole network, all overhead counted: int64 (N,).

    Args:
        decisions: what `with_decisions` returned for the batch; none for a static network, whose clips cost `dense`.
        dense: `dense_macs` at the batch's clip shape.
    """
    if not decisions:
        return torch.tensor([dense])
    extra = torch.stack([computed_macs(decision) - decision.macs[0, 0] for decision in decisions.values()])
    return dense + extra.sum(0)
