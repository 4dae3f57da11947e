"""Numbers as text: tables that fit a terminal, and short forms of large numbers."""

import io
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table


def text_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "", width: int = 100) -> str:
    """Lay out `rows` under `columns` in at most `width` characters; columns that begin with `>` are right-aligned."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.lstrip(">"), justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in rows:
        table.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, markup=False, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def si(number: float) -> str:
    """A count with a metric prefix: 1234567 → `1.23 M`."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= factor:
            return f"{number / factor:.3g} {prefix}"
    return f"{number:.3g}"


def percent(share: float) -> str:
    """A share as `12.3 %`."""
    return f"{100 * share:.1f} %"


def by(sizes: Sequence[int]) -> str:
    """Sizes as `3×16×224×224`."""
    return "×".join(map(str, sizes))
