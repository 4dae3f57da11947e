"""`vared2 report`: on videos, on data sets, on nothing; and on other people's videos."""

import shutil
from dataclasses import replace

import pytest
import torch

import vared2_fx as vr
from vared2_fx import CompressionReport
from vared2_fx.data import ClipConfig, read_clip
from vared2_fx.report.numbers import PerClip

CLIP = ("--frames", "4", "--size", "16")


def read(result) -> CompressionReport:
    return CompressionReport.from_json(result.stdout)


@pytest.fixture
def saved(run):
    """A saved network of the user's own, for clips of 4 × 16 × 16."""
    run("convert", "mynets:build", *CLIP, "--out", "saved")
    return ("saved", "--base", "mynets:build")


def test_on_a_video(run, saved, scenes):
    videos = sorted((scenes / "val").glob("static_disc/*.mp4"))
    words = [word for video in videos for word in ("--video", video)]
    made = read(run("report", *saved, *words, "--json", "--no-timing"))
    assert [clip.name for clip in made.clips] == [str(video) for video in videos]
    assert made.inputs[0].shape == (3, 4, 16, 16)
    assert (made.totals.num_clips, made.totals.top1, made.totals.timing, made.notes) == (2, None, None, ())


def test_the_clip_is_the_one_that_was_asked_for(run, folder, saved, scenes):
    (video, *_) = sorted((scenes / "val").glob("moving_clockwise/*.mp4"))
    made = read(run("report", *saved, "--video", video, *CLIP, "--sampling-rate", "2", "--json", "--no-timing"))
    import mynets

    clip = read_clip(video, ClipConfig(frames=4, crop=16, short_side=18, sampling_rate=2))
    expected = vr.report(vr.load(folder / "saved", base=mynets.build()), clip, timing=False)
    assert [layer.computed_macs for layer in made.layers] == [layer.computed_macs for layer in expected.layers]
    assert made.clips[0].prediction == expected.clips[0].prediction


def test_on_data_with_labels(run, saved, scenes):
    result = run("report", *saved, "--data", scenes / "val", "--clips-per-video", "2", "--json", "--no-timing")
    made = read(result)
    assert (made.totals.num_clips, made.totals.num_labelled) == (36, 36)
    assert made.totals.top1 is not None
    assert made.notes == ()


def test_damaged_videos_are_counted_and_said(run, saved, scenes, folder):
    shutil.copytree(scenes / "val", folder / "data")
    (folder / "data/static_disc/0000.mp4").write_bytes(b"no video")
    result = run("report", *saved, "--data", "data", "--json", "--no-timing")
    made = read(result)
    assert made.totals.num_clips == 17
    assert [failure.name for failure in made.failures] == ["data/static_disc/0000.mp4"]
    assert "17 of 18 videos can be read" in result.stderr


def test_labels_of_other_classes_are_left_out(run, folder, scenes):
    words = ("--num-classes", "5", "--frames", "4", "--size", "32")
    (video,) = sorted((scenes / "val").glob("static_disc/0000.mp4"))
    (folder / "one.csv").write_text(f"{video},a\n")
    (folder / "names.txt").write_text("a\nb\nc\nd\ne\n")
    made = read(run("report", "vared2_demo", *words, "--data", "one.csv", "--json", "--no-timing"))
    assert made.totals.top1 is None
    assert any("accuracy is left out: the data has 1 classes, the network 5" in note for note in made.notes)
    assert any("weights are random" in note for note in made.notes)
    assert any("converted on the spot" in note for note in made.notes)
    named = run("report", "vared2_demo", *words, "--data", "one.csv", "--classes", "names.txt", "--json", "--no-timing")
    assert read(named).totals.num_labelled == 1


def test_classes_beside_a_network_are_used(run, saved, folder, scenes):
    names = [path.name for path in sorted((scenes / "val").iterdir())]
    (folder / "saved/classes.txt").write_text("\n".join(reversed(names)))
    result = run("report", *saved, "--data", scenes / "val", "--json", "--no-timing")
    assert "class names from saved/classes.txt" in result.stderr
    assert read(result).clips[0].label == 0
    assert "zooming_out" in read(result).clips[0].name


def test_without_clips_one_is_made_up(run, saved):
    result = run("report", *saved)
    assert "note: the clip is made up (noise)" in result.stdout
    assert "1 clip of 3×4×16×16" in result.stdout
    assert "time per clip, batch 1" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_csv_into_a_file(run, saved, folder):
    result = run("report", *saved, "--no-timing", "--csv", "layers.csv")
    assert "wrote layers.csv" in result.stderr
    assert "dynamic layer" in result.stdout
    header, *rows = (folder / "layers.csv").read_text().splitlines()
    assert header.startswith("path,operation,source_class,kind")
    assert [row.split(",")[0] for row in rows] == ["0", "3", "7"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("mynets:build", "--video", "mynets.py"), "say with --frames and --size how large they are"),
        (("mynets:build",), "give clips with --video or --data, or the size of a made-up one"),
        (("mynets:build", *CLIP, "--no-timing", "--csv", "empty"), "empty cannot be written: Is a directory"),
        (("vared2_demo", "--video", "a.mp4", "--data", "b"), "--video and --data: give one of them"),
        (("vared2_demo", "--video", "a.mp4"), "--video a.mp4: there is no such file"),
        (("mynets:build", *CLIP, "--video", "mynets.py"), "`mynets.py` is not a readable video"),
        (("vared2_demo", "--data", "nix"), "--data nix: there is no such folder or file"),
        (("mynets:build", *CLIP, "--data", "empty"), "it has no folders. Expected one folder per class"),
        (("vared2_demo", "--weights", "nix.pt"), "no such file"),
        (("vared2_demo", "--base", "mynets:build"), "--base does not go with vared2_demo"),
        (("mynets:build", *CLIP, "--device", "abacus"), "--device abacus: "),
        (("mynets:build", *CLIP, "--no-timing", "--csv", "nix/a.csv"), "--csv nix/a.csv: there is no folder nix"),
        (("damaged",), "damaged/vared2.json is no valid JSON"),
    ],
)
def test_mistakes(run, folder, words, message):
    for name in ("empty", "damaged"):
        (folder / name).mkdir()
    (folder / "damaged/vared2.json").write_text("{")
    result = run("report", *words, code=2)
    assert message in result.stderr
    assert result.stdout == ""


