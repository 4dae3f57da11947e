"""The forms of a report on the command line: what is printed, written and compared, and the exit code."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vared2_fx.cli.app import INTERRUPTED
from vared2_fx.cli.output import say, show, show_json, write_text
from vared2_fx.errors import Vared2Error
from vared2_fx.progress import waiting
from vared2_fx.report import CompressionReport, compare, merge, read_run
from vared2_fx.report.compare import check_conditions

FAILED = 3
"""Exit code where a condition of --fail-on holds."""
_FORMS = "Forms"

Markdown = Annotated[
    bool, typer.Option("--markdown", help="Print Markdown, for a pull request.", rich_help_panel=_FORMS)
]
Unfold = Annotated[
    bool, typer.Option("--unfold", help="Print a line for each layer, however many.", rich_help_panel=_FORMS)
]
Html = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write one HTML page.", rich_help_panel=_FORMS, show_default=False),
]
Csv = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write the layers as CSV.", rich_help_panel=_FORMS, show_default=False),
]
Plots = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Write plots (SVG) for papers.", rich_help_panel=_FORMS, show_default=False),
]
Against = Annotated[
    Path | None,
    typer.Option(
        metavar="OLD.json",
        help="Compare with an earlier report (--json).",
        rich_help_panel="Comparison",
        show_default=False,
    ),
]
FailOn = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CONDITION",
        help="With --against: exit with 3 if it holds, such as `macs>+2%`, `top1<-0.5%`, `time>+10%`; may be repeated.",
        rich_help_panel="Comparison",
        show_default=False,
    ),
]
From = Annotated[
    list[Path] | None,
    typer.Option(
        "--from",
        metavar="FILE.json",
        help="Measure nothing, read a report (--json); several, of parts of the data, are merged.",
        show_default=False,
    ),
]
RunFolder = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Show the training that `vared2 finetune --out DIR` logs.", show_default=False),
]


@dataclass(frozen=True, slots=True)
class Forms:
    """What is asked for."""

    json: bool
    markdown: bool
    unfold: bool
    html: Path | None
    csv: Path | None
    plots: Path | None
    against: Path | None
    fail_on: tuple[str, ...]

    def check(self) -> None:
        """Find what is wrong before anything takes long.

        Raises:
            Vared2Error: naming it.
        """
        if self.json and self.markdown:
            raise Vared2Error("--json and --markdown: give one of them.")
        for name in ("html", "csv"):
            path: Path | None = getattr(self, name)
            if path is not None and not path.parent.is_dir():
                raise Vared2Error(f"--{name} {path}: there is no folder {path.parent}.")
        if self.fail_on and self.against is None:
            raise Vared2Error("--fail-on: say with --against what to compare with.")
        check_conditions(self.fail_on)
        if self.against is not None:
            read_report(self.against)

    def show(self, report: CompressionReport) -> None:
        """Print and write `report`, and what changed.

        Raises:
            Exit: with 130 where the report was interrupted, with 3 where a condition holds.
        """
        if self.csv is not None:
            write_text(self.csv, report.to_csv())
            say(f"wrote {self.csv}")
        if self.html is not None:
            report.to_html(self.html)
            say(f"wrote {self.html}")
        if self.plots is not None:
            with waiting("Drawing plots"):
                paths = report.save_plots(self.plots)
            for path in paths:
                say(f"wrote {path}")
        failures: tuple[str, ...] = ()
        if self.against is None:
            show(self._text(report))
        else:
            comparison = compare(read_report(self.against), report)
            show(report.to_json() if self.json else comparison.to_markdown() if self.markdown else str(comparison))
            failures = comparison.failures(self.fail_on)
        for failure in failures:
            say(f"fails on {failure}")
        if report.missing:
            say("vared2: interrupted; this is what was measured until then")
            raise typer.Exit(INTERRUPTED)
        if failures:
            raise typer.Exit(FAILED)

    def _text(self, report: CompressionReport) -> str:
        if self.json:
            return report.to_json()
        return report.to_markdown() if self.markdown else report.to_text(fold=False if self.unfold else None)


def read_report(path: Path) -> CompressionReport:
    """Read a report that was written as JSON.

    Raises:
        Vared2Error: it cannot be read, or is no report of this version.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "it is no text"
        raise Vared2Error(f"{path} cannot be read: {why}.") from exc
    try:
        return CompressionReport.from_json(text)
    except Vared2Error as exc:
        raise type(exc)(f"{path}: {exc}") from exc


def read_reports(paths: list[Path]) -> CompressionReport:
    """Read a report, or merge several.

    Raises:
        Vared2Error: one cannot be read, or they do not fit together.
    """
    reports = [read_report(path) for path in paths]
    return reports[0] if len(reports) == 1 else merge(reports)


def show_run(folder: Path, forms: Forms) -> None:
    """Print, or write, the epochs of a training.

    Raises:
        Vared2Error: there is no log, or a form that a training has not was asked for.
    """
    for name in ("markdown", "unfold", "csv", "plots", "against"):
        if getattr(forms, name):
            raise Vared2Error(f"--{name} does not go with --run, which takes --html and --json.")
    found = read_run(folder)
    if forms.html is not None:
        found.to_html(forms.html)
        say(f"wrote {forms.html}")
    if forms.json:
        show_json(found.to_document())
    else:
        show(str(found))
