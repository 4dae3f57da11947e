"""OpenVINO's telemetry forks the process for each event of a conversion: not while we convert."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, time
import torch
from torch import nn
import openvino_telemetry
import openvino
import vared2_fx as vr

telemetry = openvino_telemetry.Telemetry()
while telemetry.sender.queue_size:  # of the import
    time.sleep(0.1)
forks = []
os.register_at_fork(before=lambda: forks.append(1))
network = nn.Sequential(nn.Conv3d(3, 4, 3), nn.ReLU()).eval()
vr.deploy(network, "openvino", example_inputs=torch.randn(1, 3, 4, 16, 16))
print("deployed", len(forks), openvino_telemetry.Telemetry().consent)
"""


def test_a_conversion_forks_nothing(tmp_path):
    pytest.importorskip("openvino_telemetry")
    inherited = {name: value for name, value in os.environ.items() if name not in {"CI", "TF_BUILD", "JENKINS_URL"}}
    environment = {**inherited, "HOME": str(tmp_path)}  # where nobody has declined yet
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, timeout=200)
    assert done.stdout.splitlines() == ["deployed 0 True"], done.stderr
