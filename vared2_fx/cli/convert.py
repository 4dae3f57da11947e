"""The command `convert`."""

from pathlib import Path
from typing import Annotated

import typer

from vared2_fx import checkpoint
from vared2_fx.cli.inputs import example_inputs
from vared2_fx.cli.look import plan_document
from vared2_fx.cli.networks import kind_of, open_network
from vared2_fx.cli.options import (
    CHANNEL_SHARES,
    ENGINE,
    FRAME_STRIDES,
    GATE,
    GRANULARITY,
    AutoEngine,
    ChannelShares,
    Exclude,
    Frames,
    FrameStrides,
    Gate,
    Granularity,
    Include,
    Json,
    NetworkToConvert,
    NumClasses,
    Pretrained,
    Size,
    Weights,
    convert_config,
)
from vared2_fx.cli.output import say, show, show_json
from vared2_fx.convert import conversion
from vared2_fx.convert import convert as convert_network
from vared2_fx.errors import Vared2Error
from vared2_fx.tables import percent, si


def convert(
    network: NetworkToConvert,
    out: Annotated[Path, typer.Option(help="Folder to save the converted network in.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a network that is there already.")] = False,
    pretrained: Pretrained = False,
    weights: Weights = None,
    num_classes: NumClasses = None,
    include: Include = None,
    exclude: Exclude = None,
    frame_strides: FrameStrides = FRAME_STRIDES,
    channel_shares: ChannelShares = CHANNEL_SHARES,
    gate: Gate = GATE,
    granularity: Granularity = GRANULARITY,
    engine: AutoEngine = ENGINE,
    frames: Frames = None,
    size: Size = None,
    json: Json = False,
) -> None:
    """Convert a network and save it. It computes what the original computes, until it is fine-tuned.

    That is checked on a made-up clip where the clip's size is known.

    Examples:
    * `vared2 convert x3d_s --pretrained --out runs/x3d_s`

    * `vared2 convert r3d_18 --weights mine.pt --num-classes 12 --out runs/mine`

    * `vared2 convert mynets:build --frames 16 --size 112 --out runs/mine`
    """
    config = convert_config(
        include=include,
        exclude=exclude,
        frame_strides=frame_strides,
        channel_shares=channel_shares,
        gate=gate,
        granularity=granularity,
        engine=engine,
    )
    check_free(out, overwrite)
    if kind_of(network) == "folder":
        raise Vared2Error(f"{network} is converted already; name the original network.")
    opened = open_network(network, pretrained=pretrained, weights=weights, num_classes=num_classes)
    for note in opened.notes:
        say(f"note: {note}")
    dynamic = convert_network(opened.model, example_inputs(opened, frames=frames, size=size), config)
    checkpoint.save(dynamic, out)
    plan = conversion(dynamic).plan
    if json:
        show_json({"folder": str(out), "plan": plan_document(plan)})
        return
    share = sum(entry.macs or 0 for entry in plan.converted) / max(1, plan.macs or 0)
    known = f", which do {percent(share)} of its {si(plan.macs)}MACs" if plan.macs else ""
    show(
        f"Saved {out}: {plan.network} with {len(plan.regions)} dynamic regions{known}.\n"
        f"`vared2 scan` lists them. Next: vared2 finetune {out} --train … --val … --out …"
    )


def check_free(out: Path, overwrite: bool) -> None:
    """Keep a saved network from being replaced by mistake.

    Raises:
        Vared2Error: `out` holds one, and `overwrite` is off; or it is a file.
    """
    if out.exists() and not out.is_dir():
        raise Vared2Error(f"--out {out}: that is a file; give a folder.")
    if (out / checkpoint.CONFIG_FILE).exists() and not overwrite:
        raise Vared2Error(f"--out {out}: a network is saved there; take another folder, or --overwrite.")
