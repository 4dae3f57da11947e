"""What `finetune` is given, opened and checked before anything takes long."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vared2_fx.cli.networks import CLASSES_FILE, CLIP_FILE, Network, num_classes_of, open_network
from vared2_fx.cli.output import say, write_text
from vared2_fx.errors import Vared2Error

if TYPE_CHECKING:
    from vared2_fx.data import ClipConfig, VideoListing


def process_number() -> int:
    """This process among those that torchrun or accelerate launched, from 0."""
    return int(os.environ.get("RANK", "0"))


def num_processes() -> int:
    """How many of them there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def open_for(network: str, num_classes: int, *, pretrained: bool, weights: Path | None, base: str | None) -> Network:
    """The network; the zoo's with an answer for each class, where the data has other than its own."""
    from vared2_fx import zoo

    if network not in zoo.names():
        return open_network(network, pretrained=pretrained, weights=weights, base=base)
    if num_classes in (0, zoo.spec(network).num_classes):
        num_classes = zoo.spec(network).num_classes
    else:
        say(f"{network}: a last layer for the {num_classes} classes of the data.")
    return open_network(network, pretrained=pretrained, weights=weights, num_classes=num_classes, base=base)


def read_listings(
    train: Path, val: Path, classes: Path | None, *, labels: bool
) -> tuple["VideoListing", "VideoListing"]:
    """The videos of --train and --val, with labels of the same classes or with none."""
    from vared2_fx.data import list_unlabelled, list_videos

    if not labels:
        if classes is not None:
            raise Vared2Error("--classes names what labels mean, and --no-labels reads none; leave one of them out.")
        return list_unlabelled(train), list_unlabelled(val)
    listing = list_videos(train, classes=classes)
    return listing, list_videos(val, classes=listing.classes)


def check_knows(opened: Network, network: str, num_classes: int, *, distilled: bool) -> None:
    """Warn of random weights; refuse to learn from them."""
    new_layer = opened.converted is None and opened.spec is not None and num_classes not in (0, opened.spec.num_classes)
    if distilled and (opened.notes or new_layer):
        what = "its weights are random" if opened.notes else "its last layer is new"
        raise Vared2Error(
            f"distillation: {network} has nothing to teach, {what}. Give weights trained for these classes by "
            "--pretrained, --weights or a saved folder."
        )
    if opened.notes:
        say("note: the weights are random; --pretrained or --weights gives fine-tuning something to keep.")


def check_out(out: Path, resume: bool) -> None:
    """Refuse a file, and a run that is not to be gone on with."""
    if out.exists() and not out.is_dir():
        raise Vared2Error(f"--out {out}: that is a file; give a folder.")
    if has_run(out) and not resume:
        raise Vared2Error(f"--out {out}: a run is there; go on with it by --resume, or take another folder.")
    if resume and not has_run(out):
        say(f"--resume: no run in {out} yet; starting one.")


def has_run(out: Path) -> bool:
    """Whether there is something to go on with."""
    return (out / "last").exists() or (out / "last.old").exists()


def check_device(device: str) -> None:
    """Refuse one device for several processes."""
    if ":" in device and num_processes() > 1:
        kind = device.partition(":")[0]
        raise Vared2Error(
            f"--device {device}: of several processes each takes a device of its own; write --device {kind}, and "
            "choose with CUDA_VISIBLE_DEVICES."
        )


def check_classes(opened: Network, network: str, classes: tuple[str, ...]) -> None:
    """Refuse other classes than the network answers with."""
    known = num_classes_of(opened)
    if known is not None and known != len(classes):
        shown = ", ".join(classes[:5]) + (", …" if len(classes) > 5 else "")
        raise Vared2Error(
            f"{network} answers with {known} classes, but --train has {len(classes)} ({shown}). Name the network's "
            "with --classes FILE if the data shows some of them; else begin with the zoo's name, which gives the "
            "network a new last layer."
        )


def write_inputs(folder: Path, clips: "ClipConfig", classes: tuple[str, ...] | None) -> None:
    """Put beside the network how its clips are cut, and the names of its classes where there are labels."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise Vared2Error(f"--out: {folder} cannot be made: {exc.strerror or exc}.") from exc
    write_text(folder / CLIP_FILE, json.dumps(asdict(clips), indent=1) + "\n")
    if classes is not None:
        write_text(folder / CLASSES_FILE, "\n".join(classes) + "\n")
