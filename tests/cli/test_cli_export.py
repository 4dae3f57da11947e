"""`vared2 export` and `vared2 predict`."""

import json
import shutil
import sys
from dataclasses import asdict, replace

import pytest
import torch
from networks import randomise_gates

import vared2_fx as vr
from vared2_fx.data import ClipConfig

OPTIONS = ("--batch-size", "6", "--routes", "3", "--threads", "1")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The demo's network, its gates at random."""
    folder = tmp_path_factory.mktemp("nets") / "converted"
    torch.manual_seed(0)
    config = vr.ConvertConfig(granularity="block", channel_shares=(1.0,), frame_strides=(1, 2))
    network = vr.convert(vr.zoo.load("vared2_demo", pretrained=True), config=config)
    vr.save(randomise_gates(network, vr.zoo.spec("vared2_demo").example_inputs(9)), folder)
    return folder


@pytest.fixture
def bundle(run, converted, scenes, tmp_path):
    data = ("--train", scenes / "train", "--val", scenes / "val")
    joint = ("--joint", scenes / "train", "--joint-epochs", "1")
    result = run("export", converted, *data, *joint, "--out", tmp_path / "bundle", *OPTIONS, "--json")
    assert "fine-tuned together" in result.stderr
    document = json.loads(result.stdout)
    assert document["engine"] == "onnx"
    assert document["curve"][-1]["quality"] >= document["curve"][0]["quality"]
    return tmp_path / "bundle"


def test_from_a_network_to_answers(run, bundle, scenes, tmp_path):
    result = run("predict", bundle, scenes / "val", "--batch-size", "4", "--threads", "1")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(lines) == 18
    assert {line["class"] for line in lines} <= {path.name for path in (scenes / "val").iterdir()}
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    result = run("predict", bundle, lines[0]["video"], tmp_path / "broken.mp4", "--budget", "0.5", code=4)
    assert "1 of 2 videos could not be answered" in result.stderr
    (cheapest,) = map(json.loads, run("predict", bundle, lines[0]["video"], "--target-ms", "1e-6").stdout.splitlines())
    assert cheapest["macs"] <= lines[0]["macs"]
    assert "target_ms=0" in run("predict", bundle, scenes / "val", "--target-ms", "0", code=2).stderr
    assert "budget=-1" in run("predict", bundle, scenes / "val", "--budget", "-1", code=2).stderr


def offsets(bundle):
    return json.loads((bundle / "bundle.json").read_text())["clip"]["offsets_s"]


def test_clips_are_cut_as_for_fine_tuning(run, converted, scenes, folder):
    """As what fine-tuning wrote beside the network says, or as the options say; labels are not needed."""
    words = ("--train", scenes / "train", "--val", scenes / "val", *OPTIONS, "--no-labels")
    shutil.copytree(converted, folder / "net")
    config = ClipConfig.from_spec(vr.zoo.spec("vared2_demo"))
    (folder / "net/clip.json").write_text(json.dumps(asdict(replace(config, sampling_rate=2, mean=(0.5, 0.5, 0.5)))))
    result = run("export", "net", *words, "--out", "as_tuned")
    assert "clips as in net/clip.json" in result.stderr
    assert offsets(folder / "as_tuned") == replace(config, sampling_rate=2).times_s(0.0)
    assert json.loads((folder / "as_tuned/bundle.json").read_text())["clip"]["mean"] == [0.5] * 3
    run("export", "net", *words, "--out", "as_said", "--sampling-rate", "1")
    assert offsets(folder / "as_said") == config.times_s(0.0)
    for damaged in ("{}", "no JSON", '{"frames": "many"}'):
        (folder / "net/clip.json").write_text(damaged)
        result = run("export", "net", *words, "--out", "none", code=2)
        assert "net/clip.json does not say how clips are cut" in result.stderr


def test_mistakes_are_said(run, converted, scenes, tmp_path):
    data = ("--train", scenes / "train", "--val", scenes / "val", "--out", tmp_path / "bundle")
    assert "is not converted" in run("export", "x3d_xs", *data, code=2).stderr
    assert "a bundle is for onnx or openvino" in run("export", converted, *data, "--engine", "torch", code=2).stderr
    assert "holds what is no bundle" in run("export", converted, *data[:4], "--out", scenes, code=2).stderr
    for option in ("--train", "--val", "--joint"):
        words = (*data, option, "none")  # the last one counts
        assert f"{option} none: there is no such folder" in run("export", converted, *words, code=2).stderr
    assert "Is none an exported bundle?" in run("predict", "none", scenes / "val", code=2).stderr
    assert not (tmp_path / "bundle").exists()


@pytest.fixture
def untrained(monkeypatch):
    """Fails where routes would be looked for: what is wrong has to be found before."""
    monkeypatch.setattr("vared2_fx.routes.find_routes", lambda *_, **__: pytest.fail("too late"))


def test_what_will_go_wrong_is_said_before_anything_is_trained(
    run, converted, scenes, folder, tmp_path, untrained, monkeypatch
):
    data = ("--train", scenes / "train", "--val", scenes / "val")
    out = ("--out", tmp_path / "bundle")
    (tmp_path / "file").touch()
    words = ("export", converted, *data, "--out", tmp_path / "file" / "bundle")
    assert "cannot be written" in run(*words, code=2).stderr
    (tmp_path / "names.txt").write_text("".join(f"{path.name}\n" for path in (scenes / "val").iterdir()) + "more\n")
    words = ("export", converted, *data, *out, "--classes", tmp_path / "names.txt")
    assert "answers with 9 classes, but --train has 10" in run(*words, code=2).stderr
    (tmp_path / "other" / "nobody").mkdir(parents=True)
    shutil.copy(next((scenes / "val").glob("*/*.mp4")), tmp_path / "other" / "nobody")
    assert "nobody" in run("export", converted, *data, *out, "--joint", tmp_path / "other", code=2).stderr
    assert "--device nowhere" in run("export", converted, *data, *out, "--device", "nowhere", code=2).stderr
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # to import it is an error
    assert "needs onnxscript" in run("export", converted, *data, *out, code=2).stderr
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_networks_that_take_no_clips_are_refused(run, scenes, tmp_path, untrained):
    data = ("--train", scenes / "train", "--val", scenes / "val", "--out", tmp_path / "bundle")
    run("convert", "slowfast_r50", "--num-classes", "9", "--out", tmp_path / "net")
    assert "several tensors or single images" in run("export", tmp_path / "net", *data, code=2).stderr
