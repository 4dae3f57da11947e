"""The command `finetune`."""

from dataclasses import asdict
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from vared2_fx.cli.evaluate import document
from vared2_fx.cli.finetune_inputs import (
    check_classes,
    check_device,
    check_knows,
    check_out,
    has_run,
    num_processes,
    open_for,
    process_number,
    read_listings,
    write_inputs,
)
from vared2_fx.cli.inputs import clip_config, example_inputs
from vared2_fx.cli.networks import place
from vared2_fx.cli.options import (
    CHANNEL_SHARES,
    ENGINE,
    FRAME_STRIDES,
    GATE,
    GRANULARITY,
    AutoEngine,
    Base,
    BatchSize,
    ChannelShares,
    Classes,
    Device,
    Exclude,
    Frames,
    FrameStrides,
    Gate,
    Granularity,
    Include,
    Json,
    NetworkOrFolder,
    Pretrained,
    SamplingRate,
    Size,
    Weights,
    Workers,
    convert_config,
)
from vared2_fx.cli.output import say, show, show_json
from vared2_fx.config import FinetuneConfig
from vared2_fx.convert import convert
from vared2_fx.policy.fix import unload

if TYPE_CHECKING:
    pass

_DEFAULT = FinetuneConfig()
_TRAINING = "Training"


class MixedPrecision(str, Enum):
    """As `FinetuneConfig.mixed_precision`."""

    NO = "no"
    BF16 = "bf16"
    FP16 = "fp16"


class Schedule(str, Enum):
    """As `FinetuneConfig.schedule`."""

    JOINT = "joint"
    VARIANTS_FIRST = "variants_first"


def _option(help: str, **more: Any) -> Any:
    return typer.Option(help=help, rich_help_panel=_TRAINING, **more)


