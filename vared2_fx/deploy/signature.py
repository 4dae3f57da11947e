"""What a deployed network takes and gives: shapes with their free axes, dtypes, how tensors lie in lists.

N clips, C channels, T frames, H height, W width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from vared2_fx.errors import DeployError
from vared2_fx.passes.nesting import Nesting, nesting_of, taken_apart
from vared2_fx.tables import by


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """The sizes that one axis of an input may have."""

    size: int
    """That of the example."""
    min: int
    max: int | None
    """None: no upper end."""
    symbol: str
    """Axes with the same symbol have the same size; empty for a fixed axis."""

    def __str__(self) -> str:
        if self.min == self.max:
            return str(self.size)
        return f"{self.min}…{'' if self.max is None else self.max}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """One tensor that a network takes."""

    dtype: str
    """As torch names it, without `torch.`."""
    axes: tuple[Axis, ...]

    def __str__(self) -> str:
        return f"{'×'.join(map(str, self.axes))} {self.dtype}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """What a network takes and gives."""

    inputs: tuple[TensorSpec, ...]
    """In the order in which they lie in the arguments."""
    nesting: Nesting
    """How the inputs lie in lists, tuples and dicts; empty where each is an argument of its own."""
    output: Any
    """Likewise for the output: None for one tensor."""

    def __str__(self) -> str:
        return "; ".join(map(str, self.inputs))

    def flatten(self, args: tuple[Any, ...]) -> list[Tensor]:
        """The tensors in the arguments of a call, checked.

        Raises:
            DeployError: another number or nesting of arguments, another dtype, or a shape that does not fit.
        """
        tensors = list(self._tensors(args))
        if len(tensors) != len(self.inputs):
            raise DeployError(f"it takes {self._wanted()}; it was given {_described(args)}.")
        sizes: dict[str, int] = {}
        for number, (x, spec) in enumerate(zip(tensors, self.inputs, strict=True)):
            name = "its input" if len(self.inputs) == 1 else f"input {number}"
            _check_tensor(name, x, spec)
            for size, axis in zip(x.shape, spec.axes, strict=True):
                if axis.symbol and sizes.setdefault(axis.symbol, size) != size:
                    raise DeployError(
                        f"{name} has shape {by(x.shape)}; where others have {sizes[axis.symbol]}, it has {size}."
                    )
        return tensors

    def accepts(self, args: tuple[Any, ...]) -> bool:
        """Whether `flatten` would raise nothing."""
        try:
            self.flatten(args)
            return True
        except DeployError:
            return False

    def unflatten(self, tensors: Sequence[Tensor]) -> Any:
        """The output that these tensors are the parts of."""
        return _built(iter(tensors), self.output)

    def _tensors(self, args: tuple[Any, ...]) -> Iterator[Tensor]:
        nesting = nesting_of(args)
        if _as_lists(nesting) != _as_lists(self.nesting):
            raise DeployError(f"it takes {self._wanted()}; it was given {_described(args)}.")
        in_order = tuple(map(taken_apart, args, self.nesting)) if self.nesting else args  # dicts in any
        for leaf in tree_leaves(in_order):
            if not isinstance(leaf, Tensor):
                raise DeployError(f"it takes {self._wanted()}; it was given a {type(leaf).__name__}.")
            yield leaf

    def _wanted(self) -> str:
        shapes = ", ".join(map(str, self.inputs))
        return shapes if not self.nesting else f"({shapes}) nested as {self.nesting}"


def _check_tensor(name: str, x: Tensor, spec: TensorSpec) -> None:
    dtype = str(x.dtype).removeprefix("torch.")
    if dtype != spec.dtype:
        raise DeployError(f"{name} is {dtype}; it has to be {spec.dtype} (`x.to(torch.{spec.dtype})`).")
    if x.device.type != "cpu":
        raise DeployError(f"{name} is on {x.device}; deployed networks run on the processor (`x.cpu()`).")
    fits = x.dim() == len(spec.axes) and all(
        axis.min <= size and (axis.max is None or size <= axis.max)
        for size, axis in zip(x.shape, spec.axes, strict=False)
    )
    if not fits:
        raise DeployError(
            f"{name} has shape {by(x.shape)}; it takes {'×'.join(map(str, spec.axes))}. For another size deploy the "
            "network again, with example_inputs of that size."
        )


def _as_lists(nesting: Any) -> Any:
    """A nesting in which tuples are taken for lists, as networks take them."""
    if isinstance(nesting, dict):
        return {key: _as_lists(item) for key, item in nesting.items()}
    if isinstance(nesting, (list, tuple)):
        return ["list" if item == "tuple" else _as_lists(item) for item in nesting]
    return nesting


def _described(args: tuple[Any, ...]) -> str:
    shapes = [by(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in tree_leaves(args)]
    return f"{len(args)} argument{'' if len(args) == 1 else 's'} ({', '.join(shapes)})"


def _built(tensors: Iterator[Tensor], nested: Any) -> Any:
    if nested is None:
        return next(tensors)
    kind, *items = nested
    if kind == "dict":
        return {key: _built(tensors, item) for key, item in items[0].items()}
    parts = [_built(tensors, item) for item in items]
    return tuple(parts) if kind == "tuple" else parts
