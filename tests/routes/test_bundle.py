"""A bundle on disk: what it answers, where it runs, and what is refused."""

import json
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest
import torch
from bundles import CLASSES, CLIP, rewritten

import vared2_fx as vr
from vared2_fx import runtime
from vared2_fx.data import clip_transform, read_clip
from vared2_fx.data.scenes import generate_scenes
from vared2_fx.runtime import Bundle, BundleError


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    listing = generate_scenes(tmp_path_factory.mktemp("videos"), videos_per_class=1, num_frames=24, size=48, seed=0)
    return [path for path, _ in listing.videos][:5]


def check_answers(folder, routed, clips):
    bundle = Bundle(folder, threads=1)
    for point in routed.curve:
        scores, routes, costs = bundle.answer(clips.numpy(), budget=point.share)
        wanted = routed.answer(clips, budget=point.share)
        np.testing.assert_allclose(scores, wanted.output, rtol=1e-3, atol=1e-4)
        assert np.array_equal(routes, torch.where(wanted.again, len(routed.networks) - 1, wanted.routes))
        np.testing.assert_allclose(costs, wanted.shares)


def test_it_answers_as_torch_does(folder, routed, clips):
    check_answers(folder, routed, clips)


@pytest.fixture(scope="module")
def in_openvino(routed, tmp_path_factory):
    fast = vr.deploy_routed(routed, "openvino", threads=1, sizes=(1, 2))
    return vr.export_bundle(fast, tmp_path_factory.mktemp("openvino") / "bundle", clip=CLIP)


def test_so_it_does_in_openvino(in_openvino, routed, clips):
    check_answers(in_openvino, routed, clips)


def test_openvino_compiles_before_the_first_clip(in_openvino, clips, monkeypatch):
    bundle, small = Bundle(in_openvino, threads=1), Bundle(in_openvino, threads=1, max_batch=1)
    monkeypatch.setattr(runtime, "_CORES", [])  # nothing is left that could compile
    for budget in (0.01, 1.0):
        got, wanted = bundle.answer(clips.numpy(), budget=budget), small.answer(clips.numpy(), budget=budget)
        np.testing.assert_allclose(got[0], wanted[0], rtol=1e-4, atol=1e-5)


def test_what_an_engine_cannot_compile_is_said_when_a_bundle_is_read(in_openvino, tmp_path):
    shutil.copytree(in_openvino, tmp_path / "bundle")
    rewritten(tmp_path / "bundle", clip_shape=[3, 8, 1, 1])  # smaller than what its layers leave out
    with pytest.raises(BundleError, match=r"openvino cannot run route0\.xml"):
        Bundle(tmp_path / "bundle")


@pytest.mark.parametrize("change", ["truncated", "flipped"])
def test_damaged_files_are_refused_in_openvino(in_openvino, tmp_path, change):
    shutil.copytree(in_openvino, tmp_path / "bundle")
    paths = sorted([*(tmp_path / "bundle").glob("*.xml"), *(tmp_path / "bundle").glob("*.bin")])
    assert len(paths) >= 4
    for path in paths:
        data = path.read_bytes()
        path.write_bytes(data[:-1] if change == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(BundleError, match=path.name):
            Bundle(tmp_path / "bundle", threads=1)
        path.write_bytes(data)


def test_many_threads_get_the_answers_of_one(folder, clips):
    bundle, parts = Bundle(folder, threads=1), [part.numpy() for part in clips.split(5)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda part: bundle.answer(part)[0], parts * 3))
    for n, answer in enumerate(answers):
        np.testing.assert_allclose(answer, bundle.answer(parts[n % len(parts)])[0], rtol=1e-5, atol=1e-6)


def test_clips_are_those_that_the_network_was_made_for(folder, videos):
    """Resizing is torchvision's own to a grey level."""
    for path in videos:
        ours, wanted = Bundle(folder).read_clip(path), read_clip(path, CLIP).numpy()
        assert ours.shape == wanted.shape
        assert ours.flags.c_contiguous
        assert np.abs(ours - wanted).max() <= 1.01 / 255 / CLIP.std[0]


@pytest.mark.parametrize("size", [(40, 56), (56, 40), (20, 31), (16, 16), (13, 90)])
def test_sizes_are_those_of_torchvision(size):
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    wanted = clip_transform(CLIP)(torch.from_numpy(frames).permute(0, 3, 1, 2))
    values = runtime.resized_centre(frames, CLIP.short_side, CLIP.crop).astype(np.float32) / 255
    ours = (values - CLIP.mean) / CLIP.std
    assert np.abs(ours - wanted.permute(0, 2, 3, 1).numpy()).max() <= 1.01 / 255 / CLIP.std[0]


