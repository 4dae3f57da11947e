"""What collecting a report costs beside plainly running the clips, and how large and fast its page is.

    python benchmarks/report_cost.py [x3d_l csn_r101] [--clips 64] [--batch-size 4] [--layout channels_last_3d]

Per network, in a process of its own: random weights, random clips, gates that decide differently from clip to clip.
Plain: every clip once through the original and once through the dynamic network, in the same batches. Aim: collection
(sensitivity apart) at most 1.3 times that; page at most 2 MB, loaded in less than a second.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from common import LAYOUTS, in_own_process, peak_mib, write
from torch import Tensor, fx, nn

import vared2_fx as vr
from vared2_fx.layers import FULL, Gate
from vared2_fx.modes import evaluating


def spread_decisions(dynamic: fx.GraphModule, clips: Tensor) -> None:
    """Let each gate decide at random, around its mean over `clips`."""
    generator = torch.Generator().manual_seed(0)

    def centre(gate: Gate, args: tuple[Tensor]) -> None:
        hidden = torch.tanh(gate.norm(gate.hidden(gate.standardised(gate.look(args[0])))))
        weight = torch.randn(gate.out.weight.shape, generator=generator).to(hidden)
        std, mean = torch.std_mean(hidden @ weight.t(), 0)
        scale = 2.0 / std.clamp_min(1e-4)
        gate.out.weight.copy_(weight * scale[:, None])
        gate.out.bias.copy_(-mean * scale)

    hooks = [m.register_forward_pre_hook(centre) for m in dynamic.modules() if isinstance(m, Gate)]
    with evaluating(dynamic):
        dynamic(clips)
    for hook in hooks:
        hook.remove()


def plain_s(network: nn.Module, batches: list[Tensor]) -> float:
    with evaluating(network):
        start = time.perf_counter()
        for batch in batches:
            network(batch)
        return time.perf_counter() - start


def measure(name: str, num_clips: int, batch_size: int, layout: str) -> dict[str, object]:
    spec = vr.zoo.spec(name)
    shape = (3, spec.frames, spec.crop, spec.crop)
    generator = torch.Generator().manual_seed(1)
    loudness = torch.logspace(-1, 1, num_clips)[torch.randperm(num_clips, generator=generator)]
    clips = torch.randn(num_clips, *shape, generator=generator) * loudness.view(-1, 1, 1, 1, 1)
    clips = clips.to(memory_format=LAYOUTS[layout])
    dynamic = vr.convert(vr.zoo.load(name), clips[:1]).to(memory_format=LAYOUTS[layout])
    spread_decisions(dynamic, clips[: 2 * batch_size])
    batches = list(clips.split(batch_size))
    static = vr.specialize(dynamic, {"*": FULL})
    plain_s(dynamic, batches[:1])  # warm-up
    dense_s, dynamic_s = plain_s(static, batches), plain_s(dynamic, batches)
    labels = torch.arange(num_clips) % spec.num_classes
    loader = [
        {"video": b, "label": label, "video_name": [f"{n}.mp4" for n in range(len(b))]}
        for b, label in zip(batches, labels.split(batch_size), strict=True)
    ]
    start = time.perf_counter()
    made = vr.report(dynamic, loader, progress=False)
    collect_s = time.perf_counter() - start
    start = time.perf_counter()
    page = made.to_html()
    render_s = time.perf_counter() - start
    return {
        "clips": num_clips,
        "batch_size": batch_size,
        "clip_shape": shape,
        "layout": layout,
        "dynamic_layers": len(made.dynamic),
        "computed_share": 1 - made.totals.saved_share,
        "plain_dense_s": dense_s,
        "plain_dynamic_s": dynamic_s,
        "collect_s": collect_s,
        "collect_to_plain": collect_s / (dense_s + dynamic_s),
        "render_s": render_s,
        "page_bytes": len(page.encode()),
        "page_load_s": load_s(page),
        "json_bytes": len(made.to_json().encode()),
        "peak_mib": peak_mib(),
    }


def load_s(page: str, visits: int = 5) -> float | None:
    """Median seconds from opening the page to its load event; None without Chromium."""
    if (chromium := shutil.which("chromium")) is None:
        return None
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as library:
        path = Path(folder) / "page.html"
        path.write_text(page, encoding="utf-8")
        browser = library.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        times = []
        for _ in range(visits):
            tab = browser.new_page()
            tab.goto(path.as_uri())
            times.append(tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1e3)
            tab.close()
        browser.close()
    return median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["x3d_l", "csn_r101"])
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layout", choices=tuple(LAYOUTS), default="contiguous")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        print(json.dumps(measure(args.one, args.clips, args.batch_size, args.layout)))
        return
    named = {"clips": args.clips, "batch-size": args.batch_size, "threads": args.threads, "layout": args.layout}
    options = [f"--{name}={value}" for name, value in named.items()]
    for name in args.networks:
        write(f"report_cost_{name}", in_own_process(__file__, f"--one={name}", *options))


if __name__ == "__main__":
    main()
