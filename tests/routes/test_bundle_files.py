"""A bundle's files: what was changed is refused, and what an export replaces."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import CLASSES, CLIP, rewritten

import vared2_fx as vr
from vared2_fx import runtime
from vared2_fx.data import ClipConfig
from vared2_fx.disk import sha256
from vared2_fx.errors import DeployError
from vared2_fx.routes.bundle import _compare
from vared2_fx.runtime import Bundle, BundleError


@pytest.fixture
def copy(folder, tmp_path):
    """One that may be damaged."""
    shutil.copytree(folder, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.mark.parametrize("change", ["truncated", "flipped", "missing", "link"])
def test_a_damaged_file_is_refused(copy, change):
    for path in sorted([*copy.glob("*.onnx"), copy / "runtime.py"]):
        data = path.read_bytes()
        path.unlink()
        if change == "truncated":
            path.write_bytes(data[:-1])
        elif change == "flipped":
            path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
        elif change == "link":
            (copy.parent / path.name).write_bytes(data)
            path.symlink_to(copy.parent / path.name)
        with pytest.raises(BundleError, match=path.name):
            Bundle(copy)
        path.unlink(missing_ok=True)
        path.write_bytes(data)
    Bundle(copy)


def test_a_changed_manifest_is_refused(copy):
    text = (copy / runtime.MANIFEST).read_text()
    for changed in (text.replace('"default_budget": ', '"default_budget": 1'), text[:-20], "[]", "{}", ""):
        (copy / runtime.MANIFEST).write_text(changed)
        with pytest.raises(BundleError, match=r"bundle\.json"):
            Bundle(copy)
    (copy / runtime.MANIFEST).unlink()
    with pytest.raises(BundleError, match="an exported bundle"):
        Bundle(copy)


def test_another_version_is_said(copy):
    rewritten(copy, format_version=99)
    with pytest.raises(
        BundleError, match=r"format version 99, this release reads 2; take the runtime\.py in the bundle"
    ):
        Bundle(copy)


MALFORMED = {
    "routes": (3, [], [{}], [{"share": 1.0, "ms": "fast", "files": []}]),
    "router": (3, {"share": 0.01}),
    "curve": ([], [{}], "none"),
    "files": ([], 3, {"route0.onnx": 3}),
    "sizes": (None, [2], [0], ["1"]),
    "clip_shape": ([3, 8], None, [3, 8, 16, -16]),
    "clip": (None, {}, {"offsets_s": ["a"]}),
    "classes": (None, 5),
    "default_budget": (None, "much"),
    "versions": (None,),
}


@pytest.mark.parametrize("key", MALFORMED)
def test_a_manifest_that_holds_something_else_is_refused(copy, key):
    """Its checksum is right: whoever wrote it made it so."""
    whole = (copy / runtime.MANIFEST).read_text()
    for value in MALFORMED[key]:
        rewritten(copy, **{key: value})
        with pytest.raises(BundleError, match=r"bundle\.json|route0\.onnx"):
            Bundle(copy)
        (copy / runtime.MANIFEST).write_text(whole)


def test_buckets_need_a_size_of_one_whatever_the_clips_are(copy):
    rewritten(copy, sizes=[2, 4], clip_shape=[1, 8, 16, 16])
    with pytest.raises(BundleError, match="no route, no operating point, or no size"):
        Bundle(copy)


def test_operating_points_of_other_routes_are_refused(copy):
    curve = json.loads((copy / runtime.MANIFEST).read_text())["curve"]
    for change in ({"first": 99}, {"first": "a"}, {"mix": [1.0]}, {"price": "cheap"}):
        rewritten(copy, curve=[curve[0] | change, *curve[1:]])
        with pytest.raises(BundleError, match="does not hold what a bundle's does"):
            Bundle(copy)


def test_a_manifest_that_is_a_link_is_refused(copy):
    (copy / runtime.MANIFEST).rename(copy.parent / "elsewhere.json")
    (copy / runtime.MANIFEST).symlink_to(copy.parent / "elsewhere.json")
    with pytest.raises(BundleError, match=r"bundle\.json is a link"):
        Bundle(copy)


def test_a_link_to_a_bundle_stays_one(deployed, copy):
    link = copy.parent / "current"
    link.symlink_to(copy.name)
    assert vr.export_bundle(deployed, link, clip=CLIP) == link
    assert link.is_symlink()
    assert Bundle(copy).classes == []  # it had names before


@pytest.mark.parametrize("name", ["../secret.onnx", "/etc/passwd", "a/b.onnx", "..", "", "C:\\x", None, 3])
def test_paths_cannot_leave_the_bundle(copy, name):
    document = json.loads((copy / runtime.MANIFEST).read_text())
    route = document["routes"][0] | {"files": [name]}
    rewritten(copy, routes=[route, *document["routes"][1:]])
    with pytest.raises(BundleError, match="no plain name in the bundle"):
        Bundle(copy)


def test_what_is_exported_is_there_as_a_whole_or_not_at_all(deployed, folder, tmp_path, monkeypatch):
    target = tmp_path / "bundle"
    vr.export_bundle(deployed, target, clip=CLIP)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    monkeypatch.setattr("vared2_fx.routes.bundle._compare", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        vr.export_bundle(deployed, target, clip=CLIP, classes=CLASSES)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    monkeypatch.undo()
    vr.export_bundle(deployed, target, clip=CLIP, classes=CLASSES)
    assert Bundle(target).classes == list(CLASSES)


def test_what_is_no_bundles_is_never_replaced(deployed, copy):
    (copy / "__pycache__").mkdir()  # importing the runtime from there leaves one
    vr.export_bundle(deployed, copy, clip=CLIP)
    names = {path.name for path in copy.iterdir()}
    for wrong in ("thesis.txt", "route9.onnx"):
        (copy / wrong).write_text("mine")
        with pytest.raises(DeployError, match=rf"{wrong}.*give another folder"):
            vr.export_bundle(deployed, copy, clip=CLIP)
        assert {path.name for path in copy.iterdir()} == names | {wrong}
        (copy / wrong).unlink()
    for damaged in (
        "[]",
        '{"files": 3}',
        '{"files": ["thesis.txt"]}',
        '{"files": {}, "sha256": "0"}',
        "",
        "[" * 100_000,
    ):
        (copy / runtime.MANIFEST).write_text(damaged)
        with pytest.raises(DeployError, match="give another folder"):
            vr.export_bundle(deployed, copy, clip=CLIP)
    assert {path.name for path in copy.iterdir()} == names


def test_an_earlier_bundle_comes_back_if_the_new_one_cannot_take_its_place(deployed, copy, monkeypatch):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    move = os.replace

    def fails(source, target):
        if Path(source).name == "new":
            raise OSError(28, "No space left on device")
        move(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(DeployError, match="No space left"):
        vr.export_bundle(deployed, copy, clip=CLIP)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert [path.name for path in copy.parent.iterdir()] == ["bundle"]


def test_a_bundle_that_answers_no_number_is_not_exported(deployed, copy):
    files = json.loads((copy / runtime.MANIFEST).read_text())["files"]
    _compare(deployed, copy)
    for path in copy.glob("route*.onnx"):
        model = onnx.load(path)
        for weights in model.graph.initializer:
            values = onnx.numpy_helper.to_array(weights)
            if values.dtype == np.float32:
                weights.CopyFrom(onnx.numpy_helper.from_array(np.full_like(values, np.nan), weights.name))
        onnx.save(model, path)
        files[path.name] = sha256(path)
    rewritten(copy, files=files)
    with pytest.raises(DeployError, match="answers otherwise"):
        _compare(deployed, copy)


def test_nothing_can_be_exported_into_a_file(deployed, tmp_path):
    (tmp_path / "file").write_text("mine")
    for target in (tmp_path / "file", tmp_path / "file" / "bundle"):
        with pytest.raises(DeployError, match=r"another (one|folder)\."):
            vr.export_bundle(deployed, target, clip=CLIP)
    assert (tmp_path / "file").read_text() == "mine"


def test_errors_come_before_anything_is_written(deployed, routed, tmp_path):
    wrong = {
        "clips of": {"clip": ClipConfig(frames=4, crop=16, short_side=20)},
        "2 names of classes": {"clip": CLIP, "classes": ("a", "b")},
    }
    for text, arguments in wrong.items():
        with pytest.raises(DeployError, match=text):
            vr.export_bundle(deployed, tmp_path / "bundle", **arguments)
    with pytest.raises(DeployError, match="deployed for engine 'torch'"):
        vr.export_bundle(vr.deploy_routed(routed, "torch"), tmp_path / "bundle", clip=CLIP)
    for pack in (lambda clips: (clips[:, :, 0],), lambda clips: ([clips, clips],)):
        with pytest.raises(DeployError, match="several tensors or single images"):
            vr.export_bundle(replace(deployed, pack=pack), tmp_path / "bundle", clip=CLIP)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(DeployError, match="holds what is no bundle's"):
        vr.export_bundle(deployed, tmp_path / "mine", clip=CLIP)
    assert not (tmp_path / "bundle").exists()
