"""A fine-tuning run as its log tells it: accuracy and multiply-adds over the epochs, layer by layer."""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vared2_fx.errors import ReportError
from vared2_fx.report.text import wrap
from vared2_fx.tables import percent, text_table
from vared2_fx.train.history import EpochLog, best_of

LOG_FILE = "log.jsonl"
_SHOWN = 8
"""Epochs that have a column in the table of layers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLog:
    """What `finetune` wrote of its epochs so far. `print` it."""

    folder: str
    epochs: tuple[EpochLog, ...]
    notes: tuple[str, ...]

    @property
    def best(self) -> EpochLog | None:
        """The epoch whose network is in `best/`; None where every objective is NaN."""
        known = [epoch for epoch in self.epochs if math.isfinite(epoch.objective)]
        return best_of(known) if known else None

    @property
    def paths(self) -> tuple[str, ...]:
        """Every region that the log knows, in the order in which they run."""
        return tuple(dict.fromkeys(path for epoch in self.epochs for path in epoch.layers))

    def to_document(self) -> dict[str, Any]:
        """The run for JSON; what is not finite is None."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items()}
            return None if isinstance(value, float) and not math.isfinite(value) else value

        epochs = [plain(asdict(epoch)) for epoch in self.epochs]
        return {"schema": "vared2_fx.run", "version": 1, "folder": self.folder, "notes": self.notes, "epochs": epochs}

    def to_html(self, path: str | Path | None = None) -> str:
        """The run as one HTML page, see `CompressionReport.to_html`; `path`: also write it there."""
        from vared2_fx.report.run_page import run_page

        return run_page(self, None if path is None else Path(path))

    def __str__(self) -> str:
        """An epoch a line, then the layers; at most 100 columns wide."""
        columns = (
            "epoch",
            ">train loss",
            ">train top-1",
            ">top-1",
            ">MACs",
            ">min",
            ">max",
            ">objective",
            ">seconds",
            "",
        )
        rows = [
            (
                str(epoch.epoch),
                f"{epoch.train_loss:.3f}",
                percent(epoch.train_accuracy),
                percent(epoch.accuracy),
                percent(epoch.share),
                percent(epoch.min_share),
                percent(epoch.max_share),
                f"{epoch.objective:.3f}",
                f"{epoch.seconds:.0f}",
                "best" if epoch is self.best else "",
            )
            for epoch in self.epochs
        ]
        lines = [f"{self.folder}: {len(self.epochs)} epochs", *(line for note in self.notes for line in wrap(note))]
        lines.append(text_table(columns, rows))
        if self.paths:
            lines += ["", self._layers()]
            lines += wrap(
                "Per epoch: multiply-adds computed, in % of the layer's own; entropy of its choices, in bits."
            )
        return "\n".join(lines)

    def _layers(self) -> str:
        step = max(1, math.ceil(len(self.epochs) / _SHOWN))
        shown = [epoch for n, epoch in enumerate(self.epochs) if n % step == 0 or epoch is self.epochs[-1]][-_SHOWN:]
        rows = [(path, *(_cell(epoch.layers.get(path)) for epoch in shown)) for path in self.paths]
        return text_table(("layer", *(f">{epoch.epoch}" for epoch in shown)), rows)


def _cell(layer: dict[str, float] | None) -> str:
    return "" if layer is None else f"{100 * layer['share']:.0f} {layer['entropy']:.1f}"


def read_run(folder: str | Path) -> RunLog:
    """Read the log of a run, finished or not.

    Args:
        folder: what `FinetuneConfig.out` named.

    Raises:
        ReportError: there is no log, or it is of another version.
    """
    path = Path(folder, LOG_FILE)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "it is no text"
        raise ReportError(
            f"report: no log of a run in {path} ({why}); `vared2 finetune --out DIR` writes one."
        ) from exc
    epochs, notes = [], []
    for number, line in enumerate(lines, start=1):
        try:
            epochs.append(_epoch(json.loads(line)))
        except (ValueError, TypeError, AttributeError) as exc:
            if number == len(lines) and epochs and isinstance(exc, json.JSONDecodeError):
                notes.append("The last line is not finished; it is left out.")
                break
            raise ReportError(
                f"report: {path}, line {number}: this is no epoch of a run of this release ({exc})."
            ) from exc
    if not epochs:
        raise ReportError(f"report: {path} is empty; no epoch is finished yet.")
    notes += [_diverged(epoch) for epoch in epochs if not math.isfinite(epoch.train_loss)]
    return RunLog(folder=str(folder), epochs=tuple(epochs), notes=tuple(notes))


def _diverged(epoch: EpochLog) -> str:
    return (
        f"The loss is {epoch.train_loss} in epoch {epoch.epoch}: training diverged. Lower lr and gate_lr, or train "
        "with mixed_precision='no'."
    )


def _epoch(document: Any) -> EpochLog:
    if not isinstance(document, dict):
        raise TypeError("a line is no object")
    known = {field.name: field for field in fields(EpochLog)}
    if unknown := document.keys() - known.keys():
        raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
    for name, value in document.items():
        if name == "layers":
            if not isinstance(value, dict) or any(layer.keys() != {"share", "entropy"} for layer in value.values()):
                raise TypeError("layers are no shares and entropies")
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} is {value!r:.40}")
    return EpochLog(**document)
