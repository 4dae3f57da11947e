"""What a gate looks at: how well it tells static scenes from others, and how long looking takes.

    python benchmarks/gate_view.py

Separation: features of the demo network's gates feed a logistic regression (scenes of one seed) that is judged by the
area under its ROC curve on scenes of another: means alone, with the mean and the largest change over one frame, and
over two; for patches of 1×1 (single positions) and 2×2. Time: a forward of 2×2 patches as slices (ours), of single
positions, and of two pooling operators, both memory layouts.
"""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from common import interleaved, write
from torch import Tensor

import vared2_fx as vr
from vared2_fx.data import ClipConfig, VideoLoader, make_loader
from vared2_fx.data.scenes import CLASSES, generate_scenes, kind_of
from vared2_fx.demo import NETWORK
from vared2_fx.layers import gate as gate_module
from vared2_fx.passes.rewrite import regions

VIEWS = ("means", "+ mean change, 1 frame", "+ largest, 1 frame", "+ mean change, 2 frames", "+ largest, 2 frames")
MAPS = {"24 channels, 16x32x32": (1, 24, 16, 32, 32), "54 channels, 16x112x112": (1, 54, 16, 112, 112)}


@torch.no_grad()
def features(loader: VideoLoader, patch: int) -> tuple[dict[str, Tensor], Tensor]:
    """What each gate sees of each clip (N, C, views, bins), and whether the clip is static."""
    gate_module._PATCH = patch
    torch.manual_seed(0)
    dynamic = vr.convert(vr.zoo.load(NETWORK, pretrained=True)).eval()
    seen: dict[str, list[Tensor]] = {path: [] for path in regions(dynamic)}
    for path, region in regions(dynamic).items():
        region.gate.register_forward_pre_hook(
            lambda gate, args, path=path: seen[path].append(
                gate.look(args[0]).unflatten(1, (args[0].shape[1], len(VIEWS), -1))
            )
        )
    static = []
    for batch in loader:
        dynamic(batch["video"])
        static += [kind_of(CLASSES[label]) == "static" for label in batch["label"].tolist()]
    return {path: torch.cat(values) for path, values in seen.items()}, torch.tensor(static)


def separation(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor) -> float:
    """Area under the ROC curve, on `test`, of a logistic regression fitted to `train`."""
    mean, std = train.mean(0), train.std(0) + 1e-5
    train, test = (train - mean) / std, (test - mean) / std
    weights = torch.zeros(train.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.AdamW([weights], lr=1e-2, weight_decay=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(train @ weights[1:] + weights[0], labels.float()).backward()
        optimizer.step()
    score = (test @ weights[1:]).detach()
    return float((score[truth][:, None] > score[~truth]).float().mean())


def times() -> dict[str, dict[str, list[float]]]:
    gate_module._PATCH = 2
    result = {}
    for name, shape in MAPS.items():
        for layout in (torch.contiguous_format, torch.channels_last_3d):
            x, cell = torch.randn(shape).to(memory_format=layout), shape[3] // 8
            forms = {
                "slices of 2x2": lambda x=x: gate_module._average_patches(x),
                "single positions": lambda x=x, c=cell: x[..., ::c, ::c].contiguous(),
                "avg_pool3d of 2x2": lambda x=x, c=cell: F.avg_pool3d(x, (1, 2, 2), (1, c, c)),
                "adaptive_avg_pool3d": lambda x=x: F.adaptive_avg_pool3d(x, (x.shape[2], 8, 8)),
            }
            result[f"{name}, {layout}"] = interleaved(forms, rounds=11, warmup=3)
    return result


def main() -> None:
    torch.set_num_threads(2)
    clip = ClipConfig.from_spec(vr.zoo.spec(NETWORK))
    areas: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        loaders = [
            make_loader(generate_scenes(Path(folder) / str(seed), videos_per_class=40, seed=seed), clip, batch_size=30)
            for seed in (11, 12)
        ]
        for patch in (1, 2):
            (train, labels), (test, truth) = (features(loader, patch) for loader in loaders)
            for used, name in enumerate(VIEWS, start=1):
                areas[f"{patch}x{patch}, {name}"] = {
                    path: separation(
                        train[path][:, :, :used].flatten(1), labels, test[path][:, :, :used].flatten(1), truth
                    )
                    for path in train
                }
    write("gate_view", {"area_under_curve": areas, "seconds": times()})


if __name__ == "__main__":
    main()
