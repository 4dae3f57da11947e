"""`vared2 finetune` in several processes, as torchrun and accelerate launch it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    "accelerate": ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_train_one_network(launcher, folder, scenes):
    options = ("--frames", "4", "--size", "16", "--batch-size", "3", "--workers", "0", "--device", "cpu")
    data = ("--train", str(scenes / "train"), "--val", str(scenes / "val"))
    more = ("--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1")
    words = (*LAUNCHERS[launcher], *(more if launcher == "accelerate" else ()), "-m", "vared2_fx", "finetune")
    done = subprocess.run(
        [sys.executable, "-m", *words, "mynets:build", *data, *options, "--epochs", "1", "--out", "run", "--json"],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(folder))), "OMP_NUM_THREADS": "1"}
        | {"ACCELERATE_USE_CPU": "true"},  # its option --cpu would start a single process
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)  # one answer, not one of each process
    assert [epoch["epoch"] for epoch in document["history"]] == [0, 1]
    assert document["num_clips"] == 18
    assert "training clips: 0 failed in 1 epochs" in done.stderr  # counted over processes, not by one's loader
    assert len((folder / "run/log.jsonl").read_text().splitlines()) == 2
    assert (folder / "run/best/model.safetensors").exists()
