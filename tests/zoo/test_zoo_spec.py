"""Spec: what it refuses, its example clips, and how quiet looking things up is."""

import dataclasses
import subprocess
import sys

import pytest
import torch

from vared2_fx import zoo
from vared2_fx.errors import ZooError


def test_example_inputs_are_always_the_same_clips():
    spec = zoo.spec("x3d_xs")
    before = torch.get_rng_state()
    clips = spec.example_inputs(batch=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert (clips.shape, clips.dtype) == ((2, 3, 4, 182, 182), torch.float32)
    assert torch.equal(clips, spec.example_inputs(batch=2))
    assert not torch.equal(clips[0], clips[1])


def test_spec_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        zoo.spec("x3d_xs").frames = 8


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"frames": 0}, "frames=0"),
        ({"fps": -1.0}, r"fps=-1\.0"),
        ({"fps": float("nan")}, "fps=nan"),
        ({"crop": 183}, "183 pixels does not fit a short side of 182"),
        ({"std": (0.2, 0.2, 0.0)}, "std above 0"),
        ({"mean": (0.4, 0.4)}, "three numbers"),
    ],
)
def test_impossible_specs_are_refused(change, text):
    with pytest.raises(ZooError, match=text):
        dataclasses.replace(zoo.spec("x3d_xs"), **change)


@pytest.mark.parametrize(("name", "near"), [("x3d_ms", "x3d_m"), ("r3d18", "r3d_18"), ("slow_r_50", "slow_r50")])
@pytest.mark.parametrize("ask", [zoo.spec, zoo.load])
def test_unknown_name_lists_near_and_all_names(ask, name, near):
    with pytest.raises(ZooError, match=rf"no network '{name}'\. Did you mean .*{near}.*vared2 zoo") as error:
        ask(name)
    assert all(known in str(error.value) for known in zoo.names())


def test_name_like_no_other_gets_no_guess():
    with pytest.raises(ZooError) as error:
        zoo.spec("?")
    assert "Did you mean" not in str(error.value)


QUIET = """
import sys, warnings
from vared2_fx import zoo
zoo.spec(zoo.names()[0]).example_inputs()
assert "pytorchvideo" not in sys.modules, "looking up a spec imported pytorchvideo"
import torch
with warnings.catch_warnings(record=True) as seen, torch.device("meta"):
    warnings.simplefilter("always")
    zoo.load("x3d_xs")
    zoo.load("r3d_18")
assert not seen, seen[0]
"""


def test_lookup_imports_no_library_and_building_warns_of_nothing():
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
