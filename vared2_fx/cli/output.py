"""Where words go: results to stdout, everything else to stderr, so that `--json` can be piped."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vared2_fx.errors import Vared2Error


def say(text: str) -> None:
    """Tell the person at the terminal something; no part of the result."""
    print(text, file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Print a result."""
    print(text, flush=True)


def show_json(document: Mapping[str, Any] | list[Any]) -> None:
    """Print a result for a machine."""
    show(json.dumps(document, indent=1, allow_nan=False))


def write_text(path: Path, text: str) -> None:
    """Write a result into a file.

    Raises:
        Vared2Error: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise Vared2Error(f"{path} cannot be written: {exc.strerror or exc}.") from exc
