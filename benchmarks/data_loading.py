"""Does reading clips hold a fine-tuning run up? Where a clip's time goes, and epochs with and without reading.

    python benchmarks/data_loading.py [--networks vared2_demo x3d_m r3d_18] [--videos FOLDER] [--threads 2]

A clip is opened, decoded and resized in one thread. Epochs train a converted network, forward, backward and an SGD
update, interleaved: on clips that lie in memory, and on clips that a loader reads with 0, 1 and 2 worker processes.
Videos are generated scenes of 256×256 and six seconds, H.264, unless a folder is given.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from common import interleaved, ratios, write

import vared2_fx as vr
from vared2_fx.data import ClipConfig, VideoListing, list_unlabelled, make_loader
from vared2_fx.data.clips import clip_transform
from vared2_fx.data.scenes import FPS, generate_scenes
from vared2_fx.data.video import VideoFile
from vared2_fx.policy.statistics import dense_macs

WORKERS = (0, 1, 2)


def parts_of_a_clip(videos: VideoListing, config: ClipConfig) -> dict[str, float]:
    """Mean milliseconds per clip of opening, decoding and resizing, in this thread."""
    spent: dict[str, list[float]] = {"open": [], "decode": [], "resize, crop and scale": []}
    transform = clip_transform(config, training=True)
    for path, _ in videos.videos:
        marks = [time.perf_counter()]
        with VideoFile(path) as video:
            marks.append(time.perf_counter())
            start = max(0.0, (video.duration_s - config.duration_s) / 2)
            frames, _ = video.frames_at(config.times_s(start))
            marks.append(time.perf_counter())
        transform(frames).transpose(0, 1).contiguous()
        marks.append(time.perf_counter())
        for name, before, after in zip(spent, marks, marks[1:], strict=False):
            spent[name].append(1e3 * (after - before))
    return {name: mean(values) for name, values in spent.items()}


def make_epoch(step: Callable[[Any], None], batches: Iterable[Any]) -> Callable[[], None]:
    def epoch() -> None:
        for batch in batches:
            step(batch["video"])

    return epoch


def make_step(network: str, clip: torch.Tensor) -> Callable[[torch.Tensor], None]:
    """A training step of the converted network on clips (N, 3, T, H, W)."""
    torch.manual_seed(0)
    dynamic = vr.convert(vr.zoo.load(network), clip)
    dense = dense_macs(dynamic, clip)
    observed = vr.with_decisions(dynamic).train()
    optimizer = torch.optim.SGD(observed.parameters(), lr=1e-4)

    def step(clips: torch.Tensor) -> None:
        optimizer.zero_grad()
        output, decisions = observed(clips)
        labels = torch.zeros(len(clips), dtype=torch.long)
        (F.cross_entropy(output, labels) + vr.efficiency_loss(decisions, dense=dense)).backward()
        optimizer.step()

    return step


def measure(network: str, videos: VideoListing, batch_size: int, threads: int, rounds: int) -> dict[str, Any]:
    config = ClipConfig.from_spec(vr.zoo.spec(network))
    torch.set_num_threads(1)
    parts_of_a_clip(videos, config)  # files are in the system's cache from here on
    parts = parts_of_a_clip(videos, config)
    torch.set_num_threads(threads)
    loaders = {
        f"{workers} workers": make_loader(videos, config, batch_size=batch_size, training=True, num_workers=workers)
        for workers in WORKERS
    }
    held = list(loaders["0 workers"])
    step = make_step(network, held[0]["video"][:1])
    epochs = {"in memory": make_epoch(step, held)}
    epochs |= {name: make_epoch(step, loader) for name, loader in loaders.items()}
    seconds = interleaved(epochs, rounds=rounds)
    return {
        "clip": list(held[0]["video"].shape[1:]),
        "clips_per_epoch": sum(len(batch["video"]) for batch in held),
        "batch_size": batch_size,
        "ms_per_clip": parts,
        "seconds_per_epoch": seconds,
        "ratio_to_in_memory": {name: ratios(seconds, name, "in memory") for name in loaders},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["vared2_demo", "x3d_m", "r3d_18"])
    parser.add_argument("--videos", type=Path, help="a folder of video files, labels are not needed")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.videos is None:
            generate_scenes(Path(folder) / "scenes", videos_per_class=2, seed=0, num_frames=6 * FPS, size=256)
        videos = list_unlabelled(args.videos or Path(folder) / "scenes")
        found = {name: measure(name, videos, args.batch, args.threads, args.rounds) for name in args.networks}
    about = {"videos": len(videos.videos), "given": args.videos is not None, "dtype": "float32", "layout": "contiguous"}
    write("data_loading" if args.videos is None else "data_loading_given", {**about, "networks": found})


if __name__ == "__main__":
    main()
