"""OpenVINO's plugin gives the thread a stack for signals; it has to outlive what we make."""

import subprocess
import sys

import pytest

pytest.importorskip("openvino", reason="pip install 'vared2_fx[openvino]' brings openvino")

PROGRAM = """
import ctypes, gc, signal, subprocess, torch
from torch import nn
import vared2_fx as vr

class Stack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

def is_mapped(address):
    ranges = [line.split()[0].split("-") for line in open("/proc/self/maps")]
    return any(int(start, 16) <= address < int(end, 16) for start, end in ranges)

def deployed():
    net = nn.Sequential(nn.Conv3d(3, 8, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten()).eval()
    return vr.deploy(net, "openvino", example_inputs=torch.randn(1, 3, 4, 8, 8))

first, second = deployed(), deployed()
del first
gc.collect()
del second
gc.collect()
stack = Stack()
ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
assert stack.start is None or is_mapped(stack.start), "the stack for signals is gone"
signal.signal(signal.SIGCHLD, lambda number, frame: None)  # as torch's DataLoader does
for _ in range(10):
    subprocess.run([EXECUTABLE, "-c", ""], check=True)
print("alive")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_signals_arrive_after_networks_are_gone():
    program = f"EXECUTABLE = {sys.executable!r}\n{PROGRAM}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
