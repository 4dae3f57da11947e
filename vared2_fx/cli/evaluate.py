"""The command `evaluate`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vared2_fx.cli.inputs import check_data, clip_config
from vared2_fx.cli.networks import classes_file_of, num_classes_of, open_network, place
from vared2_fx.cli.options import (
    Base,
    BatchSize,
    Classes,
    Device,
    Frames,
    Json,
    NetworkOrFolder,
    NumClasses,
    Pretrained,
    SamplingRate,
    Size,
    Weights,
    Workers,
)
from vared2_fx.cli.output import say, show, show_json
from vared2_fx.errors import Vared2Error
from vared2_fx.tables import percent

if TYPE_CHECKING:
    from vared2_fx.train import Evaluation, Oracle

PERCENTILES = (5, 25, 50, 75, 95)
_CLIPS = "Clips"


def evaluate(
    network: NetworkOrFolder,
    data: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="Videos: a folder per class, or a list of `path,label`, `path label` or Kinetics' own.",
            show_default=False,
        ),
    ],
    clips_per_video: Annotated[
        int, typer.Option(min=1, metavar="K", help="Clips of each video, spread evenly.", rich_help_panel=_CLIPS)
    ] = 1,
    crops: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Crops of each clip, along the longer side.", rich_help_panel=_CLIPS),
    ] = 1,
    oracle: Annotated[
        bool,
        typer.Option(
            "--oracle",
            help="Also what gates could reach at best: each clip at the cheapest choice, in all regions alike, that is "
            "right for it. Takes a converted network, and a pass for each choice.",
        ),
    ] = False,
    pretrained: Pretrained = False,
    weights: Weights = None,
    num_classes: NumClasses = None,
    base: Base = None,
    frames: Frames = None,
    size: Size = None,
    sampling_rate: SamplingRate = None,
    classes: Classes = None,
    batch_size: BatchSize = 8,
    workers: Workers = 0,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Accuracy and multiply-adds of a network, converted or not, per clip and per video.

    A video's answer is the mean of its clips' probabilities, and it costs what all of them cost.

    Examples:
    * `vared2 evaluate runs/x3d_s/best --data clips/val`

    * `vared2 evaluate runs/x3d_s/best --data val.csv --clips-per-video 10 --crops 3`  (30 views, as papers have them)

    * `vared2 evaluate runs/x3d_s/best --data clips/val --oracle`  (are the gates near what they could reach?)
    """
    check_data(data)
    opened = open_network(network, pretrained=pretrained, weights=weights, num_classes=num_classes, base=base)
    for note in opened.notes:
        say(f"note: {note}")
    dynamic = opened.converted
    if oracle and dynamic is None:
        raise Vared2Error(
            f"--oracle: {network} is not converted and has nothing to choose; give a folder that `vared2 convert` or "
            "`vared2 finetune` wrote."
        )
    from vared2_fx.data import make_loader
    from vared2_fx.train import evaluate as evaluate_network
    from vared2_fx.train import oracle as ask_oracle

    loader = make_loader(
        data,
        clip_config(opened, frames=frames, size=size, sampling_rate=sampling_rate),
        batch_size=batch_size,
        num_workers=workers,
        clips_per_video=clips_per_video,
        crops_per_clip=crops,
        classes=classes or classes_file_of(network),
    )
    known, found = num_classes_of(opened), len(loader.listing.classes)
    if known is not None and known != found:
        raise Vared2Error(
            f"{network} answers with {known} classes, but --data has {found}. Name the network's with --classes FILE."
        )
    place(opened.model, device)
    evaluation = evaluate_network(opened.model, loader)
    say(f"clips: {loader.log}")
    asked = ask_oracle(dynamic, loader) if oracle and dynamic is not None else None
    if json:
        show_json(document(evaluation) | {"oracle": asked and _oracle_document(evaluation, asked)})
        return
    show(str(evaluation))
    if asked:
        show(f"\n{asked}\n{_from_oracle(evaluation, asked)}")


def document(evaluation: "Evaluation") -> dict[str, Any]:
    """An evaluation in numbers, as `--json` prints it."""
    videos = evaluation.videos
    of_videos = {
        "num_videos": len(videos),
        "views": max((video.views for video in videos), default=0),
        "accuracy": evaluation.video_accuracy,
        "top5": evaluation.video_top5,
        "mean_macs": evaluation.macs_per_video,
        "min_macs": min((video.macs for video in videos), default=0),
        "max_macs": max((video.macs for video in videos), default=0),
        "percentiles": {str(p): evaluation.video_percentile(p) for p in PERCENTILES},
    }
    return {
        "accuracy": evaluation.accuracy,
        "agreement": evaluation.agreement,
        "top5": evaluation.top5,
        "percentiles": {str(p): evaluation.percentile(p) for p in PERCENTILES},
        "by_class": {str(label): asdict(cost) for label, cost in evaluation.by_class().items()},
        "loss": evaluation.loss,
        "num_clips": len(evaluation.clips),
        "dense_macs": evaluation.dense_macs,
        "mean_macs": evaluation.mean_macs,
        "min_macs": evaluation.min_macs,
        "max_macs": evaluation.max_macs,
        "share": evaluation.share,
        "videos": of_videos if videos else None,
    }


def _from_oracle(evaluation: "Evaluation", oracle: "Oracle") -> str:
    accuracy, share = evaluation.accuracy - oracle.accuracy, evaluation.share - oracle.share
    return (
        f"gates: top-1 {percent(evaluation.accuracy)} at {percent(evaluation.share)} of the multiply-adds, "
        f"{100 * accuracy:+.1f} and {100 * share:+.1f} points from the oracle"
    )


def _oracle_document(evaluation: "Evaluation", oracle: "Oracle") -> dict[str, Any]:
    return {
        "accuracy": oracle.accuracy,
        "share": oracle.share,
        "accuracy_gap": evaluation.accuracy - oracle.accuracy,
        "share_gap": evaluation.share - oracle.share,
        "rungs": [asdict(rung) for rung in oracle.rungs],
    }
