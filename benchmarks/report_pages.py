"""The example of docs/report.md: a small training, its report in every form, and pictures of the pages.

    python benchmarks/report_pages.py [--threads 2]

Fine-tunes the demo's network for a few epochs on generated scenes (minutes, and no more than an example: `vared2 demo`
trains on more), writes `results/report.txt` and, with Chromium, the pictures in docs/images.
"""

import argparse
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from common import RESULTS, machine

import vared2_fx as vr
from vared2_fx.data import ClipConfig, make_loader
from vared2_fx.data.scenes import generate_scenes
from vared2_fx.demo import CONVERT, FINETUNE

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SPLITS = {"train": (12, 1), "val": (16, 2), "test": (8, 3)}
"""Videos of each of nine classes, and the seed that they are drawn with."""
EPOCHS = 4


def train(folder: Path) -> tuple[vr.CompressionReport, vr.CompressionReport]:
    """Reports of the test clips before the training, and after it; `folder/run` holds the run."""
    clip = ClipConfig.from_spec(vr.zoo.spec("vared2_demo"))
    for split, (count, seed) in SPLITS.items():
        generate_scenes(folder / split, videos_per_class=count, seed=seed)
    train = make_loader(folder / "train", clip, batch_size=18, training=True, flip=False)
    val, test = (
        make_loader(folder / name, clip, batch_size=18, classes=train.listing.classes) for name in ("val", "test")
    )
    dynamic = vr.convert(vr.zoo.load("vared2_demo", pretrained=True), config=CONVERT)
    before = vr.report(dynamic, test)
    vr.finetune(dynamic, train, val, replace(FINETUNE, epochs=EPOCHS, out=str(folder / "run")))
    return before, vr.report(dynamic, test, sensitivity=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        before, after = train(folder)
        comparison, run = vr.compare(before, after), replace(vr.read_run(folder / "run"), folder="runs/demo")
        parts = [str(after), str(comparison), str(run)]
        (RESULTS / "report.txt").write_text("\n\n".join([*parts, str(machine())]) + "\n")
        print(*parts, sep="\n\n")
        after.to_html(folder / "report.html")
        run.to_html(folder / "run.html")
        vr.scan_page(vr.scan(vr.zoo.load("slow_r50")), folder / "scan.html")
        if (chromium := shutil.which("chromium")) is not None:
            take_pictures(folder, chromium)


def take_pictures(folder: Path, chromium: str) -> None:
    from playwright.sync_api import sync_playwright

    IMAGES.mkdir(exist_ok=True)
    light, dark, narrow = (
        {"viewport": {"width": 1100, "height": 820}},
        {"viewport": {"width": 1100, "height": 820}, "color_scheme": "dark"},
        {"viewport": {"width": 390, "height": 820}},
    )
    with sync_playwright() as library:
        browser = library.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, source, options, part in (
            ("report", "report", light, ""),
            ("report_layers", "report", dark, "#layers"),
            ("report_depth", "report", light, "#depth"),
            ("report_clips", "report", dark, "#clips"),
            ("report_graph", "report", light, "#graph"),
            ("report_card", "report", light, "dialog"),
            ("report_narrow", "report", narrow, ""),
            ("run", "run", light, ""),
            ("scan", "scan", light, ""),
        ):
            size = {"width": options["viewport"]["width"], "height": 1500} if part == "#clips" else options["viewport"]
            page = browser.new_page(**{**options, "viewport": size})
            page.goto((folder / f"{source}.html").as_uri())
            if part == "dialog":
                page.locator("button.open").nth(1).click()
            shot = page.locator(part) if part else page
            save_small(shot.screenshot(), IMAGES / f"{name}.webp")
            page.close()
        browser.close()


def save_small(png: bytes, path: Path) -> None:
    import io

    from PIL import Image

    Image.open(io.BytesIO(png)).convert("RGB").save(path, "WEBP", quality=72, method=6)


if __name__ == "__main__":
    main()
