"""The command `export`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from torch import fx

from vared2_fx.cli.inputs import check_data, clip_config
from vared2_fx.cli.networks import classes_file_of, open_network, place
from vared2_fx.cli.options import Base, BatchSize, Classes, Device, Frames, Json, SamplingRate, Size, Workers
from vared2_fx.cli.output import say, show, show_json
from vared2_fx.deploy.engines import BY_NAME, Settings
from vared2_fx.errors import Vared2Error
from vared2_fx.modes import evaluating
from vared2_fx.packing import packer
from vared2_fx.routes.bundle import check_folder, check_input
from vared2_fx.runtime import ENGINES

if TYPE_CHECKING:
    from vared2_fx.data import ClipConfig, VideoListing

_VIDEOS = "a folder per class, or a CSV of `path,label`."


def export(
    network: Annotated[
        str,
        typer.Argument(metavar="FOLDER", help="A network that `vared2 finetune` wrote.", show_default=False),
    ],
    train: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="Videos from which routes and router are learned, best such that the network was not trained on: "
            + _VIDEOS,
            show_default=False,
        ),
    ],
    val: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="Other videos, on which accuracy is measured along the multiply-adds: " + _VIDEOS,
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the bundle goes.", show_default=False)],
    joint: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Videos for a short fine-tuning of the routes under the router's decisions, and of the router after "
            "them; those that the network was fine-tuned on: " + _VIDEOS,
            show_default=False,
        ),
    ] = None,
    joint_epochs: Annotated[int, typer.Option(min=1, metavar="N", help="Passes over the videos of --joint.")] = 2,
    engine: Annotated[str, typer.Option(metavar="NAME", help="What will run it: onnx or openvino.")] = "onnx",
    routes: Annotated[int, typer.Option(min=2, metavar="K", help="Static networks, at most.")] = 4,
    threads: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Threads while it is measured here.", show_default=False),
    ] = None,
    base: Base = None,
    classes: Classes = None,
    frames: Frames = None,
    size: Size = None,
    sampling_rate: SamplingRate = None,
    labels: Annotated[
        bool,
        typer.Option(
            "--labels/--no-labels",
            help="Without: routes are to keep the full network's answer; paths name videos in any folder, or a CSV.",
            rich_help_panel="Clips",
        ),
    ] = True,
    batch_size: BatchSize = 8,
    workers: Workers = 0,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the router's weights and training.")] = 0,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Make of a fine-tuned network a bundle that runs without torch: a few static networks, and a router that picks.

    `python FOLDER/runtime.py FOLDER video.mp4` answers with numpy, PyAV and the engine; so does `vared2 predict`.

    Example:
    * `vared2 export runs/x3d_s/best --train clips/held_out --val clips/val --out bundle --engine openvino`
    """
    _check_options(engine, threads, {"--train": train, "--val": val, "--joint": joint}, out)
    opened = open_network(network, base=base)
    dynamic = opened.converted
    if dynamic is None:
        raise Vared2Error(f"{network} is not converted; fine-tune it first, and name the folder `best` of that run.")
    from vared2_fx.data import make_loader
    from vared2_fx.routes import deploy_routed, export_bundle, find_routes, finetune_routes, train_router

    paths = [train, val, *([] if joint is None else [joint])]
    listings, names = _listings(paths, classes or classes_file_of(network), labels=labels)
    config = clip_config(opened, frames=frames, size=size, sampling_rate=sampling_rate)
    _check_network(dynamic, network, config, names)
    place(dynamic, device)
    load = partial(make_loader, config=config, batch_size=batch_size, num_workers=workers)
    loaders = [load(listing) for listing in listings[:2]]
    found = find_routes(dynamic, loaders[0], num_routes=routes)
    say(f"{found}\n")
    routed = train_router(dynamic, found, *loaders, seed=seed)
    say(f"{routed}\n")
    if joint is not None:
        weights_loader = load(listings[2], training=True, seed=seed, flip=False)
        together = finetune_routes(dynamic, routed, weights_loader, *loaders, epochs=joint_epochs, seed=seed)
        say("fine-tuned together, no better: undone\n" if together is routed else f"fine-tuned together:\n{together}\n")
        routed = together
    deployed = deploy_routed(routed, engine, threads=threads)  # type: ignore[arg-type]  # checked above
    say(f"{deployed}\n")
    export_bundle(deployed, out, clip=config, classes=names)
    if json:
        points: list[dict[str, Any]] = [
            {"budget": p.share, "quality": p.quality, "ms": deployed.expected_ms(p)} for p in deployed.curve
        ]
        show_json({"folder": str(out), "engine": engine, "routes": list(deployed.shares), "curve": points})
        return
    show(f"Wrote {out}. Next: vared2 predict {out} VIDEO …, or, without torch: python {out}/runtime.py {out} VIDEO …")


def _check_options(engine: str, threads: int | None, data: dict[str, Path | None], out: Path) -> None:
    if engine not in ENGINES:
        raise Vared2Error(f"--engine {engine}: a bundle is for {' or '.join(ENGINES)}.")
    BY_NAME[engine].check(Settings(threads=threads))  # type: ignore[index]  # checked above
    for option, path in data.items():
        if path is not None:
            check_data(path, option)
    check_folder(out)


def _listings(paths: list[Path], classes: Path | None, *, labels: bool) -> tuple[list["VideoListing"], tuple[str, ...]]:
    """The videos at each path, with labels of the same classes or with none; and the names of the classes."""
    from vared2_fx.data import list_unlabelled, list_videos, read_classes

    if not labels:
        return [list_unlabelled(path) for path in paths], () if classes is None else read_classes(classes)
    first = list_videos(paths[0], classes=classes)
    return [first, *(list_videos(path, classes=first.classes) for path in paths[1:])], first.classes


def _check_network(dynamic: fx.GraphModule, network: str, config: "ClipConfig", classes: tuple[str, ...]) -> None:
    pack, shape = packer(dynamic), (3, config.frames, config.crop, config.crop)
    check_input(pack, shape)
    with evaluating(dynamic):
        scores = dynamic(*pack(torch.zeros(1, *shape))).shape[-1]
    if classes and scores != len(classes):
        raise Vared2Error(
            f"{network} answers with {scores} classes, but --train has {len(classes)}. Name the network's with "
            "--classes FILE."
        )
