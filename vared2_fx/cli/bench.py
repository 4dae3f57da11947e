"""The command `bench`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer

from vared2_fx.cli.inputs import example_inputs
from vared2_fx.cli.networks import Network, open_network
from vared2_fx.cli.options import (
    GRANULARITY,
    Base,
    Exclude,
    Frames,
    Granularity,
    Include,
    Json,
    NetworkOrFolder,
    NumClasses,
    Pretrained,
    Size,
    Weights,
    convert_config,
    read_choices,
)
from vared2_fx.cli.output import say, show
from vared2_fx.convert import conversion, convert
from vared2_fx.deploy.bench import bench as measure
from vared2_fx.errors import Vared2Error
from vared2_fx.policy.fix import Choices, specialize, unload


def bench(
    network: NetworkOrFolder,
    choices: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=R,r",
            help="Measure this static variant, too: every R-th frame, a share r of the channels, in the layers that "
            "the pattern names, `*=2,1` or, with `;` between, `blocks.3=4,0.5;blocks.4=2,1`; may be repeated.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(metavar="NAME", help="What runs it: torch, compile, onnx or openvino.")
    ] = "torch",
    precision: Annotated[str, typer.Option(metavar="KIND", help="What it computes in: fp32 or bf16.")] = "fp32",
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Clips in a call.")] = 1,
    threads: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Threads of a call; by default torch's number.", show_default=False),
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, metavar="N", help="How often each is timed.")] = 10,
    include: Include = None,
    exclude: Exclude = None,
    granularity: Granularity = GRANULARITY,
    pretrained: Pretrained = False,
    weights: Weights = None,
    num_classes: NumClasses = None,
    base: Base = None,
    frames: Frames = None,
    size: Size = None,
    json: Json = False,
) -> None:
    """Measure a network and static variants of it in an engine, in turns.

    Each variant is compared with the network itself in the same engine, prepared the same way. Clips are made up:
    what is computed of a static network does not depend on them.

    Examples:
    * `vared2 bench x3d_s`

    * `vared2 bench x3d_s --granularity stage --choices '*=2,1' --choices '*=4,1' --engine openvino`

    * `vared2 bench runs/x3d_s/best --choices '*=2,0.5' --engine onnx --json > bench.json`
    """
    read = {text: read_choices(text) for text in choices or ()}
    opened = open_network(network, pretrained=pretrained, weights=weights, num_classes=num_classes, base=base)
    if opened.converted is not None and (include or exclude or granularity != GRANULARITY):
        raise Vared2Error(
            f"{network} is converted already; --granularity, --include and --exclude say how to convert an original "
            "network. Leave them out."
        )
    inputs = example_inputs(opened, frames=frames, size=size)
    model = opened.model if opened.converted is None else unload(opened.converted)
    variants = {}
    if read:
        dynamic = opened.converted or _converted(opened, inputs, read, include, exclude, granularity, engine)
        variants = {text: specialize(dynamic, choice) for text, choice in read.items()}
    result = measure(
        model,
        variants,
        engine=engine,  # type: ignore[arg-type]  # checked there
        precision=precision,  # type: ignore[arg-type]
        example_inputs=inputs,
        batch_size=None if batch_size == 1 else batch_size,
        threads=threads,
        rounds=rounds,
    )
    if opened.converted is not None:
        result = replace(result, network=conversion(opened.converted).plan.network)
    show(result.to_json() if json else str(result))


def _converted(
    opened: Network,
    inputs: tuple[Any, ...] | None,
    choices: Mapping[str, Choices],
    include: list[str] | None,
    exclude: list[str] | None,
    granularity: str,
    engine: str,
) -> Any:
    """The network, converted so that it offers the choices."""
    strides = sorted({stride for taken in choices.values() for stride, _ in taken.values()} | {1})
    shares = sorted({share for taken in choices.values() for _, share in taken.values()} | {1.0}, reverse=True)
    say("converted on the spot, not fine-tuned: times are right, answers are not.")
    config = convert_config(
        include=include,
        exclude=exclude,
        frame_strides=",".join(map(str, strides)),
        channel_shares=",".join(map(str, shares)),
        granularity=granularity,
        engine=engine,
    )
    return convert(opened.model, inputs, config)
