"""`vared2 evaluate` on real video files."""

import json

CLIP = ("--frames", "4", "--size", "16")
VIEWS = ("--clips-per-video", "2", "--crops", "3")


def test_views_of_every_video(run, scenes):
    words = ("evaluate", "mynets:build", "--data", scenes / "val", *CLIP, *VIEWS, "--device", "cpu")
    document = json.loads(run(*words, "--json").stdout)
    assert document["num_clips"] == 18 * 6
    videos = document["videos"]
    assert (videos["num_videos"], videos["views"]) == (18, 6)
    assert videos["mean_macs"] == 6 * document["mean_macs"]
    assert set(videos["percentiles"].values()) == {videos["mean_macs"]}  # static: all cost alike
    result = run(*words)
    assert "18 videos, 6 views each: top-1" in result.stdout
    assert "108 clips read" in result.stderr


def test_converted_networks_and_their_class_names(run, scenes):
    run("convert", "mynets:build", *CLIP, "--out", "converted")
    words = ("evaluate", "converted", "--base", "mynets:build", "--data", scenes / "val", "--device", "cpu")
    document = json.loads(run(*words, "--json").stdout)
    assert document["num_clips"] == document["videos"]["num_videos"] == 18
    assert document["mean_macs"] > document["dense_macs"]  # gates are counted
    assert document["videos"]["percentiles"] == document["percentiles"]  # of one clip each


def test_the_oracle_beside_the_gates(run, scenes):
    run("convert", "mynets:build", *CLIP, "--out", "converted")
    words = ("evaluate", "converted", "--base", "mynets:build", "--data", scenes / "val", "--device", "cpu", "--oracle")
    document = json.loads(run(*words, "--json").stdout)
    oracle = document["oracle"]
    assert sum(rung["clips"] for rung in oracle["rungs"]) == document["num_clips"] == 18
    assert oracle["rungs"][0]["accuracy"] == document["accuracy"]  # as converted, gates take the full choice
    assert oracle["accuracy_gap"] == document["accuracy"] - oracle["accuracy"] <= 0
    assert oracle["share_gap"] == document["share"] - oracle["share"] > 0
    result = run(*words)
    assert "clips for which it is the cheapest right one" in result.stdout
    assert f"oracle: top-1 {100 * oracle['accuracy']:.1f} % at {100 * oracle['share']:.1f} %" in result.stdout
    gaps = f"{100 * oracle['accuracy_gap']:+.1f} and {100 * oracle['share_gap']:+.1f} points from the oracle"
    assert gaps in result.stdout
    assert "clips: 18 clips read" in result.stderr  # once, however often they were gone through
    assert json.loads(run(*words[:-1], "--json").stdout)["oracle"] is None


def test_mistakes(run, scenes, folder):
    words = ("evaluate", "mynets:build", *CLIP, "--device", "cpu")
    refused = run(*words, "--data", scenes / "val", "--oracle", code=2).stderr
    assert "--oracle: mynets:build is not converted and has nothing to choose; give a folder that" in refused
    assert "no such folder" in run(*words, "--data", "nowhere", code=2).stderr
    (folder / "two.txt").write_text("a\nb\n")
    result = run(*words, "--data", scenes / "val", "--classes", "two.txt", code=2)
    assert "is not one of the 2 classes" in result.stderr