WITHOUT_TORCH = """
import runpy, sys
for name in ("torch", "torchvision", "vared2_fx"):
    sys.modules[name] = None  # to import it is an error
sys.argv = ["runtime.py", *sys.argv[1:]]
runpy.run_path(sys.argv[1] + "/runtime.py", run_name="__main__")
"""


def run_alone(python, folder, *words):
    words = [python, "-c", WITHOUT_TORCH, str(folder), *map(str, words)]
    return subprocess.run(words, capture_output=True, text=True, cwd=folder.parent, timeout=120)


def check_lines(done, videos, folder):
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["video"] for line in lines] == videos
    bundle = Bundle(folder)
    for line in lines:
        scores, routes, costs = bundle.answer(bundle.read_clip(line["video"]))
        assert line["label"] == scores.argmax()
        assert line["class"] == CLASSES[line["label"]]
        assert (line["route"], line["macs"]) == (routes[0], round(costs[0], 6))
        assert line["ms"] > 0 < line["read_ms"]


def test_it_runs_without_torch_and_without_this_package(folder, videos):
    done = run_alone(sys.executable, folder, *videos)
    assert done.returncode == 0, done.stderr
    check_lines(done, videos, folder)


def test_this_packages_own_runtime_answers_too(folder, videos):
    words = [sys.executable, "-m", "vared2_fx.runtime", str(folder), *videos]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    check_lines(done, videos, folder)


@pytest.mark.slow
def test_it_runs_in_a_fresh_environment(folder, videos, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "fresh"], check=True)
    python = tmp_path / "fresh/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "numpy", "av", "onnxruntime"], check=True)
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode != 0
    done = run_alone(python, folder, *videos)
    assert done.returncode == 0, done.stderr
    check_lines(done, videos, folder)


