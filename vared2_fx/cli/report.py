"""The command `report`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import fx
from torch.utils._pytree import tree_map_only

from vared2_fx.cli.inputs import check_data, clip_config, example_clip, example_inputs
from vared2_fx.cli.networks import Network, classes_file_of, num_classes_of, open_network, place
from vared2_fx.cli.options import (
    Base,
    BatchSize,
    Classes,
    Device,
    Frames,
    Json,
    NumClasses,
    Pretrained,
    SamplingRate,
    Size,
    Weights,
    Workers,
)
from vared2_fx.cli.report_forms import (
    Against,
    Csv,
    FailOn,
    Forms,
    From,
    Html,
    Markdown,
    Plots,
    RunFolder,
    Unfold,
    read_reports,
    show_run,
)
from vared2_fx.convert import conversion, convert
from vared2_fx.errors import Vared2Error
from vared2_fx.passes.shapes import Inputs
from vared2_fx.policy.autotune import autotune as tune
from vared2_fx.progress import waiting
from vared2_fx.report import report as make_report

MaybeNetwork = Annotated[
    str | None,
    typer.Argument(
        metavar="[NETWORK]",
        help="As for `vared2 scan`; left out with --from and --run.",
        show_default=False,
    ),
]
Videos = Annotated[
    list[Path] | None,
    typer.Option(
        "--video", metavar="FILE", help="Run on the middle of this video; may be repeated.", show_default=False
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Run on all of these videos: a folder per class, or a CSV of `path,label`.",
        show_default=False,
    ),
]


def report(
    network: MaybeNetwork = None,
    video: Videos = None,
    data: Data = None,
    json: Json = False,
    markdown: Markdown = False,
    unfold: Unfold = False,
    html: Html = None,
    csv: Csv = None,
    plots: Plots = None,
    timing: Annotated[bool, typer.Option("--timing/--no-timing", help="Measure times as well.")] = True,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Measure what each layer's cheapest choice costs alone; takes long.")
    ] = False,
    autotune: Annotated[
        bool,
        typer.Option(
            "--autotune",
            help="First time every choice (once on this machine); those slower than computing everything do that.",
        ),
    ] = False,
    against: Against = None,
    fail_on: FailOn = None,
    from_: From = None,
    run: RunFolder = None,
    pretrained: Pretrained = False,
    weights: Weights = None,
    num_classes: NumClasses = None,
    base: Base = None,
    frames: Frames = None,
    size: Size = None,
    sampling_rate: SamplingRate = None,
    classes: Classes = None,
    batch_size: BatchSize = 4,
    clips_per_video: Annotated[
        int, typer.Option(min=1, metavar="N", help="Clips from each video of --data.", rich_help_panel="Clips")
    ] = 1,
    workers: Workers = 0,
    device: Device = "auto",
) -> None:
    """Show what each layer of a converted network computes on your clips, and what that saves.

    Multiply-adds are counted, with all overhead; times are measured on this machine, the original and the dynamic
    form in turns. Without --video and --data a made-up clip is used. Ctrl-C keeps what was measured.

    Examples:
    * `vared2 report runs/x3d_s/best --data clips/val --html report.html`

    * `vared2 report runs/x3d_s/best --data clips/val --no-timing --json > report.json`

    * `vared2 report x3d_s --video holiday.mp4`  (converted on the spot: shows the network, saves nothing yet)

    * `vared2 report --from new.json --against old.json --fail-on 'macs>+2%'`  (exit code 3 if so)

    * `vared2 report --from part1.json --from part2.json`  (parts of the data become one report)

    * `vared2 report --run runs/x3d_s`  (accuracy, multiply-adds and gates over the epochs of a training)
    """
    forms = Forms(json, markdown, unfold, html, csv, plots, against, tuple(fail_on or ()))
    forms.check()
    if [network is not None, bool(from_), run is not None].count(True) != 1:
        raise Vared2Error("report: give one of NETWORK, --from and --run.")
    if run is not None:
        show_run(run, forms)
        return
    if from_:
        forms.show(read_reports(from_))
        return
    assert network is not None
    _check_paths(video or [], data)
    opened = open_network(network, pretrained=pretrained, weights=weights, num_classes=num_classes, base=base)
    notes = list(opened.notes)
    dynamic = opened.converted
    if dynamic is None:
        with waiting("Converting"):
            dynamic = convert(opened.model, example_inputs(opened, frames=frames, size=size))
        notes.append("converted on the spot and not fine-tuned: every gate still computes everything.")
    place(dynamic, device)
    if autotune:
        _autotune(dynamic, example_inputs(opened, frames=frames, size=size))
    clips: Iterable[Any]
    labels = False
    if video:
        clips = _video_clips(video, opened, frames, size, sampling_rate)
    elif data:
        config = clip_config(opened, frames=frames, size=size, sampling_rate=sampling_rate)
        names = classes or classes_file_of(network)
        from vared2_fx.data import make_loader

        clips = make_loader(
            data, config, batch_size=batch_size, num_workers=workers, clips_per_video=clips_per_video, classes=names
        )
        labels = _same_classes(opened, len(clips.listing.classes), notes)
    else:
        clips = _made_up(opened, frames, size, notes)
    forms.show(make_report(dynamic, clips, labels=labels, timing=timing, sensitivity=sensitivity, notes=notes))


def _autotune(dynamic: fx.GraphModule, inputs: Inputs | None) -> None:
    shape = conversion(dynamic).plan.input_shape
    if inputs is None and shape is None:
        raise Vared2Error("--autotune: the size of this network's clips is not known; give --frames and --size.")
    like = next(dynamic.parameters())
    args = torch.randn(shape or ()) if inputs is None else inputs
    tune(dynamic, tree_map_only(torch.Tensor, lambda x: x.to(like), args))


def _check_paths(videos: list[Path], data: Path | None) -> None:
    """Find what is missing before anything takes long.

    Raises:
        Vared2Error: naming it.
    """
    if videos and data:
        raise Vared2Error("--video and --data: give one of them.")
    for video in videos:
        if not video.is_file():
            raise Vared2Error(f"--video {video}: there is no such file.")
    if data is not None:
        check_data(data)


def _video_clips(
    videos: list[Path], network: Network, frames: int | None, size: int | None, sampling_rate: int | None
) -> Iterable[dict[str, Any]]:
    from vared2_fx.data import read_clip

    config = clip_config(network, frames=frames, size=size, sampling_rate=sampling_rate)
    for video in videos:  # one at a time: each may be large
        yield {"video": read_clip(video, config), "video_name": [str(video)]}


def _made_up(network: Network, frames: int | None, size: int | None, notes: list[str]) -> torch.Tensor:
    clip = example_clip(network, frames=frames, size=size)
    if clip is None and network.converted is not None:
        shape = conversion(network.converted).plan.input_shape
        clip = None if shape is None else torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if clip is None:
        raise Vared2Error(
            "report: give clips with --video or --data, or the size of a made-up one with --frames, --size."
        )
    notes.append("the clip is made up (noise): what gates decide on it says nothing; give --video or --data.")
    return clip


def _same_classes(network: Network, num_classes: int, notes: list[str]) -> bool:
    """Whether the data's labels can be compared with the network's answers."""
    known = num_classes_of(network)
    if known is not None and known != num_classes:
        notes.append(
            f"accuracy is left out: the data has {num_classes} classes, the network {known}. Name the network's with "
            "--classes if the data shows some of them."
        )
        return False
    return True
