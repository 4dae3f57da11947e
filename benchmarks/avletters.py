"""AVLetters: a base network, networks with gates made of it, and what a sceptic would try instead.

    python benchmarks/avletters.py --seeds 0 1 2
    python benchmarks/avletters.py --table

For each seed a base network is trained, converted and fine-tuned by each recipe asked for; then the controls are, each
for as long as the slowest recipe took (seconds of processor time). After every step the raw results are written, and
what is there already is not run again; several processes may share a file, each with seeds of its own. Splits are in
`avletters_parts/clips.py`; the data is not part of this project.
"""

import argparse
import fcntl
import json
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from avletters_parts.clips import Loader, data_file, read_parts
from avletters_parts.controls import Controls
from avletters_parts.learned import TEACHERS, Recipe, run_recipe
from avletters_parts.networks import NAMES, make_network
from avletters_parts.table import table
from avletters_parts.training import WEIGHT_DECAY, top1, train
from common import RESULTS, machine
from safetensors.torch import load_file, save_file
from torch import nn

import vared2_fx as vr
from vared2_fx.policy.statistics import dense_macs


class Steps:
    """Results by seed and step, on disk after every one."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Go on with `path`, which has to have been made with the same settings."""
        self._path = path
        self.document: dict[str, Any] = {"machine": machine(), "settings": settings, "seeds": {}}
        if path.exists():
            self.document = json.loads(path.read_text())
            if self.document["settings"] != settings:
                raise SystemExit(f"{path} has other settings, {self.document['settings']}; give another --out.")

    def once(self, seed: int, name: str, step: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a step, which runs where it is not known yet."""
        known = self.document["seeds"].setdefault(str(seed), {})
        if name not in known:
            start = time.perf_counter()
            known[name] = step()
            self._write(str(seed), name)
            print(f"seed {seed}: {name}: {time.perf_counter() - start:.0f} s", flush=True)
        return known[name]

    def _write(self, seed: str, name: str) -> None:
        """Add one result to what is on disk, where other processes add those of other seeds."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            held = json.loads(self._path.read_text()) if self._path.exists() else self.document | {"seeds": {}}
            held["seeds"].setdefault(seed, {})[name] = self.document["seeds"][seed][name]
            part = self._path.with_suffix(".part")
            part.write_text(json.dumps(held, indent=1) + "\n")
            part.replace(self._path)


def train_base(args: argparse.Namespace, loaders: dict[str, Loader], seed: int, weights: Path) -> dict[str, Any]:
    """Train it, or find what another run of this script made of the same seed and settings."""
    result = weights.with_suffix(".json")
    if weights.exists() and result.exists():
        found: dict[str, Any] = json.loads(result.read_text())
        return found
    torch.manual_seed(seed)
    base = make_network(args.network, num_classes=args.letters, width=args.width)
    base = base.to(memory_format=torch.channels_last_3d)
    seconds = train(base, loaders["train"], epochs=args.base_epochs, lr=args.base_lr)
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in base.state_dict().items()}, weights)
    clip = next(iter(loaders["test"]))["video"][:1]
    accuracy = {name: top1(base, loaders[name]) for name in ("val", "test")}
    made = {"top1": accuracy["test"], "val": accuracy["val"], "macs": dense_macs(base, clip), "seconds": seconds}
    result.write_text(json.dumps(made))
    return made


def load_base(args: argparse.Namespace, weights: Path) -> nn.Module:
    base = make_network(args.network, num_classes=args.letters, width=args.width)
    base.load_state_dict(load_file(weights))
    return base.to(memory_format=torch.channels_last_3d).eval()


def run_seed(args: argparse.Namespace, steps: Steps, seed: int) -> None:
    parts = read_parts(seed, args.letters)
    loaders = {
        "train": Loader(parts["train"], training=True, seed=seed),
        "finetune": Loader(parts["train"], training=True, seed=seed + 1),  # other draws than the base saw, as controls
        "calibrate": Loader(parts["train"], training=True, batch_size=32, seed=seed),
        "val": Loader(parts["val"], batch_size=52),
        "test": Loader(parts["test"], batch_size=52),
    }
    made = (f"{args.network}{args.width}", args.letters, args.base_epochs, args.base_lr, seed)
    weights = Path(args.work) / f"{'_'.join(map(str, made))}.safetensors"
    steps.once(seed, "base", lambda: train_base(args, loaders, seed, weights))
    if not weights.exists():
        train_base(args, loaders, seed, weights)  # the same again, under the same seed
    base = load_base(args, weights)
    config = vr.FinetuneConfig(
        epochs=args.epochs,
        lr=args.lr,
        weight_decay=WEIGHT_DECAY,
        freeze_norms=not args.live_norms,
        own_share=args.own_share,
        settle_gates=args.settle_gates,
        schedule="variants_first",
        seed=seed,
        progress=False,
    )
    recipes = recipes_of(args)
    found = {
        str(recipe): steps.once(
            seed, str(recipe), lambda recipe=recipe: run_recipe(base, recipe, loaders, config, args.targets)
        )
        for recipe in recipes
    }
    if args.no_controls:
        return
    run_controls(args, steps, seed, Controls(base, parts, loaders, args.lr, seed), recipes[0], found)


