"""The command `demo`."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the clips, the network and the report.")] = Path("vared2_demo"),
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
) -> None:
    """Show the whole way on made-up clips: base network, conversion, fine-tuning, report.

    Takes some minutes on two cores and downloads nothing. The clips are scenes with a static, moving, zooming or
    shaking camera, encoded to real video files and decoded again; static ones end up cheapest.
    """
    from vared2_fx.demo import run_demo

    run_demo(out=out, seed=seed)
