"""`vared2 demo`: the whole loop on generated scenes, from video files to the report, in minutes.

Everything is real but the subject: the scenes are drawn, then encoded to H.264 files and decoded again; the
network comes with its weights; conversion, fine-tuning, counting and timing are those of the library.

What it promises, of its default seed: converted, the network answers as before; fine-tuned, it costs at most 65 % of
the multiply-adds, static scenes the least, and loses at most one answer in a hundred.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vared2_fx import zoo
from vared2_fx.checkpoint import save
from vared2_fx.config import ConvertConfig, FinetuneConfig
from vared2_fx.convert import convert
from vared2_fx.data import ClipConfig, VideoLoader, make_loader
from vared2_fx.data.scenes import CLASSES, KINDS, generate_scenes, kind_of
from vared2_fx.errors import DataError
from vared2_fx.report import CompressionReport, report
from vared2_fx.tables import percent, si, text_table
from vared2_fx.train import EpochLog, Evaluation, evaluate, finetune

NETWORK = "vared2_demo"
SPLITS = {"train": (60, 1), "val": (60, 2), "test": (30, 3)}
"""Videos per class and seed. Gates learn from the validation scenes; the test scenes are seen once, at the end."""

CONVERT = ConvertConfig(channel_shares=(1.0,), exclude=("stem.*", "stage*.shortcut.*"))
"""Not the stem, whose gate would see nothing but pixels, nor the shortcuts, which are too small to be worth a gate's
time."""
FINETUNE = FinetuneConfig(
    schedule="variants_first",
    epochs=5,
    own_share=0.4,
    gate_loss_weight=16.0,
    lr=1e-3,
    distill_weight=1.0,
)
"""A high rate, for the coarse choices; the original's answers hold the full one."""

_MARK = ".vared2_demo"

Say = Callable[[str], None]


def run_demo(out: Path, *, seed: int = 0, say: Say = print) -> CompressionReport:
    """Generate scenes, convert the demo network, fine-tune it, compare, and write the report.

    Args:
        out: folder for scenes, run and report; scenes of an earlier demo there are replaced.
        seed: of scenes and training.
        say: takes the lines to show.

    Returns:
        The report on the test scenes.

    Raises:
        DataError: `out` holds files that no earlier demo made, or cannot be written.
    """
    start = time.perf_counter()
    base = zoo.load(NETWORK, pretrained=True)
    loaders = make_loaders(_fresh(out), seed, say)
    clip = next(iter(loaders["test"]))["video"]
    before = evaluate(base, loaders["test"])
    say(f"\nBase network           {before}")

    torch.manual_seed(seed)  # gates start at random
    dynamic = convert(base, clip, CONVERT)
    unchanged = evaluate(dynamic, loaders["test"])
    same = sum(a.prediction == b.prediction for a, b in zip(before.clips, unchanged.clips, strict=True))
    say(f"Converted, untrained   {unchanged}")
    say(f"                       same answer on {same} of {len(before.clips)} clips")

    say(f"\nFine-tuning for {FINETUNE.epochs} epochs ...")
    config = replace(FINETUNE, seed=seed, out=str(out / "run"))
    val = list(loaders["val"])  # gone through a dozen times, so decoded once
    result = finetune(dynamic, loaders["train"], val, config)
    say(_training_table(result.history))
    after = evaluate(dynamic, loaders["test"])
    say(f"\nBase network           {before}")
    say(f"Fine-tuned (epoch {result.best_epoch})   {after}")
    say(f"\n{_per_kind(before, after)}")

    say("\nMeasuring times and writing the report ...")
    made = report(dynamic, loaders["test"], timing_clips=9)
    save(dynamic, out / "dynamic")
    (out / "report.json").write_text(made.to_json())
    (out / "report.csv").write_text(made.to_csv())
    (out / "report.txt").write_text(f"{made}\n")
    made.to_html(out / "report.html")
    (out / "demo.json").write_text(json.dumps(_summary(before, after, made, time.perf_counter() - start), indent=1))
    say(f"\n{made}")
    say(f"\nWrote report.html, .txt, .json, .csv and the network (dynamic/) into {out}.")
    say(f"Whole demo: {time.perf_counter() - start:.0f} s.")
    return made


def _fresh(out: Path) -> Path:
    """Make `out`, without the scenes and the run of an earlier demo.

    Raises:
        DataError: `out` is in use by something else.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / _MARK).exists())):
        raise DataError(f"demo: {out} holds files that no demo made; choose another folder with --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / _MARK).touch()
        for name in ("scenes", "run", "dynamic"):
            shutil.rmtree(out / name, ignore_errors=True)
    except OSError as exc:
        raise DataError(f"demo: {out} cannot be written: {exc.strerror or exc}.") from exc
    return out


def make_loaders(out: Path, seed: int, say: Say) -> dict[str, VideoLoader]:
    """Generate the scenes of every split in `out`/scenes; returns a loader for each by its name."""
    config = ClipConfig.from_spec(zoo.spec(NETWORK))
    loaders = {}
    for split, (per_class, offset) in SPLITS.items():
        start = time.perf_counter()
        listing = generate_scenes(out / "scenes" / split, videos_per_class=per_class, seed=10 * seed + offset)
        say(f"{len(listing)} scenes for {split}, drawn and encoded as H.264 in {time.perf_counter() - start:.1f} s")
        loaders[split] = make_loader(
            listing, config, batch_size=16, training=split == "train", seed=seed, flip=False, num_workers=1
        )
    return loaders


def _training_table(history: Sequence[EpochLog]) -> str:
    rows = [
        (
            str(epoch.epoch),
            f"{epoch.train_loss:.3f}" if epoch.epoch else "",
            percent(epoch.accuracy),
            percent(epoch.share),
            f"{epoch.seconds:.0f} s",
        )
        for epoch in history
    ]
    return text_table(("epoch", ">train loss", ">val top-1", ">val MACs", ">time"), rows)


def macs_per_kind(evaluation: Evaluation) -> dict[str, float]:
    """Mean share of the original's multiply-adds for each kind of scene."""
    costs: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for clip in evaluation.clips:
        costs[kind_of(CLASSES[clip.label])].append(clip.macs)
    return {kind: sum(macs) / len(macs) / evaluation.dense_macs for kind, macs in costs.items()}


def accuracy_per_kind(evaluation: Evaluation) -> dict[str, float]:
    """Top-1 for each kind of scene."""
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for clip in evaluation.clips:
        right[kind_of(CLASSES[clip.label])].append(clip.label == clip.prediction)
    return {kind: sum(oks) / len(oks) for kind, oks in right.items()}


def _per_kind(before: Evaluation, after: Evaluation) -> str:
    share, old, new = macs_per_kind(after), accuracy_per_kind(before), accuracy_per_kind(after)
    rows = [
        (kind, percent(old[kind]), percent(new[kind]), si(share[kind] * after.dense_macs), percent(share[kind]))
        for kind in KINDS
    ]
    columns = ("scenes", ">top-1 before", ">after", ">MACs per clip", ">of the original")
    return text_table(columns, rows)


def _summary(before: Evaluation, after: Evaluation, made: CompressionReport, seconds: float) -> dict[str, Any]:
    timing = made.totals.timing
    assert timing is not None
    return {
        "seconds": seconds,
        "top1_before": before.accuracy,
        "top1_after": after.accuracy,
        "share": after.share,
        "share_per_kind": macs_per_kind(after),
        "top1_per_kind_before": accuracy_per_kind(before),
        "top1_per_kind_after": accuracy_per_kind(after),
        "ms_before": timing.dense.ms,
        "ms_after": timing.dynamic.ms,
    }
