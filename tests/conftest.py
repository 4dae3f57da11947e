"""What all tests share: this folder's `networks`, the same examples in every run, a watch over models."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import nn

from vared2_fx.data.scenes import generate_scenes

settings.register_profile("same_every_run", deadline=None, derandomize=True, print_blob=False)
settings.load_profile("same_every_run")

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes: each has a processor, and torch one thread
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def scene_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and val/ with two generated scenes of each of nine classes."""
    root = tmp_path_factory.mktemp("scene_folders")
    for seed, split in enumerate(("train", "val")):
        generate_scenes(root / split, videos_per_class=2, seed=seed)
    return root


@pytest.fixture
def one_thread():
    """Torch on one thread, for what has to agree with another process: products of matrices round by their number."""
    with threads(1):
        yield


@pytest.fixture
def two_threads():
    """Torch on two threads: with one it gives no 1×1 kernel to oneDNN, whatever the map."""
    with threads(2):
        yield


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def untouched():
    """A context in which nothing of a module may change: values, versions, modes, hooks, attributes."""

    @contextmanager
    def watch(model: nn.Module) -> Iterator[None]:
        before, values = _all_of(model), {name: value.clone() for name, value in model.state_dict().items()}
        yield
        assert _all_of(model) == before
        assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())

    return watch


def _all_of(model: nn.Module) -> dict[str, object]:
    parts: dict[str, object] = {}
    for path, module in model.named_modules():
        parts[path] = id(module), module.training, sorted(vars(module))
        parts[f"{path} hooks"] = [(name, len(v)) for name, v in sorted(vars(module).items()) if name.endswith("_hooks")]
    for name, parameter in model.named_parameters():
        parts[name] = id(parameter), parameter._version, parameter.requires_grad, parameter.grad
    for name, buffer in model.named_buffers():
        parts[name] = id(buffer), buffer._version
    return parts
