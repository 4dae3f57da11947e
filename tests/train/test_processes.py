"""Runs in processes of their own: killed in the middle, and several at once."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import DistributedType
from ddp_run import LOST, start
from small import bright_or_dark

import vared2_fx as vr
from vared2_fx.errors import TrainError
from vared2_fx.train.setup import check_whole_weights

HERE = Path(__file__).parent
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join((str(HERE.parents[1]), str(HERE))), "OMP_NUM_THREADS": "1"}
RUN = str(HERE / "ddp_run.py")


def run(*command: str) -> int:
    return subprocess.run([sys.executable, *command], env=ENVIRONMENT, timeout=250).returncode


LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "final.pt", weights_only=True)


@pytest.mark.parametrize(
    ("batches", "kind"),
    [
        ("6", ("joint", "conv")),  # in the second epoch of four steps
        ("6", ("variants_first", "block")),  # in the first, after the norms were measured on four
    ],
)
def test_killed_and_resumed_ends_as_if_it_had_not_been(tmp_path, batches, kind):
    assert run(RUN, str(tmp_path / "whole"), "16", "-1", *kind) == 0
    assert run(RUN, str(tmp_path / "killed"), "16", batches, *kind) == -signal.SIGKILL
    assert not (tmp_path / "killed/final.pt").exists()
    assert run(RUN, str(tmp_path / "killed"), "16", "-1", *kind) == 0
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_two_processes_killed_and_resumed_draw_on(tmp_path):
    """Accelerate gives their samplers a generator, and does not save it."""
    assert run(*LAUNCH, RUN, str(tmp_path / "whole"), "8", "-1") == 0
    assert run(*LAUNCH, RUN, str(tmp_path / "killed"), "8", "7") != 0
    assert not (tmp_path / "killed/final.pt").exists()
    assert (tmp_path / "killed/last/progress.json").exists()
    assert run(*LAUNCH, RUN, str(tmp_path / "killed"), "8", "-1") == 0
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


@pytest.mark.parametrize(("mode", "failed"), [((), 0), (("lost",), len(LOST))], ids=["all clips", "some lost"])
def test_two_processes_are_one_with_twice_the_batch(tmp_path, mode, failed):
    assert run(*LAUNCH, RUN, str(tmp_path / "two"), "8", *mode) == 0
    assert run(RUN, str(tmp_path / "one"), "16", *mode) == 0
    assert json.loads((tmp_path / "two/failed.json").read_text()) == [0, failed, failed, failed]
    one, two = (json.loads((tmp_path / name / "losses.json").read_text()) for name in ("one", "two"))
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=1e-4, atol=1e-5)
    expected, found = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in expected.items():  # sums are taken in another order
        # A bias in front of a norm has no gradient but rounding, which Adam makes as large as any other.
        if not name.endswith(("gate.hidden.bias", "gate.norm.running_mean")):
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-3, msg=lambda text, at=name: at + text)


def test_two_processes_measure_blocks_on_the_clips_of_both(tmp_path):
    assert run(*LAUNCH, RUN, str(tmp_path), "8", "still", "joint", "block") == 0
    batches = bright_or_dark(64, 1).tensors[0].split(8)
    halves = []
    for part in (batches[::2], batches[1::2]):
        dynamic = start("block")
        vr.recalibrate_norms(dynamic, part)
        halves.append(dynamic.state_dict())
    found = {name: value for name, value in weights(tmp_path).items() if ".statistics." in name and "running" in name}
    assert found
    for name, value in found.items():
        torch.testing.assert_close(value, (halves[0][name] + halves[1][name]) / 2)
    assert any(not torch.allclose(value, halves[0][name]) for name, value in found.items())


def test_processes_share_clips_but_not_draws(tmp_path):
    assert run(*LAUNCH, str(HERE / "ddp_draws.py"), str(tmp_path)) == 0
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for a, b in zip(first["epochs"], second["epochs"], strict=True):
        assert sorted(a + b) == list(range(32))
    assert first["epochs"][0] != first["epochs"][1]
    assert first["draw"] != second["draw"]
    assert "of a list each would get all" in first["refused"]
    assert first["processes"] == second["processes"] == 2, "also in a run of another precision"


@pytest.fixture(scope="module")
def apart(tmp_path_factory) -> list[dict[str, Any]]:
    """What two processes found that differ in what they evaluate, and in the folder that they go on from."""
    folder = tmp_path_factory.mktemp("apart")
    assert run(*LAUNCH, str(HERE / "ddp_apart.py"), str(folder)) == 0
    assert not (folder / "elsewhere").exists()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_the_first_process_decides_for_all(apart):
    """Its evaluations are what patience, the target's steering and the choice of the best epoch go by."""
    first, second = apart
    assert len(first["history"]) > 2
    assert first["history"] == second["history"]
    assert first["shares"] == second["shares"] == [epoch["share"] for epoch in first["history"]]


def test_processes_that_do_not_find_the_same_run_are_all_refused(apart):
    said = r"process 0 finds a run after epoch \d .*, process 1 nothing; .* all machines share"
    assert all(re.search(said, found["refused"]) for found in apart)


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_weights_in_parts_are_refused(kind):
    assert DistributedType[kind].value == kind
    with pytest.raises(TrainError, match=f"launched with {kind}, which splits the weights.*Launch with torchrun"):
        check_whole_weights(kind)
    for plain in ("NO", "MULTI_CPU", "MULTI_GPU"):
        check_whole_weights(DistributedType[plain].value)