def finetune(
    network: NetworkOrFolder,
    train: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="Videos: a folder per class, or a list of `path,label`, `path label` or Kinetics' own.",
            show_default=False,
        ),
    ],
    val: Annotated[
        Path,
        typer.Option(metavar="PATH", help="Others, to choose the best epoch with.", show_default=False),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="For best/ (the network), last/ (everything needed to go on) and log.jsonl.",
            show_default=False,
        ),
    ],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    target_macs: Annotated[
        str | None,
        _option(
            "Share of the original's multiply-adds to come down to; `60%` or 0.6 saves 40 %; refused where no policy "
            "can. Otherwise as low as --efficiency-weight pushes.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[int, _option("Passes over the training clips.")] = _DEFAULT.epochs,
    lr: Annotated[float, _option("Learning rate of the network's own weights and of cheap operations.")] = _DEFAULT.lr,
    gate_lr: Annotated[float, _option("Learning rate of gates, in the joint schedule.")] = _DEFAULT.gate_lr,
    weight_decay: Annotated[float, _option("For weight matrices and kernels.")] = _DEFAULT.weight_decay,
    schedule: Annotated[
        Schedule, _option("Weights and gates together, or first the weights and then, on --val, the gates.")
    ] = Schedule.JOINT,
    optimizer: Annotated[str, _option("Any that timm knows by name.")] = _DEFAULT.optimizer,
    warmup_epochs: Annotated[float, _option("Epochs over which learning rates rise.")] = _DEFAULT.warmup_epochs,
    label_smoothing: Annotated[float, _option("Of the cross-entropy.", min=0, max=1)] = _DEFAULT.label_smoothing,
    labels: Annotated[
        bool,
        _option(
            "Without: videos in any folders, or the first column of a CSV, and the network's own answers, as it came, "
            "in place of labels; distillation alone."
        ),
    ] = True,
    distill_weight: Annotated[
        float, _option("Weight of agreeing with the network as it came, beside being right; 1 is usual.")
    ] = _DEFAULT.distill_weight,
    self_distill_weight: Annotated[
        float, _option("With variants_first: weight of agreeing with the full choice, which learns in every batch.")
    ] = _DEFAULT.self_distill_weight,
    feature_distill_weight: Annotated[
        float, _option("Of either: weight of seeing what it sees before its last layer, beside its scores.")
    ] = _DEFAULT.feature_distill_weight,
    distill_temperature: Annotated[
        float, _option("Softens both answers before they are compared.")
    ] = _DEFAULT.distill_temperature,
    efficiency_weight: Annotated[
        float, _option("λ, the weight of saving beside being right.")
    ] = _DEFAULT.efficiency_weight,
    efficiency_warmup: Annotated[
        float, _option("Share of all epochs over which λ rises from zero.")
    ] = _DEFAULT.efficiency_warmup,
    temperature: Annotated[
        tuple[float, float], _option("Of softmax and Gumbel gates, at the first and at the last step.")
    ] = _DEFAULT.temperature,
    own_share: Annotated[
        float, _option("With variants_first: share of the epochs, the last, under the fitted gates' own decisions.")
    ] = _DEFAULT.own_share,
    gate_loss_weight: Annotated[
        float, _option("With variants_first: what loss counts for gates beside multiply-adds; larger: less risk.")
    ] = _DEFAULT.gate_loss_weight,
    settle_gates: Annotated[
        bool, _option("With variants_first: believe gates only if they pay on videos that they did not learn from.")
    ] = _DEFAULT.settle_gates,
    calibrate: Annotated[
        bool,
        _option(
            "Before training, choose kept channels and set cheap operations by the first training clips. For a network "
            "whose gates are untrained."
        ),
    ] = False,
    freeze_norms: Annotated[
        bool, _option("Let batch norms keep the statistics that they came with.")
    ] = _DEFAULT.freeze_norms,
    mixup: Annotated[float, _option("Blend clips and labels; 0.2 is usual, 0: not.")] = _DEFAULT.mixup,
    ema_decay: Annotated[
        float, _option("Keep a moving average of the weights; 0.999 is usual, 0: not.")
    ] = _DEFAULT.ema_decay,
    tensorboard: Annotated[
        bool, _option("Write for TensorBoard as well, into --out/tensorboard.")
    ] = _DEFAULT.tensorboard,
    clip_grad: Annotated[float, _option("Largest norm of the gradient; 0: any.")] = _DEFAULT.clip_grad,
    accumulate: Annotated[int, _option("Batches for one update.")] = _DEFAULT.accumulate,
    gradient_checkpointing: Annotated[
        bool, _option("Less memory, for a second forward pass of each region.")
    ] = _DEFAULT.gradient_checkpointing,
    patience: Annotated[int, _option("End after so many epochs without a better one; 0: never.")] = _DEFAULT.patience,
    mixed_precision: Annotated[MixedPrecision, _option("Autocast.")] = MixedPrecision.NO,
    seed: Annotated[int, _option("Of everything random.")] = _DEFAULT.seed,
    device: Device = "auto",
    pretrained: Pretrained = False,
    weights: Weights = None,
    base: Base = None,
    include: Include = None,
    exclude: Exclude = None,
    frame_strides: FrameStrides = FRAME_STRIDES,
    channel_shares: ChannelShares = CHANNEL_SHARES,
    gate: Gate = GATE,
    granularity: Granularity = GRANULARITY,
    engine: AutoEngine = ENGINE,
    frames: Frames = None,
    size: Size = None,
    sampling_rate: SamplingRate = None,
    classes: Classes = None,
    flip: Annotated[
        bool,
        typer.Option("--flip/--no-flip", help="Mirror half of the training clips.", rich_help_panel="Clips"),
    ] = True,
    batch_size: BatchSize = 8,
    workers: Workers = 2,
    json: Json = False,
) -> None:
    """Train a network to keep its answers while its gates learn what can be left out.

    A network of the zoo is converted first, and gets a last layer for the classes of --train where these are not as
    many as its own. The best epoch is what is saved: fewest errors plus λ times the multiply-adds, on --val, or the
    last one that is as good within the standard error.

    Examples:
    * `vared2 finetune x3d_s --pretrained --train clips/train --val clips/val --out runs/x3d_s --target-macs 0.6`

    * `vared2 finetune runs/converted --train train.csv --val val.csv --out runs/x3d_s --epochs 20`

    * the same line with `--resume`, after it was interrupted
    """
    config = FinetuneConfig(
        epochs=epochs,
        schedule=schedule.value,
        optimizer=optimizer,
        lr=lr,
        gate_lr=gate_lr,
        weight_decay=weight_decay,
        warmup_epochs=warmup_epochs,
        label_smoothing=label_smoothing,
        distill_weight=distill_weight if labels or distill_weight else 1.0,
        self_distill_weight=self_distill_weight,
        feature_distill_weight=feature_distill_weight,
        distill_temperature=distill_temperature,
        efficiency_weight=efficiency_weight,
        efficiency_warmup=efficiency_warmup,
        target_macs=target_macs,
        temperature=temperature,
        own_share=own_share,
        gate_loss_weight=gate_loss_weight,
        settle_gates=settle_gates,
        freeze_norms=freeze_norms,
        mixup=mixup,
        ema_decay=ema_decay,
        tensorboard=tensorboard,
        clip_grad=clip_grad,
        accumulate=accumulate,
        gradient_checkpointing=gradient_checkpointing,
        patience=patience,
        mixed_precision=mixed_precision.value,
        seed=seed,
        out=str(out),
        resume=resume,
        progress=process_number() == 0,
    )
    conversion_config = convert_config(
        include=include,
        exclude=exclude,
        frame_strides=frame_strides,
        channel_shares=channel_shares,
        gate=gate,
        granularity=granularity,
        engine=engine,
    )
    check_out(out, resume)
    check_device(device)
    from vared2_fx.calibration import calibrate as calibrate_network
    from vared2_fx.data import make_loader
    from vared2_fx.train import finetune as train_network

    listing, val_listing = read_listings(train, val, classes, labels=labels)
    torch.manual_seed(seed)  # of gates and of a new last layer, which start at random
    opened = open_for(network, len(listing.classes), pretrained=pretrained, weights=weights, base=base)
    check_knows(opened, network, len(listing.classes), distilled=config.distill_weight > 0)
    if labels:
        check_classes(opened, network, listing.classes)
    dynamic = opened.converted
    if dynamic is None:
        dynamic = convert(opened.model, example_inputs(opened, frames=frames, size=size), conversion_config)
    clips = clip_config(opened, frames=frames, size=size, sampling_rate=sampling_rate)
    load = partial(make_loader, config=clips, batch_size=batch_size, num_workers=workers, seed=seed)
    train_loader, val_loader = load(listing, training=True, flip=flip), load(val_listing)
    place(dynamic, device)
    original = None
    if calibrate and not has_run(out):  # a run that goes on has it behind it
        original = unload(dynamic) if config.distill_weight else None
        found = calibrate_network(dynamic, train_loader)
        if process_number() == 0:
            say(str(found))
    write_inputs(out / "best", clips, listing.classes if labels else None)
    try:
        result = train_network(dynamic, train_loader, val_loader, config, original=original)
    except KeyboardInterrupt:
        say(f"What was finished is in {out}; the same line with --resume goes on from there.")
        raise
    if process_number() > 0:
        return  # the first one speaks for all
    for alarm in result.alarms:
        say(f"alarm: {alarm}")
    read = str(train_loader.log)
    if num_processes() > 1:  # each of which went through a part, by a loader of accelerate's
        read = f"{sum(epoch.num_failed for epoch in result.history)} failed in {len(result.history) - 1} epochs"
    say(f"training clips: {read}\nvalidation clips: {val_loader.log}")
    if json:
        show_json({"folder": str(out / "best"), "best_epoch": result.best_epoch, **_document(result)})
        return
    show(
        f"Best is epoch {result.best_epoch} of {epochs}: {result.evaluation}\n"
        f"Saved {out / 'best'}. Next: vared2 report {out / 'best'} --data {val}"
    )


def _document(result: Any) -> dict[str, Any]:
    return {
        **document(result.evaluation),
        "alarms": result.alarms,
        "history": [asdict(epoch) for epoch in result.history],
    }
