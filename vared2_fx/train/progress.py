"""The progress bar of fine-tuning."""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vared2_fx.tables import percent


class TrainingBar:
    """Steps done, time left, and the epoch's loss, accuracy and multiply-adds; on stderr when that is a terminal."""

    def __init__(self, enabled: bool, num_steps: int) -> None:
        """Show `num_steps` steps."""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not enabled or not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("fine-tuning", total=num_steps)

    def __enter__(self) -> "TrainingBar":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, epoch: int, epochs: int, loss: float, accuracy: float, share: float) -> None:
        """One step further; the numbers are the epoch's so far."""
        text = f"epoch {epoch}/{epochs}  loss {loss:.3f}  top-1 {percent(accuracy)}  MACs {percent(share)}"
        self._progress.update(self._task, advance=1, description=text)
