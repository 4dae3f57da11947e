"""What torch.fx could not follow, and how a place in somebody's code is told from another."""

import dis
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from types import FrameType

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Untraced:
    """A module whose forward function torch.fx cannot follow: it stays one node, and runs its own code."""

    path: str
    """Empty for the network itself."""
    kind: str
    """Its class."""
    file: str
    """Where tracing stopped, as from the folder that Python imports it from."""
    line: int
    reason: str
    """What torch.fx said."""

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.path or 'the whole network'} ({self.kind}, {self.file}:{self.line}): {self.reason}"


def together(found: Iterable[Untraced]) -> list[str]:
    """One line for all of a kind that tracing stopped in at the same place."""
    same: dict[tuple[str, str, int, str], list[Untraced]] = {}
    for one in found:
        same.setdefault((one.kind, one.file, one.line, one.reason), []).append(one)
    return [f"{some[0]}{f' (and {len(some) - 1} more)' if some[1:] else ''}" for some in same.values()]


def where_it_stopped(module: nn.Module, path: str, exc: Exception) -> Untraced:
    """The innermost line of code that is not torch's or ours, on the way to `exc`."""
    code = type(module).forward.__code__ if hasattr(type(module).forward, "__code__") else where_it_stopped.__code__
    file, line = code.co_filename, code.co_firstlineno
    step = exc.__traceback__
    while step is not None:
        if not is_torchs(step.tb_frame) and not _is_ours(step.tb_frame):
            file, line = step.tb_frame.f_code.co_filename, step.tb_lineno
        step = step.tb_next
    roots = [os.path.abspath(root) + os.sep for root in sys.path if file.startswith(os.path.abspath(root) + os.sep)]
    reason = (str(exc).strip().splitlines() or [""])[0]
    return Untraced(
        path=path,
        kind=type(module).__name__,
        file=file.removeprefix(max(roots, key=len, default=os.path.dirname(file) + os.sep)).replace(os.sep, "/"),
        line=line,
        reason=f"{type(exc).__name__}: {reason}" if reason else type(exc).__name__,
    )


def is_torchs(frame: FrameType) -> bool:
    """Whether `frame` runs code of torch itself."""
    return frame.f_code.co_filename.startswith(os.path.dirname(torch.__file__) + os.sep)


def _is_ours(frame: FrameType) -> bool:
    return os.path.dirname(frame.f_code.co_filename) == os.path.dirname(__file__)


def is_assertion(frame: FrameType) -> bool:
    """Whether `frame` is about to raise an AssertionError should the value that it looks at be false."""
    steps = [step for step in dis.get_instructions(frame.f_code) if step.opname not in ("TO_BOOL", "CACHE")]
    for step, after in pairwise(steps):
        if step.offset >= frame.f_lasti:
            return "JUMP" in step.opname and step.opname.endswith("IF_TRUE") and _raises_assertion(after)
    return False


def _raises_assertion(step: dis.Instruction) -> bool:
    return step.opname == "LOAD_ASSERTION_ERROR" or (
        step.opname == "LOAD_COMMON_CONSTANT" and "AssertionError" in step.argrepr
    )
