"""What a run is set up with, after another in the same process."""

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from small import config, loaders, small_net

import vared2_fx as vr
from vared2_fx.train.setup import make_accelerator


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_each_run_has_the_device_that_it_asks_for(monkeypatch, precision):
    """Accelerate is told of a graphics card that is not there; nothing is moved to it."""
    monkeypatch.setattr(PartialState, "default_device", torch.device("mps"))
    try:
        for on_cpu, device in ((True, "cpu"), (False, "mps"), (True, "cpu")):
            accelerator = make_accelerator(config(mixed_precision=precision), on_cpu=on_cpu)
            assert accelerator.device.type == PartialState().device.type == device
            assert accelerator.mixed_precision == precision
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.gpu
def test_runs_on_one_device_after_another_stay_on_theirs():
    for device in ("cpu", "cuda", "cpu"):
        dynamic = vr.convert(small_net()).to(device)
        vr.finetune(dynamic, *loaders(), config(epochs=1))
        assert {parameter.device.type for parameter in dynamic.parameters()} == {device}
