"""benchmarks/avletters.py on two letters, if the data is there: every step runs, and is not run twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vared2_fx as vr

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("VARED2_DATA", ROOT.parent / "shared" / "data"))
FOUND = sorted((ROOT / "benchmarks" / "results").glob("avletters*.json"))
SMALL = ("--seeds", "0", "--letters", "2", "--width", "8", "--base-epochs", "1", "--epochs", "1")
WAYS = ("--granularity", "block", "--schedule", "joint", "--targets", "0.7")

needs_data = pytest.mark.skipif(
    not (DATA / "avletters" / "avletters_lips.npz").exists(), reason=f"no AVLetters in {DATA}"
)


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("VARED2_DATA", str(DATA))
    from avletters_parts.clips import read_parts

    return read_parts(0, 2)


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-W", "ignore", "benchmarks/avletters.py", *SMALL, *WAYS, *words)
    places = ("--work", str(folder / "work"), "--out", str(folder / "out.json"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "VARED2_DATA": str(DATA)}
    return subprocess.run([*command, *places], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=280)


@needs_data
@pytest.mark.slow
def test_every_step_runs_once(tmp_path):
    first = run(tmp_path)
    assert first.returncode == 0, first.stderr
    steps = json.loads((tmp_path / "out.json").read_text())["seeds"]["0"]
    (learned,) = (name for name in steps if name.startswith("block, softmax"))
    found = steps[learned]["points"]["0.7"]
    assert 0 < found["min_share"] <= found["share"] <= found["max_share"]
    assert len(found["shuffled"]) == 2
    controls = [name for name in steps if name not in (learned, "base")]
    assert len(controls) == 8
    assert all(0 <= steps[name]["top1"] <= 1 and steps[name]["epochs"] >= 1 for name in controls)
    assert steps["uniform R = 2, r = 1"]["share"] < 1 == steps["base, fine-tuned as long"]["share"]
    again = run(tmp_path)
    assert "seed 0:" in first.stdout
    assert "seed 0:" not in again.stdout  # all is there
    assert first.stdout.endswith(again.stdout)  # the table
    assert "has other settings" in run(tmp_path, "--lr", "1").stderr


@needs_data
def test_no_clip_is_in_two_parts(parts):
    assert {name: len(part.clips) for name, part in parts.items()} == {"train": 32, "val": 8, "test": 20}
    seen = {(clip.shape, clip.tobytes()) for part in parts.values() for clip in part.clips}
    assert len(seen) == 60


@needs_data
def test_loaders_change_frames_and_size(parts):
    from avletters_parts.clips import Loader

    (batch,) = Loader(parts["test"], batch_size=20, frames=10, scale=0.5)
    assert batch["video"].shape == (20, 1, 10, 21, 27)
    loader = Loader(parts["train"], training=True)
    first, second = (next(iter(loader))["video"] for _ in range(2))
    loader.set_epoch(0)
    torch.testing.assert_close(next(iter(loader))["video"], first, rtol=0, atol=0)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["resnet", "x3d", "r2plus1d"])
def test_networks_take_the_clips_of_every_control(name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from avletters_parts.clips import CROP, FRAMES
    from avletters_parts.networks import make_network

    network = make_network(name, num_classes=3, width=8).eval()
    usual = torch.randn(2, 1, FRAMES, *CROP)
    dynamic = vr.convert(network, usual, vr.ConvertConfig(granularity="block"))
    for frames, scale in ((FRAMES, 1.0), (1, 1.0), (10, 1.0), (FRAMES, 0.3)):
        clips = torch.randn(2, 1, frames, *(round(scale * side) for side in CROP))
        torch.testing.assert_close(dynamic(clips), network(clips))
        assert network(clips).shape == (2, 3)


def test_a_cascade_pays_for_both(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from avletters_parts.cascade import _outcome

    confidence = torch.tensor([[0.9, 0.2], [0.9, 0.8]])
    right = torch.tensor([[True, False], [False, True]])
    accuracy, share = _outcome(confidence, right, torch.tensor([1.0, 0.25]), 1, 0.5)
    assert (accuracy, share) == (1.0, 0.75)  # 0.25 for both clips, 1.0 more for the unsure one


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_the_page_has_the_table_of_the_committed_results(path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from avletters_parts.table import table

    assert table(json.loads(path.read_text())) in (ROOT / "docs" / "accuracy.md").read_text()
