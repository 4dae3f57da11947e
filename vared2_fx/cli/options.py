"""Options that several commands share, and what is made of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from vared2_fx.config import ConvertConfig
from vared2_fx.errors import Vared2Error

T = TypeVar("T")
_CONVERSION = "What is converted"
_WEIGHTS = "Weights"
_CLIPS = "Clips"

NetworkToConvert = Annotated[
    str,
    typer.Argument(
        metavar="NETWORK",
        help="A name that `vared2 zoo` lists, or `module:function` for a network of your own (the function is called "
        "without arguments and returns it).",
        show_default=False,
    ),
]
NetworkOrFolder = Annotated[
    str,
    typer.Argument(
        metavar="NETWORK",
        help="A folder that `vared2 convert` or `vared2 finetune` wrote, a name that `vared2 zoo` lists, or "
        "`module:function` for a network of your own (the function is called without arguments and returns it).",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to stdout.")]

Pretrained = Annotated[
    bool,
    typer.Option("--pretrained", help="The library's own weights, downloaded if need be.", rich_help_panel=_WEIGHTS),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Weights from this file: .safetensors, or what torch.save wrote of a state dict.",
        show_default=False,
        rich_help_panel=_WEIGHTS,
    ),
]
NumClasses = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Length of the network's answer, if not the usual.",
        show_default=False,
        rich_help_panel=_WEIGHTS,
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:FUNCTION",
        help="For a folder with a network of your own: what builds the original.",
        show_default=False,
        rich_help_panel=_WEIGHTS,
    ),
]

Include = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Convert only these layers: a path and all inside it (`blocks.3`), a shell pattern (`blocks.*.conv`), "
        "`re:` and a regular expression, or `type:` and a class name; may be repeated.",
        show_default=False,
        rich_help_panel=_CONVERSION,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Keep these layers static, named in the same ways; wins over --include; may be repeated.",
        show_default=False,
        rich_help_panel=_CONVERSION,
    ),
]
FrameStrides = Annotated[
    str,
    typer.Option(
        metavar="R,R,…",
        help="Choices along time: compute every R-th frame. Begins with 1.",
        rich_help_panel=_CONVERSION,
    ),
]
ChannelShares = Annotated[
    str,
    typer.Option(
        metavar="r,r,…",
        help="Choices of channels: compute this share of them. Begins with 1.",
        rich_help_panel=_CONVERSION,
    ),
]
Granularity = Annotated[
    str,
    typer.Option(
        metavar="KIND",
        help="What one decision covers: `conv`, every convolution has its own; `block`, residual branches and other "
        "runs of layers; `stage`, runs of blocks; `auto`, blocks or stages, whichever --engine runs faster.",
        rich_help_panel=_CONVERSION,
    ),
]
AutoEngine = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="ENGINE",
        help="With --granularity auto: whose times decide: torch, compile, onnx or openvino.",
        rich_help_panel=_CONVERSION,
    ),
]
Gate = Annotated[
    str,
    typer.Option(
        metavar="KIND",
        help="How a decision is taken: `softmax` and `gumbel` pick one choice, `soft_modulation` weighs all.",
        rich_help_panel=_CONVERSION,
    ),
]

TargetMacs = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE",
        help="Share of the original's multiply-adds to come down to, `60%` or 0.6; refused where no policy can.",
        show_default=False,
    ),
]

Frames = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Frames of a clip, if not the usual.", show_default=False, rich_help_panel=_CLIPS
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Height and width of a clip in pixels, if not the usual.",
        show_default=False,
        rich_help_panel=_CLIPS,
    ),
]
SamplingRate = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Distance between two frames of a clip, in frames of a video of 30 per second, or of what `vared2 zoo` "
        "says.",
        show_default=False,
        rich_help_panel=_CLIPS,
    ),
]
Classes = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="File with the class names in the network's order, one per line, or a JSON map from name to label. "
        "Otherwise the sorted folder names, or the labels of the CSV.",
        show_default=False,
        rich_help_panel=_CLIPS,
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, metavar="N", help="Clips in a batch.", rich_help_panel=_CLIPS)]
Workers = Annotated[
    int,
    typer.Option(
        min=0, metavar="N", help="Processes that decode videos; 0: decode in this one.", rich_help_panel=_CLIPS
    ),
]
Device = Annotated[
    str,
    typer.Option(metavar="DEVICE", help="Where to compute: cpu, cuda, cuda:1; auto takes an accelerator if there is."),
]

GATE = ConvertConfig().gate
GRANULARITY = ConvertConfig().granularity
ENGINE = ConvertConfig().engine
FRAME_STRIDES = ",".join(map(str, ConvertConfig().frame_strides))
CHANNEL_SHARES = ",".join(f"{share:g}" for share in ConvertConfig().channel_shares)


def convert_config(
    *,
    include: list[str] | None = None,
    exclude: list[str] | None = None,
    frame_strides: str = FRAME_STRIDES,
    channel_shares: str = CHANNEL_SHARES,
    gate: str = GATE,
    granularity: str = GRANULARITY,
    engine: str = ENGINE,
) -> ConvertConfig:
    """What the options ask for.

    Raises:
        Vared2Error: a list is malformed, or the config refuses a value.
    """
    return ConvertConfig(
        include=tuple(include) if include else ("*",),
        exclude=tuple(exclude or ()),
        frame_strides=_numbers("--frame-strides", frame_strides, int, "1,2,4"),
        channel_shares=_numbers("--channel-shares", channel_shares, float, "1,0.5"),
        gate=gate,  # type: ignore[arg-type]  # the config checks it
        granularity=granularity,  # type: ignore[arg-type]
        engine=engine,  # type: ignore[arg-type]
    )


def read_choices(text: str) -> dict[str, tuple[int, float]]:
    """`*=2,0.5;blocks.3=1,1` as `{"*": (2, 0.5), "blocks.3": (1, 1.0)}`.

    Raises:
        Vared2Error: it is malformed.
    """
    choices = {}
    for part in text.split(";"):
        pattern, _, numbers = part.rpartition("=")
        stride, _, share = numbers.partition(",")
        try:
            choices[pattern.strip()] = int(stride), float(share)
        except ValueError:
            pattern = ""
        if not pattern.strip():
            raise Vared2Error(f"--choices {text}: expected PATTERN=R,r with `;` between several, such as '*=2,1.0'.")
    return choices


def _numbers(option: str, text: str, kind: Callable[[str], T], example: str) -> tuple[T, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise Vared2Error(f"{option} {text}: expected numbers with commas between, such as {example}.") from None
