"""Whether a converted network still computes what the original computed, and if not, from which node on.

N clips, T frames.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from vared2_fx.errors import ConvertError
from vared2_fx.modes import evaluating, unchanged
from vared2_fx.passes.leaves import WHOLE
from vared2_fx.passes.shapes import Inputs, as_args, clips_of

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Largest difference allowed, as a share of the largest output value. The same convolutions run on the same values,
so most networks agree to the bit; a library may still choose another kernel for another memory layout, and sums of
some thousand products differ then by a few roundings per layer."""


Args = tuple[Any, ...]


def check(original: nn.Module, converted: fx.GraphModule, example_inputs: Inputs) -> float:
    """Run both networks in evaluation mode and compare: on the inputs, at another batch size, at another clip length.

    The other sizes are cut from the inputs, or repeat them; a size that the original itself refuses is left out.

    Returns:
        The largest difference, as a share of the largest output value.

    Raises:
        ConvertError: the outputs differ by more than `TOLERANCE`, or in shape or kind; it names the first node whose
            value differs.
    """
    args = as_args(example_inputs)
    before = _evaluate(original, args)
    if any(tensor.is_meta for tensor in before):
        return 0.0  # no values that could differ
    worst = _compare(original, converted, args, before)
    for others in (other_batches(args), other_lengths(args)):
        for other in others:
            accepted = _evaluate_if_accepted(original, other)
            if accepted is not None:
                worst = max(worst, _compare(original, converted, other, accepted))
                break
    return worst


def _compare(original: nn.Module, converted: fx.GraphModule, args: Args, before: list[Tensor]) -> float:
    sizes = ", ".join(str(tuple(x.shape)) for x in tree_leaves(args) if isinstance(x, Tensor))
    try:
        after = _evaluate(converted, args)
    except Exception as exc:
        raise ConvertError(
            f"check: the original runs on inputs of shape {sizes}, the converted network does not "
            f"({type(exc).__name__}: {exc}). Keep layers out with ConvertConfig(exclude=…); please report it."
        ) from exc
    if len(before) != len(after) or any(a.shape != b.shape for a, b in zip(before, after, strict=False)):
        raise ConvertError(
            f"check: on inputs of shape {sizes} the original gives {[tuple(a.shape) for a in before]}, the converted "
            f"network {[tuple(b.shape) for b in after]}, {_first_difference(original, converted, args)}. "
            "Please report this network."
        )
    if [a.dtype for a in before] != [b.dtype for b in after]:
        raise ConvertError(
            f"check: the original gives {[a.dtype for a in before]}, the converted network {[b.dtype for b in after]}. "
            "Does its forward switch torch.autocast? A graph does not hold that."
        )
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        difference = largest_difference(a, b)
        worst = max(worst, difference)
        if not difference <= _tolerance(a):
            raise ConvertError(
                f"check: on inputs of shape {sizes} the converted network's output differs from the original's by "
                f"{difference:.2g} of its largest value, {_first_difference(original, converted, args)}. "
                "Keep layers out with ConvertConfig(exclude=…); please report it."
            )
    return worst


def other_batches(args: Args) -> Iterator[Args]:
    """One clip of several; one more where there is one, or where other arguments may point to each clip."""
    num_clips = len(clips_of(args))
    alone = all(x.dim() == 5 for x in tree_leaves(args) if isinstance(x, Tensor))

    def change(x: Tensor) -> Tensor:
        if x.dim() != 5 or len(x) != num_clips:
            return x
        return x[:1] if num_clips > 1 and alone else torch.cat([x, x[:1].flip(-1)])

    if num_clips:
        yield tree_map_only(Tensor, change, args)


