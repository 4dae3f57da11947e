"""Train the demo's network on generated scenes: makes vared2_fx/zoo/weights/vared2_demo.safetensors.

    python benchmarks/train_demo_net.py

Everything from scratch: render, encode, decode, train, test on scenes of another seed. Also shown: the accuracy
per kind of scene when only every 2nd or 4th frame is given and held, which tells which kinds need the frames.
Raw numbers go to benchmarks/results/train_demo_net.json.
"""

import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor, nn

import vared2_fx.data as data
from vared2_fx.data import scenes
from vared2_fx.zoo import demo_net

RESULTS = Path(__file__).parent / "results" / "train_demo_net.json"
HOLDS = (1, 2, 4)


def hold_frames(video: Tensor, every: int) -> Tensor:
    """Replace all but every n-th frame of (N, C, T, H, W) by the one before that stays."""
    return video[:, :, ::every].repeat_interleave(every, dim=2)[:, :, : video.shape[2]]


@torch.no_grad()
def accuracy_per_kind(model: nn.Module, loader: data.VideoLoader, *, hold: int = 1) -> dict[str, float]:
    """Count the share of right answers, per kind of scene and over "all", in 0...1."""
    model.eval()
    right: dict[str, list[bool]] = defaultdict(list)
    for batch in loader:
        answers = model(hold_frames(batch["video"], hold)).argmax(1)
        for label, ok in zip(batch["label"].tolist(), (answers == batch["label"]).tolist(), strict=True):
            right[scenes.kind_of(scenes.CLASSES[label])].append(ok)
            right["all"].append(ok)
    return {kind: sum(oks) / len(oks) for kind, oks in right.items()}


def train(model: nn.Module, loader: data.VideoLoader, *, epochs: int, lr: float, console: Console) -> float:
    """Train in place with AdamW and a one-cycle schedule; give the median seconds of a step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=lr, total_steps=epochs * len(loader), pct_start=0.2
    )
    loss_of = nn.CrossEntropyLoss()
    steps: list[float] = []
    for epoch in range(epochs):
        model.train()
        started, losses = time.monotonic(), []
        for batch in loader:
            step_started = time.monotonic()
            clips = batch["video"].contiguous(memory_format=torch.channels_last_3d)
            loss = loss_of(model(clips), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            steps.append(time.monotonic() - step_started)
        mean_loss = sum(losses) / len(losses)
        console.print(f"epoch {epoch + 1}/{epochs}: loss {mean_loss:.3f}, {time.monotonic() - started:.1f} s")
    return sorted(steps)[len(steps) // 2]


def main(
    videos_per_class: Annotated[int, typer.Option(help="Training videos of each class.")] = 160,
    test_videos_per_class: Annotated[int, typer.Option(help="Test videos of each class.")] = 60,
    epochs: Annotated[int, typer.Option(help="Passes over the training videos.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Clips per step.")] = 8,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3,
    seed: Annotated[int, typer.Option(help="Of scenes, weights and order; the test set has seed + 1.")] = 100,
    output: Annotated[Path, typer.Option(help="Checkpoint to write.")] = demo_net.WEIGHTS,
    results: Annotated[Path, typer.Option(help="Raw numbers to write.")] = RESULTS,
) -> None:
    """Train, test, and write checkpoint and raw numbers."""
    console = Console()
    config = data.ClipConfig.from_spec(demo_net.SPEC)
    report: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__, "seed": seed}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        train_set, test_set = (
            scenes.generate_scenes(Path(folder, name), videos_per_class=number, seed=own_seed, hard=True)
            for name, number, own_seed in (
                ("train", videos_per_class, seed),
                ("test", test_videos_per_class, seed + 1),
            )
        )
        report["generate_s"] = time.monotonic() - started
        report["num_train"], report["num_test"] = len(train_set), len(test_set)
        console.print(f"{len(train_set)} + {len(test_set)} videos made in {report['generate_s']:.0f} s")
        torch.manual_seed(seed)
        model = demo_net.DemoNet(num_classes=len(scenes.CLASSES)).to(memory_format=torch.channels_last_3d)
        loader = data.make_loader(
            train_set, config, batch_size=batch_size, training=True, seed=seed, flip=False, num_workers=1
        )
        report["step_s"] = train(model, loader, epochs=epochs, lr=lr, console=console)
        report["train_s"] = time.monotonic() - started - report["generate_s"]
        output.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, output)
        report["accuracy"] = {
            name: {
                hold: accuracy_per_kind(model, data.make_loader(videos, config, batch_size=32), hold=hold)
                for hold in HOLDS
            }
            for name, videos in (("train", train_set), ("test", test_set))
        }
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    show(report, console)
    console.print(f"Wrote {output} ({output.stat().st_size / 1e6:.2f} MB) and {results}.")


def show(report: dict[str, Any], console: Console) -> None:
    """Print the accuracies as a table."""
    table = Table("scenes", "frames given", *scenes.KINDS, "all", title="Accuracy in %")
    for name, holds in report["accuracy"].items():
        for hold, kinds in holds.items():
            cells = [f"{100 * kinds[kind]:.1f}" for kind in (*scenes.KINDS, "all")]
            table.add_row(name, "all" if hold == 1 else f"every {hold}.", *cells)
    console.print(table)
    console.print(f"Training {report['train_s']:.0f} s, {1000 * report['step_s']:.0f} ms per step.")


if __name__ == "__main__":
    typer.run(main)
