"""A deployed network: called like the network that it was made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vared2_fx.config import EngineName
from vared2_fx.deploy.engines import Engine
from vared2_fx.deploy.parity import Parity
from vared2_fx.deploy.signature import Signature
from vared2_fx.errors import DeployError
from vared2_fx.passes.deploy.pipeline import Precision


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """A network in an engine: `deployed(clips)`, from as many threads as one likes.

    Made by `deploy` and `load_deployed`.
    """

    engine: Engine
    """Runs it."""
    network: str
    """Class of the network that it was made of."""
    signature: Signature
    """What it takes and gives."""
    parity: Parity
    """How near to the network's its output was when it was made."""
    notes: tuple[str, ...] = ()
    """What a user should know: sizes that are fixed, how the engine computes."""

    def __call__(self, *args: Any) -> Any:
        """Answer as the network does, in evaluation mode; no gradients.

        Args:
            args: what the network takes: one tensor (N, C, T, H, W), a list of them, or several arguments.

        Returns:
            What the network gives: one tensor, or lists, tuples and dicts of them.

        Raises:
            DeployError: another number, dtype or shape of inputs than `signature` allows, or the engine refuses them.
        """
        try:
            tensors = self.signature.flatten(args)
        except DeployError as exc:
            raise DeployError(f"deployed {self.network}: {exc}") from None
        return self.signature.unflatten(self.run(tensors))

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Run the engine on the tensors of a call, unchecked.

        Raises:
            DeployError: the engine refuses them.
        """
        return run_engine(self.engine, self.network, tensors)

    @property
    def engine_name(self) -> EngineName:
        """One of "torch", "compile", "onnx", "openvino"."""
        return self.engine.name

    @property
    def precision(self) -> Precision:
        """In what it computes: "fp32" or "bf16"."""
        return self.engine.settings.precision

    @property
    def threads(self) -> int | None:
        """Threads of one call; None leaves that to the engine."""
        return self.engine.settings.threads

    def save(self, folder: str | Path) -> Path:
        """Write it into `folder`, for `load_deployed`.

        A process that is killed meanwhile, or a full disk, leaves what was saved there before.

        Args:
            folder: made if missing; an earlier save in it is replaced.

        Returns:
            The folder.

        Raises:
            DeployError: the folder cannot be written.
        """
        from vared2_fx.deploy.files import write  # not above: it makes such objects

        return write(self, Path(folder))

    def __str__(self) -> str:
        threads = "" if self.threads is None else f", {self.threads} thread{'s' * (self.threads != 1)}"
        lines = [
            f"{self.network} in {self.engine_name}, {self.precision}{threads}",
            f"takes: {self.signature}",
            f"differs from the network by {self.parity}",
            *(f"note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def run_engine(engine: Engine, network: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Run `engine`, which holds a network of the class `network`, on the tensors of a call.

    Raises:
        DeployError: the engine refuses them.
    """
    try:
        return engine.run(tensors)
    except DeployError:
        raise
    except Exception as exc:
        shapes = ", ".join("×".join(map(str, x.shape)) for x in tensors)
        raise DeployError(
            f"deployed {network}: engine {engine.name!r} fails on inputs of shape {shapes} "
            f"({type(exc).__name__}: {str(exc).strip()[:300]})."
        ) from exc