def other_lengths(args: Args) -> Iterator[Args]:
    """Shorter ones, then, for networks that need all their frames, longer ones; each pathway in proportion."""
    lengths = {x.shape[2] for x in tree_leaves(args) if isinstance(x, Tensor) and x.dim() == 5}
    odd = 1 if len(lengths) == 1 else 0  # a length that no frame stride divides shows more

    def shorter(t: int) -> int:
        return t // 2 + odd

    def longer(t: int) -> int:
        return t + max(1, t // 2)

    def change(x: Tensor, length: Callable[[int], int]) -> Tensor:
        if x.dim() != 5:
            return x
        t = length(x.shape[2])
        return x[:, :, :t] if t <= x.shape[2] else torch.cat([x, x[:, :, : t - x.shape[2]]], dim=2)

    for length in (shorter, longer):
        if lengths and all(0 < length(t) != t for t in lengths):
            yield tree_map_only(Tensor, partial(change, length=length), args)


def _first_difference(original: nn.Module, converted: fx.GraphModule, args: Args) -> str:
    """Where, in the order in which the converted network runs, its values begin to be others."""
    expected = {(path, k): values for path, k, *values in _run_noted(original, args)}
    for path, k, x, y in _run_noted(converted, args):
        if (path, k) not in expected:
            continue
        right_x, right_y = expected[path, k]
        if _differ(right_x, x):
            return f"first in what `{path}` is given ({_made_by(converted, path)})"
        if _differ(right_y, y):
            return f"first in what `{path}` gives"
    return f"in its last steps ({_made_by(converted, None)})"


def _made_by(converted: fx.GraphModule, path: str | None) -> str:
    """The nodes whose values the module at `path`, or the output, is given."""
    nodes = [n for n in converted.graph.nodes if n.op == "output" if path is None]
    nodes = nodes or [n for n in converted.graph.nodes if n.op == "call_module" and n.target == path]
    names = ", ".join(f"`{source.name}`" for n in nodes for source in n.all_input_nodes)
    return f"node {names}" if names else "inside a module that is not followed"


def _run_noted(model: nn.Module, args: Args) -> list[tuple[str, int, Tensor | None, Tensor | None]]:
    """Every call of a part of `model`: path in the original, number of the call, first tensors given and returned."""
    calls: dict[str, int] = {}
    noted: list[tuple[str, int, Tensor | None, Tensor | None]] = []
    given: list[Tensor | None] = []

    def before(inputs: Any) -> None:
        given.append(_first_tensor(inputs))

    def after(path: str, output: Any) -> None:
        calls[path] = calls.get(path, 0) + 1
        noted.append((path, calls[path], given.pop(), _first_tensor(output)))

    hooks = []
    for name, part in model.named_modules():
        path = name.removeprefix(WHOLE).removeprefix(".")
        if not name or (name == WHOLE and not path):
            continue
        hooks.append(part.register_forward_pre_hook(lambda m, x, kwargs: before((x, kwargs)), with_kwargs=True))
        hooks.append(part.register_forward_hook(lambda m, x, y, path=path: after(path, y)))
    try:
        _evaluate(model, args)
    except Exception:  # also then what was noted until there is of use
        return noted
    finally:
        for hook in hooks:
            hook.remove()
    return noted


def _first_tensor(value: Any) -> Tensor | None:
    """A copy, since what follows may write into it."""
    return next((x.clone() for x in tree_leaves(value) if isinstance(x, Tensor)), None)


def _differ(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is not b
    return a.shape != b.shape or not largest_difference(a, b) <= _tolerance(a)


def _tolerance(tensor: Tensor) -> float:
    return TOLERANCE.get(tensor.dtype, 1e-4)


def largest_difference(a: Tensor, b: Tensor) -> float:
    """Largest |a − b| as a share of the largest finite |a|; an infinity or NaN in both is no difference."""
    a, b = a.detach().double(), b.detach().double()
    same = (a == b) | (a.isnan() & b.isnan())
    if bool(same.all()):
        return 0.0
    largest = a[a.isfinite()].abs().max() if a.isfinite().any() else a.new_zeros(())
    return float(((a - b).abs()[~same] / largest.clamp_min(1e-30)).max())


def _evaluate(model: nn.Module, args: Args) -> list[Tensor]:
    inputs = tree_map_only(Tensor, torch.clone, args)  # a network may write into its input; containers are new ones
    with unchanged(model), evaluating(model):
        return [leaf for leaf in tree_leaves(model(*inputs)) if isinstance(leaf, Tensor)]


def _evaluate_if_accepted(original: nn.Module, args: Args) -> list[Tensor] | None:
    try:
        return _evaluate(original, args)
    except Exception:
        return None
