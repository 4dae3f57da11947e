"""A tiny network whose gates decide at random, and clips for it."""

import pytest
import torch
from bundles import CLASSES, CLIP
from networks import make_clip, randomise_gates, randomise_rebuilds, tiny_net

import vared2_fx as vr

NUM_CLIPS = 24


@pytest.fixture(scope="package")
def clips():
    return make_clip(NUM_CLIPS, 3, 8, 16, 16, seed=3)


@pytest.fixture(scope="package")
def dynamic(clips):
    torch.manual_seed(0)
    network = vr.convert(tiny_net(), clips[:2], vr.ConvertConfig(frame_strides=(1, 2), min_channels=4))
    return randomise_gates(randomise_rebuilds(network), clips).eval()


@pytest.fixture(scope="package")
def labels(dynamic, clips):
    """Right for two of three clips."""
    with torch.no_grad():
        answers = dynamic(clips).argmax(1)
    return torch.where(torch.arange(NUM_CLIPS) % 3 == 0, (answers + 1) % 5, answers)


@pytest.fixture(scope="package")
def loader(clips, labels):
    return [(clips[i : i + 10], labels[i : i + 10]) for i in range(0, NUM_CLIPS, 10)]


@pytest.fixture(scope="package")
def routed(dynamic, loader):
    return vr.train_router(dynamic, vr.find_routes(dynamic, loader), loader, loader, epochs=10)


@pytest.fixture(scope="package")
def deployed(routed):
    """In onnxruntime; deployed once, as exporting takes its time."""
    return vr.deploy_routed(routed, "onnx", threads=1)


@pytest.fixture(scope="package")
def folder(deployed, tmp_path_factory):
    """A bundle of it; not to be changed."""
    return vr.export_bundle(deployed, tmp_path_factory.mktemp("routes") / "bundle", clip=CLIP, classes=CLASSES)
