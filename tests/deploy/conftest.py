"""Engines that are there, and one deployed network for each."""

import shutil
from importlib.util import find_spec

import pytest
from networks import make_clip, tiny_net

import vared2_fx as vr

CLIP = make_clip(1, 3, 8, 16, 16)
NEEDS = {"torch": (), "compile": (), "onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}


def why_not(engine: str) -> str:
    """Why an engine cannot be tested here; empty if it can."""
    if engine == "compile":
        return "" if shutil.which("g++") or shutil.which("clang++") else "torch.compile needs a C++ compiler"
    missing = [package for package in NEEDS[engine] if find_spec(package) is None]
    return f"pip install 'vared2_fx[{engine}]' brings {', '.join(missing)}" if missing else ""


def engines(*names: str, slow: tuple[str, ...] = ()) -> list[object]:
    """Engines as parameters, skipped with the reason where they are missing."""
    marks = {name: [pytest.mark.skipif(bool(why_not(name)), reason=why_not(name))] for name in names}
    return [pytest.param(e, marks=marks[e] + [pytest.mark.slow] * (e in slow)) for e in names]


@pytest.fixture(scope="session")
def made():
    """A tiny network in an engine, made once."""
    known: dict[tuple[str, str], vr.Deployed] = {}

    def get(engine: str, precision: str = "fp32") -> vr.Deployed:
        if (engine, precision) not in known:
            known[engine, precision] = vr.deploy(tiny_net(), engine, precision=precision, example_inputs=CLIP)
        return known[engine, precision]

    return get


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", engines(*NEEDS))
    if "quick_engine" in metafunc.fixturenames:  # torch.compile takes about ten seconds for each network
        metafunc.parametrize("quick_engine", engines(*NEEDS, slow=("compile",)))
    if "zoo_engine" in metafunc.fixturenames:
        metafunc.parametrize("zoo_engine", engines("torch", "onnx", "openvino"))
