"""Small videos of our own, and the folder of other people's videos where there is one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_videos import encode, steps
from real_videos import FOLDER, NONE, parametrize_real_clips

from vared2_fx.data import ClipConfig

WriteVideo = Callable[..., Path]


@pytest.fixture
def write_video(tmp_path: Path) -> WriteVideo:
    def write(name: str = "a.mp4", num_frames: int = 20, height: int = 24, width: int = 32, **kwargs) -> Path:
        return encode(tmp_path / name, steps(num_frames, height, width), **kwargs)

    return write


@pytest.fixture
def clip_config() -> ClipConfig:
    """8 frames of 16 x 16 at the 10 frames per second of `encode`; values stay 0...1."""
    return ClipConfig(frames=8, crop=16, short_side=20, fps=10, mean=(0, 0, 0), std=(1, 1, 1))


@pytest.fixture
def video_folder(tmp_path: Path) -> Path:
    """Two classes of three videos."""
    for name, offset in (("dark", 0), ("light", 100)):
        for i in range(3):
            encode(tmp_path / "set" / name / f"{i}.mp4", steps(12) + np.uint8(offset))
    return tmp_path / "set"


@pytest.fixture
def real_clip_folder() -> Path:
    if not FOLDER.is_dir():
        pytest.skip(NONE)
    return FOLDER


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize_real_clips(metafunc)
