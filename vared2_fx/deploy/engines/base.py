"""What every engine does: build from a program, run, write files, read them back."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from torch import Tensor
from typing_extensions import Self

from vared2_fx.config import EngineName
from vared2_fx.deploy.program import Program
from vared2_fx.errors import DeployError
from vared2_fx.passes.deploy.pipeline import Precision

NO_BF16 = "deploy: this processor has no bfloat16; take precision='fp32'."


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How an engine computes."""

    precision: Precision = "fp32"
    threads: int | None = None
    """Of one call; None leaves it to the engine."""


def check_threads(where: str, threads: int | None) -> None:
    """Refuse what is no number of threads.

    Raises:
        DeployError: with the name of the function that was called, `where`.
    """
    if threads is not None and (type(threads) is not int or threads < 1):
        raise DeployError(f"{where}: threads={threads!r}; it must be a number of at least 1, or None.")


class Engine(ABC):
    """Runs a program; safe to call from several threads."""

    name: EngineName
    packages: tuple[str, ...]
    """Whose versions a save notes."""

    def __init__(self, settings: Settings) -> None:
        """Compute as `settings` say."""
        self.settings = settings

    @classmethod
    @abstractmethod
    def check(cls, settings: Settings) -> None:
        """Look, before anything takes long, whether it can work.

        Raises:
            DeployError: a package is missing, or it cannot compute in that precision.
        """

    @classmethod
    @abstractmethod
    def build(cls, program: Program, settings: Settings) -> Self:
        """Take over a program."""

    @classmethod
    @abstractmethod
    def read(cls, files: Mapping[str, Path], settings: Settings) -> Self:
        """Read what `write` wrote; `files` are its files by the names that they had then."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write all that `read` needs into an empty folder."""

    @abstractmethod
    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """From the tensors of a call to those of its answer."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how it computes."""
        return ()


def need(package: str, extra: str) -> ModuleType:
    """Import a package of an optional extra.

    Raises:
        DeployError: it is not installed; the text says how to.
    """
    try:
        return importlib.import_module(package)
    except ImportError as exc:
        raise DeployError(
            f"deploy: engine {extra!r} needs {package}, which cannot be imported ({exc}): "
            f"pip install 'vared2_fx[{extra}]'"
        ) from exc
