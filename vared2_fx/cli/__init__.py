"""The command line."""

import typer

from vared2_fx.cli.app import ReportingGroup, vared2
from vared2_fx.cli.bench import bench
from vared2_fx.cli.convert import convert
from vared2_fx.cli.demo import demo
from vared2_fx.cli.evaluate import evaluate
from vared2_fx.cli.export import export
from vared2_fx.cli.finetune import finetune
from vared2_fx.cli.look import scan, zoo
from vared2_fx.cli.predict import predict
from vared2_fx.cli.report import report

__all__ = ["app", "main"]


def _make_app() -> typer.Typer:
    program = typer.Typer(
        cls=ReportingGroup,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    program.callback()(vared2)
    for command in (zoo, scan, convert, finetune, evaluate, report, bench, export, predict, demo):
        program.command()(command)
    return program


app = _make_app()
"""The program with its commands."""


def main() -> None:
    """Run `vared2` with the arguments of this process."""
    app(prog_name="vared2")
