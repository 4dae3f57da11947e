"""`vared2 demo`, whole: what it prints has to be true of what it writes."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import vared2_fx as vr
from vared2_fx import demo
from vared2_fx.cli import app
from vared2_fx.errors import DataError

LOST_AT_MOST = 0.01
"""As vared2_fx/demo.py promises: of 270 answers two."""
OUTPUT = Path(__file__).parent.parent / "benchmarks" / "results" / "demo.txt"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_runs_and_its_claims_hold(tmp_path):
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo")])
    assert result.exit_code == 0, result.output
    numbers = json.loads((tmp_path / "demo" / "demo.json").read_text())
    kinds = numbers["share_per_kind"]
    assert numbers["share"] <= 0.65
    assert numbers["top1_after"] >= numbers["top1_before"] - LOST_AT_MOST
    assert kinds["static"] < min(kinds["moving"], kinds["shaking"], kinds["zooming"])
    assert "same answer on 270 of 270 clips" in result.output
    assert vr.load(tmp_path / "demo" / "dynamic")(vr.zoo.spec("vared2_demo").example_inputs()).shape == (1, 9)


def test_the_committed_output_keeps_the_promise():
    lines = re.findall(r"^(?:Base network|Fine-tuned \().* top-1 (\S+) %.*, (\S+) % of", OUTPUT.read_text(), re.M)
    (before, _), (after, share) = (map(float, line) for line in lines[-2:])
    assert after >= before - 100 * LOST_AT_MOST
    assert share <= 65


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="choose another folder"):
        demo.run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
