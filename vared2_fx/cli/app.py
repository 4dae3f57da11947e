"""The program `vared2`: its global options, and what becomes of errors.

Exit codes: 0 done; 1 something broke; 2 the user can mend it; 3 a report got worse than --fail-on allows; 4 some
videos could not be answered; 130 interrupted.
"""

import logging
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vared2_fx.cli.output import say, show
from vared2_fx.errors import Vared2Error

USER_ERROR, FAILURE, INTERRUPTED = 2, 1, 130


class ReportingGroup(TyperGroup):
    """Turns exceptions of a command into one message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that `ctx` names."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("vared2: interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except (typer.Abort, BrokenPipeError):
            raise
        except Exception as exc:
            if hasattr(exc, "exit_code") or ctx.params.get("debug"):  # typer's own have an exit code
                raise
            if isinstance(exc, Vared2Error):
                say(f"vared2: {exc}")
                raise typer.Exit(USER_ERROR) from exc
            say(
                f"vared2: {type(exc).__name__}: {exc}\nThis is not your mistake, or we should have said so better. "
                "`vared2 --debug …` shows where it happened; please report that."
            )
            raise typer.Exit(FAILURE) from exc


class _Saying(logging.Handler):
    """Says what the library logs."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def _show_version(wanted: bool) -> None:
    if wanted:
        import vared2_fx

        show(f"vared2_fx {vared2_fx.__version__}")
        raise typer.Exit


def vared2(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is being done, on stderr.")] = False,
) -> None:
    """Make a video network compute only the frames and channels that a clip needs.

    The usual way, with a network of the zoo and your own clips (a folder per class, or a CSV of `path,label`):

    * `vared2 zoo` — which networks there are

    * `vared2 scan x3d_s` — what would be converted, and what not and why

    * `vared2 finetune x3d_s --pretrained --train clips/train --val clips/val --out runs/x3d_s`

    * `vared2 report runs/x3d_s/best --data clips/val` — what each layer saves

    `vared2 demo` shows it all on made-up clips. `vared2 COMMAND --help` explains a command.
    """
    logger = logging.getLogger("vared2_fx")
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    if not any(isinstance(handler, _Saying) for handler in logger.handlers):
        logger.addHandler(_Saying())
