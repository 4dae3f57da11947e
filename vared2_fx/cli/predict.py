"""The command `predict`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from vared2_fx.cli.output import say, show
from vared2_fx.errors import Vared2Error
from vared2_fx.progress import track
from vared2_fx.runtime import SOME_UNREADABLE, Bundle, BundleError
from vared2_fx.runtime import predict as answers


def predict(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="A folder that `vared2 export` wrote.", show_default=False)
    ],
    videos: Annotated[
        list[Path],
        typer.Argument(metavar="VIDEO…", help="Video files, or folders with such.", show_default=False),
    ],
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Mean multiply-adds per clip, of the original's, such as 0.6; by default what the gates took.",
            show_default=False,
        ),
    ] = None,
    target_ms: Annotated[
        float | None,
        typer.Option(
            metavar="MS",
            help="Mean time per clip in the engine, by the times measured when it was exported.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Clips that are answered together.")] = 1,
    threads: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Threads of the engine; by default its own choice.", show_default=False),
    ] = None,
    readers: Annotated[int, typer.Option(min=1, metavar="N", help="Threads that decode videos.")] = 2,
) -> None:
    """Answer videos with an exported bundle: a line of JSON for each, while the next ones are decoded.

    A line has the class, its probability, the route that the clip took, its multiply-adds as a share of the original's
    and its time; `missing` counts frames of the clip that the file lacks or that are damaged. A video that cannot be
    read, or ends before its clip, gets a line that says why; the exit code then is 4.

    Example:
    * `vared2 predict bundle clips/*.mp4 --budget 0.5 > answers.jsonl`
    """
    paths = list(_files(videos))
    unread = 0
    try:
        opened = Bundle(bundle, threads=threads, max_batch=batch_size)
        lines = answers(opened, paths, budget=budget, target_ms=target_ms, batch=batch_size, readers=readers)
        for line in track(lines, "videos", total=len(paths)):
            show(json.dumps(line))
            unread += "error" in line
    except BundleError as exc:
        raise Vared2Error(str(exc)) from exc
    if unread:
        say(f"vared2: {unread} of {len(paths)} videos could not be answered; their lines say why.")
        raise typer.Exit(SOME_UNREADABLE)


def _files(given: list[Path]) -> Iterator[Path]:
    """The files themselves, and all videos in the folders.

    Raises:
        DataError: a folder has none.
    """
    from vared2_fx.data import list_unlabelled

    for path in given:
        if path.is_dir():
            yield from (Path(file) for file, _ in list_unlabelled(path).videos)
        else:
            yield path
