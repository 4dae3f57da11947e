"""Deployed networks on disk: the same answers afterwards, and no answer from what was changed."""

import json
from pathlib import Path

import pytest
import torch
from networks import make_clip, tiny_net

import vared2_fx as vr
from vared2_fx.deploy.files import MANIFEST, write
from vared2_fx.errors import DeployError
from vared2_fx.typed_json import digest

CLIP = make_clip(2, 3, 8, 16, 16)


def changed(folder: Path, **values: object) -> None:
    """Change the manifest, and its checksum with it."""
    path = folder / MANIFEST
    document = json.loads(path.read_text())
    document.update(values)
    document.pop("sha256")
    path.write_text(json.dumps({**document, "sha256": digest(document)}))


@pytest.fixture
def saved(made, tmp_path):
    return made("torch").save(tmp_path / "saved")


def test_it_answers_the_same(engine, made, tmp_path):
    deployed = made(engine)
    again = vr.load_deployed(deployed.save(tmp_path / "a" / "b"))
    torch.testing.assert_close(again(CLIP), deployed(CLIP), rtol=0, atol=0)
    assert str(again) == str(deployed)
    assert (again.signature, again.parity) == (deployed.signature, deployed.parity)


def test_precision_and_threads_are_kept(quick_engine, tmp_path):
    able = quick_engine != "onnx" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    precision = "bf16" if able else "fp32"
    deployed = vr.deploy(tiny_net(), quick_engine, precision=precision, example_inputs=CLIP[:1], threads=1)
    again = vr.load_deployed(deployed.save(tmp_path))
    assert (again.precision, again.threads) == (precision, 1)
    torch.testing.assert_close(again(CLIP), deployed(CLIP), rtol=0, atol=0)
    assert vr.load_deployed(tmp_path, threads=2).threads == 2


def test_what_was_loaded_can_be_saved(engine, made, tmp_path):
    first = made(engine).save(tmp_path / "first")
    second = vr.load_deployed(first).save(tmp_path / "second")
    torch.testing.assert_close(vr.load_deployed(second)(CLIP), made(engine)(CLIP), rtol=0, atol=0)


def test_a_save_replaces_the_one_before(made, saved):
    before = set(saved.iterdir())
    other = vr.deploy(tiny_net(seed=1), example_inputs=CLIP[:1])
    assert other.save(saved) == saved
    assert len(set(saved.iterdir()) & before) == 1  # the manifest alone has the same name
    assert len(list(saved.iterdir())) == 2
    torch.testing.assert_close(vr.load_deployed(saved)(CLIP), other(CLIP), rtol=0, atol=0)


@pytest.mark.parametrize("moment", ["write", "manifest"])
def test_a_save_that_fails_leaves_the_one_before(made, saved, monkeypatch, moment):
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    other = vr.deploy(tiny_net(seed=1), example_inputs=CLIP[:1])
    monkeypatch.setattr(*((type(other.engine), "write") if moment == "write" else (Path, "write_text")), full)
    with pytest.raises(DeployError, match="cannot be written: No space left on device"):
        other.save(saved)
    monkeypatch.undo()
    torch.testing.assert_close(vr.load_deployed(saved)(CLIP), made("torch")(CLIP), rtol=0, atol=0)
    assert not list(saved.glob("*.parts"))
    other.save(saved)
    assert len(list(saved.iterdir())) == 2


def test_every_file_is_watched(engine, made, tmp_path):
    folder = made(engine).save(tmp_path)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for damaged in (whole[:-1], whole[: len(whole) // 2], b"", whole[:100] + b"x" + whole[101:]):
            path.write_bytes(damaged)
            with pytest.raises(DeployError, match=f"load_deployed: {path}"):
                vr.load_deployed(folder)
        path.unlink()
        with pytest.raises(DeployError, match="cannot be read: No such file"):
            vr.load_deployed(folder)
        path.write_bytes(whole)
    vr.load_deployed(folder)


def test_another_version(saved):
    changed(saved, format_version=2)
    with pytest.raises(DeployError, match="has format version 2, this release reads 1"):
        vr.load_deployed(saved)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"engine": "tensorrt"}, "engine is 'tensorrt'"),
        ({"precision": 8}, "precision is 8"),
        ({"threads": "many"}, "threads is 'many'"),
        ({"files": {"../../secret.pt2": "0" * 64}}, "files has '../../secret.pt2'"),
        ({"files": {"program.pt2": "../x"}}, "files has 'program.pt2'"),
        ({"signature": {"inputs": []}}, "signature lacks nesting, output"),
        ({"parity": None}, "parity is None"),
        ({"notes": "text"}, "notes is 'text'"),
    ],
)
def test_values_that_cannot_be(saved, values, message):
    changed(saved, **values)
    with pytest.raises(DeployError, match=f"holds what cannot be: .*{message}"):
        vr.load_deployed(saved)


def test_a_manifest_that_is_none(saved):
    for text, message in (
        ("{", "is no valid JSON"),
        ("[]", "has format version None"),
        ('{"format_version": 1}', "lacks"),
    ):
        (saved / MANIFEST).write_text(text)
        with pytest.raises(DeployError, match=message):
            vr.load_deployed(saved)


def test_a_file_of_another_engine(made, saved):
    name, checksum = next(iter(json.loads((saved / MANIFEST).read_text())["files"].items()))
    path = saved / f"program.{checksum}.pt2"
    path.write_bytes(b"no program")
    from vared2_fx.disk import sha256

    path = path.rename(saved / f"program.{sha256(path)}.pt2")
    changed(saved, files={name: sha256(path)})
    with pytest.raises(DeployError, match=r"torch cannot read .* deploy the network again"):
        vr.load_deployed(saved)


def test_a_folder_that_is_a_file(made, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DeployError, match="cannot be written"):
        write(made("torch"), tmp_path / "file")
    with pytest.raises(DeployError, match="cannot be read"):
        vr.load_deployed(tmp_path / "nowhere")


@pytest.mark.parametrize("threads", [0, -1, True])
def test_threads_that_cannot_be(saved, threads):
    with pytest.raises(DeployError, match=f"load_deployed: threads={threads}; it must be a number of at least 1"):
        vr.load_deployed(saved, threads=threads)
