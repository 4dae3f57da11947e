"""Commands that only look: `zoo` and `scan`."""

from dataclasses import asdict
from typing import Any

from vared2_fx import zoo as networks
from vared2_fx.cli.inputs import example_inputs
from vared2_fx.cli.networks import open_network
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
    Size,
    TargetMacs,
    convert_config,
)
from vared2_fx.cli.output import say, show, show_json
from vared2_fx.cli.report_forms import Html
from vared2_fx.config import read_target
from vared2_fx.convert import conversion
from vared2_fx.convert import scan as scan_network
from vared2_fx.passes.plan import Plan
from vared2_fx.passes.reach import check_target
from vared2_fx.report import scan_page
from vared2_fx.tables import text_table


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
    json: Json = False,
    html: Html = None,
) -> None:
    """Show what `convert` would do to a network, or has done, layer by layer. Changes and computes nothing.

    Also what is reachable: multiply-adds with everything computed, at the middle, and at the cheapest policy.

    Examples:
    * `vared2 scan x3d_s`

    * `vared2 scan x3d_s --target-macs 60%`  (is that within reach?)

    * `vared2 scan r3d_18 --exclude 'stem.*' --frame-strides 1,2`

    * `vared2 scan x3d_s --granularity stage --html scan.html`  (a page: where the multiply-adds are)

    * `vared2 scan mynets:build --frames 16 --size 112`  (the function `build` in mynets.py, here)
    """
    target = read_target("--target-macs", target_macs)
    opened = open_network(network, base=base)
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
    if html is not None:
        scan_page(plan, html)
        say(f"wrote {html}")
    if json:
        show_json(plan_document(plan))
    else:
        show(str(plan))


def plan_document(plan: Plan) -> dict[str, Any]:
    """A plan for JSON."""
    reach = None if plan.reach is None else asdict(plan.reach)
    return {"schema": "vared2_fx.plan", "version": 3, **asdict(plan), "reach": reach}