def test_real_videos(run, one_thread, real_clip):
    torch.manual_seed(0)
    made = read(run("report", "x3d_s", "--video", real_clip, "--no-timing", "--json"))
    assert made.network == "x3d_s"
    assert made.inputs[0].shape == (3, 13, 182, 182)
    assert made.clips[0].name == str(real_clip)
    assert len(made.dynamic) > 80
    assert made.totals.dense_macs.mean < made.totals.computed_macs.mean < 1.05 * made.totals.dense_macs.mean


@pytest.fixture
def written(run, saved, scenes, folder):
    """old.json, of eighteen clips."""
    result = run("report", *saved, "--data", scenes / "val", "--json", "--no-timing")
    (folder / "old.json").write_text(result.stdout)
    return folder / "old.json"


def test_forms_of_a_report_that_was_written(run, folder, written):
    result = run("report", "--from", written, "--html", "r.html", "--csv", "r.csv", "--plots", "plots", "--markdown")
    assert result.stdout.startswith("### ")
    assert "18 clips" in (folder / "r.html").read_text()
    assert len(list((folder / "plots").glob("*.svg"))) == 4
    for name in ("r.html", "r.csv", "plots/depth.svg"):
        assert f"wrote {name}" in result.stderr
    assert "dynamic layer" in run("report", "--from", written, "--unfold").stdout


def test_reports_of_parts_are_merged(run, written):
    merged = read(run("report", "--from", written, "--from", written, "--json"))
    assert merged.totals.num_clips == 36


def test_comparison_and_its_exit_code(run, folder, written):
    made = CompressionReport.from_json(written.read_text())
    clips = tuple(replace(clip, macs=2 * clip.macs) for clip in made.clips)
    macs = PerClip.of({2 * value: count for value, count in made.totals.computed_macs.counts.items()})
    worse = replace(made, clips=clips, totals=replace(made.totals, computed_macs=macs))
    (folder / "new.json").write_text(worse.to_json())
    words = ("report", "--from", "new.json", "--against", "old.json")
    result = run(*words)
    assert "+100.0 %" in result.stdout
    result = run(*words, "--fail-on", "macs>+2%", code=3)
    assert "fails on macs>+2%: macs went from" in result.stderr
    run(*words, "--fail-on", "macs>+150%", "--fail-on", "params>+0%")
    assert run(*words, "--markdown").stdout.startswith("### ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("report",), "give one of NETWORK, --from and --run"),
        (("report", "saved", "--run", "x"), "give one of NETWORK, --from and --run"),
        (("report", "x3d_s", "--fail-on", "macs>+2%"), "say with --against what to compare with"),
        (("report", "x3d_s", "--against", "none.json"), "none.json cannot be read: No such file"),
        (("report", "x3d_s", "--against", "mynets.py"), "mynets.py: report: this is no JSON"),
        (("report", "--from", "one.json"), "has version 1, this release reads 2"),
        (("report", "x3d_s", "--json", "--markdown"), "--json and --markdown: give one of them"),
        (("report", "x3d_s", "--html", "no/where.html"), "there is no folder no"),
        (("report", "--run", "nowhere"), "no log of a run in nowhere"),
        (("report", "--run", "nowhere", "--csv", "x.csv"), "--csv does not go with --run"),
    ],
)
def test_what_does_not_go_together(run, folder, words, message):
    (folder / "one.json").write_text('{"schema": "vared2_fx.report", "version": 1}')
    assert message in run(*words, code=2).stderr


def test_an_empty_data_set(run, saved, folder):
    (folder / "empty").mkdir()
    assert "vared2: " in run("report", *saved, "--data", "empty", code=2).stderr


def test_a_loss_that_is_nan_in_the_log_of_a_run(run, folder):
    names = ("train_loss", "train_accuracy", "train_share", "accuracy", "share", "min_share", "max_share", "objective")
    line = ", ".join(f'"{name}": {"NaN" if name == "train_loss" else 0.5}' for name in names)
    (folder / "log.jsonl").write_text(f'{{"epoch": 1, {line}, "seconds": 1}}\n')
    result = run("report", "--run", ".", "--html", "run.html")
    assert "training diverged" in result.stdout
    assert "training diverged" in (folder / "run.html").read_text()
    assert '"train_loss": null' in run("report", "--run", ".", "--json").stdout


def test_interrupted_it_shows_what_it_has(run, saved, scenes, monkeypatch):
    from vared2_fx.report.collect import Collector

    add, batches = Collector.add, []

    def interrupted(self, raw):
        batches.append(raw)
        if len(batches) == 3:
            raise KeyboardInterrupt
        add(self, raw)

    monkeypatch.setattr(Collector, "add", interrupted)
    result = run("report", *saved, "--data", scenes / "val", "--json", code=130)
    made = read(result)
    assert made.totals.num_clips == 8
    assert made.missing == ("the clips after batch 2 of 5: counting was interrupted", "times and rebuild errors")
    assert "interrupted" in result.stderr