def run_controls(
    args: argparse.Namespace, steps: Steps, seed: int, controls: Controls, recipe: Recipe, found: dict[str, Any]
) -> None:
    seconds = max(result["seconds"] for result in found.values())
    steps.once(seed, "base, fine-tuned as long", lambda: controls.longer(seconds))
    for stride, share in ((1, args.channel_shares[1]), (args.frame_strides[1], 1.0)):
        run = partial(controls.static, recipe, {"*": (stride, share)}, seconds)
        steps.once(seed, f"uniform R = {stride}, r = {share:g}", run)
    steps.once(seed, "base, fine-tuned as long at a fifth of the rate", lambda: controls.longer(seconds, rate=0.2))
    for target in args.targets:
        at = f"at {target:g}"
        layers = found[str(recipe)]["points"][f"{target:g}"]["layers"]
        average = f"static, each layer's average of {recipe}, {at}"
        steps.once(seed, average, lambda layers=layers: controls.average(recipe, layers, seconds))
        steps.once(seed, f"fewer frames, {at}", lambda target=target: controls.fewer_frames(target, seconds))
        steps.once(seed, f"smaller pictures, {at}", lambda target=target: controls.smaller_pictures(target, seconds))
        steps.once(seed, f"pruned, {at}", lambda target=target: controls.pruned(target, seconds))


def recipes_of(args: argparse.Namespace) -> list[Recipe]:
    return [
        Recipe(
            granularity=granularity,
            gate=gate,
            schedule=schedule,
            calibrated=start == "calibrated",
            teacher=teacher,
            frame_strides=tuple(args.frame_strides),
            channel_shares=tuple(args.channel_shares),
        )
        for granularity, gate, schedule, start, teacher in product(
            args.granularity, args.gate, args.schedule, args.start, args.teacher
        )
        if schedule == "variants_first" or teacher in ("labels", "original")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    many: dict[str, Any] = {"nargs": "+"}
    parser.add_argument("--seeds", type=int, default=[0, 1, 2], **many)
    parser.add_argument("--network", choices=NAMES, default="resnet")
    parser.add_argument("--width", type=int, default=12, help="channels of the first stage")
    parser.add_argument("--granularity", choices=("conv", "block", "stage"), default=["block", "conv", "stage"], **many)
    parser.add_argument("--gate", choices=("softmax", "gumbel"), default=["softmax"], **many)
    parser.add_argument("--schedule", choices=("variants_first", "joint"), default=["variants_first", "joint"], **many)
    parser.add_argument("--start", choices=("calibrated", "uncalibrated"), default=["calibrated"], **many)
    parser.add_argument("--teacher", choices=tuple(TEACHERS), default=["original"], **many)
    parser.add_argument("--frame-strides", type=int, default=[1, 2, 4], **many)
    parser.add_argument("--channel-shares", type=float, default=[1.0, 0.5], **many)
    parser.add_argument("--targets", type=float, default=[0.6], help="shares of the base's multiply-adds", **many)
    parser.add_argument("--base-epochs", type=int, default=30)
    parser.add_argument("--base-lr", type=float, default=4e-3)
    parser.add_argument("--epochs", type=int, default=8, help="of fine-tuning")
    parser.add_argument("--lr", type=float, default=5e-4, help="of fine-tuning, gates' apart; the controls' too")
    parser.add_argument("--own-share", type=float, default=0.3, help="see FinetuneConfig")
    parser.add_argument("--settle-gates", action="store_true", help="see FinetuneConfig")
    parser.add_argument("--live-norms", action="store_true", help="norms of batches, as in the controls")
    parser.add_argument("--letters", type=int, default=26, help="the first ones only")
    parser.add_argument("--no-controls", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", default="runs/avletters", help="folder for the base networks' weights")
    parser.add_argument("--out", type=Path, default=RESULTS / "avletters.json")
    parser.add_argument("--table", action="store_true", help="print what is there, and run nothing")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.out.read_text())))
        return
    if not data_file().exists():
        raise SystemExit(f"No {data_file()}: set VARED2_DATA to the folder that holds avletters/.")
    torch.set_num_threads(args.threads)
    kept = ("network", "width", "base_epochs", "base_lr", "epochs", "lr", "own_share", "letters", "threads")
    kept += ("frame_strides", "channel_shares", "settle_gates", "live_norms")
    kept += ("granularity", "gate", "schedule", "start", "teacher", "targets")  # controls run as long as the slowest
    steps = Steps(args.out, {key: getattr(args, key) for key in kept})
    for seed in args.seeds:
        run_seed(args, steps, seed)
    print(table(steps.document))


if __name__ == "__main__":
    main()
