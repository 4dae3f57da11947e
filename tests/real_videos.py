"""Other people's videos, where there are some."""

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("VARED2_DATA", Path(__file__).parents[2] / "shared/data")) / "clips"
NONE = "no real videos in ../shared/data/clips; VARED2_DATA may name another folder that has clips/"


def parametrize_real_clips(metafunc: pytest.Metafunc, quick: set[str] | None = None) -> None:
    """Run a test that takes `real_clip` on each of them; those not in `quick` are slow. None: all are quick."""
    if "real_clip" not in metafunc.fixturenames:
        return
    clips = [
        pytest.param(path, id=path.name, marks=[] if quick is None or path.name in quick else [pytest.mark.slow])
        for path in sorted(FOLDER.glob("*"))
        if path.suffix != ".txt"
    ]
    metafunc.parametrize("real_clip", clips or [pytest.param(None, marks=pytest.mark.skip(reason=NONE))])