def test_what_cannot_be_read_is_passed_over_and_said(folder, videos, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    done = run_alone(sys.executable, folder, videos[0], tmp_path / "broken.mp4", tmp_path / "none.mp4", videos[1])
    assert done.returncode == runtime.SOME_UNREADABLE
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert ["error" in line for line in lines] == [False, True, True, False]
    assert "not a readable video" in lines[1]["error"]
    assert "2 of 4" in done.stderr


def cut_off(path, whole, at_s):
    """What is left of a video whose copying stopped with the frame at `at_s`."""
    with av.open(str(whole)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        end = next(packet.pos for packet in packets if packet.pts * stream.time_base >= at_s)
    path.write_bytes(whole.read_bytes()[:end])
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """10 s of noise at 30 frames per second, every frame alone, the table of contents in front."""
    path, rng = tmp_path_factory.mktemp("whole") / "whole.mp4", np.random.default_rng(0)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width = stream.height = 48
        stream.options = {"g": "1", "bf": "0"}
        for _ in range(300):
            pixels = rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_video_that_is_cut_off_is_said(folder, whole, tmp_path):
    """Its clip is at 4.73, 4.80, … 5.20 s."""
    early, within = cut_off(tmp_path / "early.mp4", whole, 3.0), cut_off(tmp_path / "within.mp4", whole, 5.0)
    done = run_alone(sys.executable, folder, whole, early, within)
    assert done.returncode == runtime.SOME_UNREADABLE, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert "early.mp4`: no frame can be decoded between 4.73 s and 5.23 s: it ends before" in lines[1]["error"]
    assert (lines[0]["missing"], lines[2]["missing"]) == (0, 4)
    clip = Bundle(folder).read_clip(within)[0]  # (C, T, H, W)
    assert (np.diff(clip, axis=1) != 0).any((0, 2, 3)).tolist() == [True] * 4 + [False] * 3  # 4.97 s stays


def damaged(path, whole, from_s, to_s):
    """Its frames in between hold nothing any more."""
    data = bytearray(whole.read_bytes())
    with av.open(str(whole)) as container:
        stream = container.streams.video[0]
        for packet in container.demux(stream):
            if packet.size and from_s <= packet.pts * stream.time_base < to_s:
                data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(data)
    return path


def test_damaged_frames_count_as_missing(folder, whole, tmp_path):
    """The clip is at 4.73, 4.80, … 5.20 s."""
    all_of_it, some = damaged(tmp_path / "all.mp4", whole, 3.0, 7.0), damaged(tmp_path / "some.mp4", whole, 4.9, 5.1)
    lines = list(runtime.predict(Bundle(folder), [all_of_it, some]))
    assert "no frame can be decoded between 4.73 s and 5.23 s" in lines[0]["error"]
    assert lines[1]["missing"] == 3  # 4.93, 5.00, 5.07 s
    clip = Bundle(folder).read_clip(some)[0]  # (C, T, H, W)
    assert (np.diff(clip, axis=1) != 0).any((0, 2, 3)).tolist() == [True, True, True, False, False, True, True]


@pytest.mark.parametrize("failure", ["engine", "nan"])
def test_what_the_engine_cannot_answer_is_said_and_the_rest_answered(folder, videos, monkeypatch, failure):
    bundle = Bundle(folder, threads=1)
    answer, calls = bundle.answer, []

    def fails_once(clips, **limits):
        calls.append(len(clips))
        if len(calls) > 1:
            return answer(clips, **limits)
        if failure == "engine":
            raise RuntimeError("out of memory")
        return answer(clips * np.float32("nan"), **limits)

    monkeypatch.setattr(bundle, "answer", fails_once)
    lines = list(runtime.predict(bundle, videos, batch=2))
    wanted = "onnx failed (RuntimeError: out of memory)" if failure == "engine" else "is not finite"
    assert ["error" in line for line in lines] == [True, True, False, False, False]
    assert all(wanted in line["error"] for line in lines[:2])
    json.dumps(lines, allow_nan=False)


def test_a_target_in_ms_takes_the_point_that_the_deployed_one_takes(folder, deployed):
    bundle = Bundle(folder, threads=1)
    costs = sorted(deployed.expected_ms(point) for point in deployed.curve)
    for target_ms in (1e-6, *costs, 1e9):
        for budget in (None, 0.8):
            wanted = deployed.point(target_ms=target_ms, budget=budget)
            assert bundle.point(budget, target_ms)["share"] == wanted.share
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(BundleError, match="target_ms"):
            bundle.point(target_ms=wrong)


def test_videos_are_decoded_while_others_are_answered(folder, videos, monkeypatch):
    """No clip is answered here before the next one is being read."""
    bundle, answered, began = Bundle(folder, threads=1), [], [threading.Event() for _ in videos]
    answer, read_counted = bundle.answer, bundle.read_counted

    def reads(path):
        began[videos.index(path)].set()
        return read_counted(path)

    def waits(clips, **limits):
        following = began[len(answered) + 1 :][:1]
        answered.append(all(event.wait(60) for event in following))
        return answer(clips, **limits)

    monkeypatch.setattr(bundle, "read_counted", reads)
    monkeypatch.setattr(bundle, "answer", waits)
    assert len(list(runtime.predict(bundle, videos, readers=1))) == len(videos)
    assert answered == [True] * len(videos)


def test_without_pyav_that_is_said_once(folder, videos):
    without = WITHOUT_TORCH.replace('"vared2_fx"', '"vared2_fx", "av"')
    words = [sys.executable, "-c", without, str(folder), *videos]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (runtime.USER_ERROR, "")
    assert "pip install av" in done.stderr


def test_numbers_below_one_are_refused(folder, videos):
    bundle = Bundle(folder)
    for wrong in ({"batch": 0}, {"readers": 0}, {"batch": -1}):
        with pytest.raises(BundleError, match="at least 1 each"):
            next(runtime.predict(bundle, videos, **wrong))
    for wrong in ({"threads": 0}, {"max_batch": 0}):
        with pytest.raises(BundleError, match="at least 1 each"):
            Bundle(folder, **wrong)


def test_a_batch_is_its_clips(folder, videos):
    bundle = Bundle(folder, threads=1)
    single, batched = (list(runtime.predict(bundle, videos, batch=n)) for n in (1, 3))
    for a, b in zip(single, batched, strict=True):
        assert (a["video"], a["label"], a["route"], a["macs"]) == (b["video"], b["label"], b["route"], b["macs"])


def test_wrong_clips_and_budgets(folder, clips):
    bundle = Bundle(folder)
    for wrong in (clips[0].numpy(), clips.double().numpy(), clips[:0].numpy()):
        with pytest.raises(BundleError, match="these routes take float32"):
            bundle.answer(wrong)
    with pytest.raises(BundleError, match="budget=-1"):
        bundle.answer(clips.numpy(), budget=-1)
