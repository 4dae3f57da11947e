"""Commands that only look: `zoo` and `scan`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vared2_fx import zoo as networks
from vared2_fx.cli.inputs import check_data, clip_config, example_inputs
from vared2_fx.cli.networks import Network, open_network
from vared2_fx.cli.options import (
    CHANNEL_SHARES,
    ENGINE,
    FRAME_STRIDES,
    GRANULARITY,
    AutoEngine,
    Base,
    ChannelShares,
    Exclude,
    Frames,
    FrameStrides,
    Granularity,
    Include,
    Json,
    NetworkOrFolder,
    Pretrained,
    Size,
    TargetMacs,
    Weights,
    convert_config,
)
from vared2_fx.cli.output import say, show, show_json
from vared2_fx.cli.report_forms import Html
from vared2_fx.config import read_target
from vared2_fx.convert import conversion
from vared2_fx.convert import scan as scan_network
from vared2_fx.passes.plan import Plan
from vared2_fx.passes.reach import check_target
from vared2_fx.progress import waiting
from vared2_fx.report import scan_page
from vared2_fx.tables import text_table

if TYPE_CHECKING:
    from vared2_fx.calibration import Redundancy


def zoo(json: Json = False) -> None:
    """List the networks that are known by name, and the clips that they expect.

    A clip has `frames` frames, `every` frames apart in a video of `fps` frames per second. The pretrained weights of
    pytorchvideo and torchvision know the classes of Kinetics-400.
    """
    specs = [networks.spec(name) for name in networks.names()]
    if json:
        show_json([asdict(spec) for spec in specs])
        return
    rows = [
        (
            spec.name,
            spec.library,
            str(spec.frames),
            f"{spec.crop}×{spec.crop}",
            str(spec.sampling_rate),
            f"{spec.fps:g}",
            f"{spec.frames * spec.sampling_rate / spec.fps:.1f}",
            str(spec.num_classes),
        )
        for spec in specs
    ]
    show(text_table(("name", "library", ">frames", ">pixels", ">every", ">fps", ">seconds", ">classes"), rows))


def scan(
    network: NetworkOrFolder,
    include: Include = None,
    exclude: Exclude = None,
    frame_strides: FrameStrides = FRAME_STRIDES,
    channel_shares: ChannelShares = CHANNEL_SHARES,
    granularity: Granularity = GRANULARITY,
    engine: AutoEngine = ENGINE,
    target_macs: TargetMacs = None,
    frames: Frames = None,
    size: Size = None,
    base: Base = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Also measure, on 64 of these videos, how well each layer's frames and channels are predicted from "
            "others: a folder, or a CSV whose first column names them.",
            show_default=False,
        ),
    ] = None,
    pretrained: Pretrained = False,
    weights: Weights = None,
    json: Json = False,
    html: Html = None,
) -> None:
    """Show what `convert` would do to a network, or has done, layer by layer. Changes nothing.

    Also what is reachable: multiply-adds with everything computed, at the middle, and at the cheapest policy.

    Examples:
    * `vared2 scan x3d_s`

    * `vared2 scan x3d_s --target-macs 60%`  (is that within reach?)

    * `vared2 scan r3d_18 --exclude 'stem.*' --frame-strides 1,2`

    * `vared2 scan x3d_s --granularity stage --html scan.html`  (a page: where the multiply-adds are)

    * `vared2 scan x3d_s --pretrained --data clips/val --html scan.html`  (and how redundant its maps are there)

    * `vared2 scan mynets:build --frames 16 --size 112`  (the function `build` in mynets.py, here)
    """
    target = read_target("--target-macs", target_macs)
    if data is not None:
        check_data(data)
    opened = open_network(network, pretrained=pretrained, weights=weights, base=base)
    if opened.converted is not None:
        say(f"{network} is converted already; this is how it was done.")
        plan = conversion(opened.converted).plan
    else:
        config = convert_config(
            include=include,
            exclude=exclude,
            frame_strides=frame_strides,
            channel_shares=channel_shares,
            granularity=granularity,
            engine=engine,
        )
        plan = scan_network(opened.model, example_inputs(opened, frames=frames, size=size), config)
    if target is not None:
        check_target("--target-macs", target, plan.reach)
    found = None if data is None else _redundancy(opened, data, frames, size)
    if html is not None:
        scan_page(plan, html, redundancy=found)
        say(f"wrote {html}")
    if json:
        show_json(plan_document(plan) | ({} if found is None else {"redundancy": asdict(found)}))
    else:
        show(str(plan) if found is None else f"{plan}\n\n{found}")


def _redundancy(opened: Network, data: Path, frames: int | None, size: int | None) -> "Redundancy":
    from vared2_fx.calibration import redundancy
    from vared2_fx.data import list_unlabelled, make_loader

    for note in opened.notes:
        say(note)
    config = clip_config(opened, frames=frames, size=size, sampling_rate=None)
    clips = make_loader(list_unlabelled(data), config, batch_size=4)
    with waiting("Measuring redundancy"):
        return redundancy(opened.converted or opened.model, clips)


def plan_document(plan: Plan) -> dict[str, Any]:
    """A plan for JSON."""
    reach = None if plan.reach is None else asdict(plan.reach)
    return {"schema": "vared2_fx.plan", "version": 4, **asdict(plan), "reach": reach}
