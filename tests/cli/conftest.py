"""Running `vared2` in this process, in a folder with a network of the user's own; and videos."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from real_videos import parametrize_real_clips
from typer.testing import CliRunner, Result

from vared2_fx.cli import app
from vared2_fx.data.scenes import generate_scenes

MY_NETS = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(3, 12, 3, stride=(1, 2, 2), padding=1), nn.BatchNorm3d(12), nn.ReLU(),
        nn.Conv3d(12, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 9),
    ).eval()

class Fragile(nn.Module):
    def forward(self, x):
        if type(x) is torch.Tensor:
            raise RuntimeError("only real clips break this")
        return x

def fragile():
    return nn.Sequential(*build(), Fragile())

def fails():
    raise OSError("no weights here")

def gives_three():
    return 3

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 12, 3, padding=1)
    def forward(self, x):
        return self.conv(x if x.sum() > 0 else -x)

def branching():
    return nn.Sequential(Branching(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(12, 9)).eval()

class Interrupting(nn.Module):
    calls = 0
    def forward(self, x):
        self.calls += self.training
        if self.calls == 5:
            raise KeyboardInterrupt
        return x

def interrupting():
    return nn.Sequential(*build(), Interrupting())

def interrupted():
    raise KeyboardInterrupt

number = 3
"""

Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder while a test runs; it has mynets.py."""
    (tmp_path / "mynets.py").write_text(MY_NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mynets", raising=False)
    return tmp_path


@pytest.fixture
def run(folder) -> Run:
    """Run `vared2` with words; expects success unless `code` says otherwise."""

    def run_words(*words: str | Path, code: int = 0) -> Result:
        result = CliRunner().invoke(app, [str(word) for word in words], prog_name="vared2")
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    yield run_words
    sys.modules.pop("mynets", None)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """train/ and val/ with two small videos of each of nine classes."""
    root = tmp_path_factory.mktemp("scenes")
    for seed, split in enumerate(("train", "val")):
        generate_scenes(root / split, videos_per_class=2, seed=seed, num_frames=8, size=32)
    return root


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize_real_clips(metafunc, quick={"carphone_distorted.mp4", "test.avi"})
