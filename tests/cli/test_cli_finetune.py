"""`vared2 finetune`: a short run on real video files, and going on with it."""

import inspect
import json
from dataclasses import fields

import pytest
import torch
from safetensors.torch import load_file

import vared2_fx as vr
from vared2_fx.cli.finetune import finetune
from vared2_fx.config import FinetuneConfig

CLIP = ("--frames", "4", "--size", "16")
QUICK = ("--batch-size", "6", "--workers", "0", "--device", "cpu")


@pytest.fixture
def data(scenes):
    return ("--train", scenes / "train", "--val", scenes / "val")


def test_a_run_and_what_it_leaves(run, folder, data, scenes):
    result = run("finetune", "mynets:build", *data, *CLIP, *QUICK, "--epochs", "1", "--out", "run", "--json")
    document = json.loads(result.stdout)
    assert document["folder"] == "run/best"
    assert [epoch["epoch"] for epoch in document["history"]] == [0, 1]
    assert document["num_clips"] == 18
    assert 0 < document["min_macs"] <= document["mean_macs"] <= document["max_macs"]
    assert "training clips: 18 clips read" in result.stderr
    classes = (folder / "run/best/classes.txt").read_text().split()
    assert classes == sorted(path.name for path in (scenes / "train").iterdir())
    clip = json.loads((folder / "run/best/clip.json").read_text())
    assert (clip["frames"], clip["crop"], clip["sampling_rate"]) == (4, 16, 1)

    import mynets

    assert vr.load(folder / "run/best", base=mynets.build()).meta
    best = ("run/best", "--base", "mynets:build")
    made = json.loads(run("report", *best, "--data", scenes / "val", "--json", "--no-timing").stdout)
    assert made["totals"]["top1"] == document["accuracy"]
    assert made["totals"]["computed_macs"]["mean"] == document["mean_macs"]


def test_one_line_gives_one_network(run, data, folder):
    """Weights that no file gives, and gates, are drawn; `--seed` settles these, too."""
    for out, seed in (("a", "5"), ("b", "5"), ("other", "6")):
        run("finetune", "vared2_demo", *data, *CLIP, *QUICK, "--epochs", "1", "--out", out, "--seed", seed)
    first, again, other = (load_file(folder / out / "best/model.safetensors") for out in ("a", "b", "other"))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_going_on(run, data, folder):
    run("convert", "mynets:build", *CLIP, "--out", "converted")
    words = ("finetune", "converted", "--base", "mynets:build", *data, *QUICK, "--epochs", "2")
    text = run(*words, "--out", "run", "--resume").output
    assert "--resume: no run in run yet; starting one" in text
    assert "Best is epoch" in text
    assert "Next: vared2 report run/best" in text
    for name in ("last", "last.old"):  # the latter is all that a kill between two renames leaves
        (folder / "run/last").rename(folder / "run" / name)
        result = run(*words, "--out", "run", code=2)
        assert "a run is there; go on with it by --resume, or take another folder" in result.stderr
    again = run(*words, "--out", "run", "--resume", "--json")
    assert [epoch["epoch"] for epoch in json.loads(again.stdout)["history"]] == [0, 1, 2]
    other = run(*words, "--out", "run", "--resume", "--lr", "0.5", code=2)
    assert "another lr" in other.stderr


def test_interrupting(run, data, folder):
    words = ("finetune", "mynets:{}", *data, *CLIP, *QUICK, "--epochs", "2", "--out", "run", "--resume")
    result = run(*(word.format("interrupting") if isinstance(word, str) else word for word in words), code=130)
    assert "What was finished is in run; the same line with --resume goes on from there" in result.stderr
    assert len((folder / "run/log.jsonl").read_text().splitlines()) == 2  # three steps each: epochs 0 and 1
    again = run(*(word.format("build") if isinstance(word, str) else word for word in words), "--json")
    assert [epoch["epoch"] for epoch in json.loads(again.stdout)["history"]] == [0, 1, 2]


def test_calibrating_first_and_going_on(run, data, folder):
    """Calibrated once; the original teaches as it was, so that the run that goes on has the same teacher."""
    words = (*data, *CLIP, *QUICK, "--epochs", "2", "--distill-weight", "1", "--calibrate", "--resume")
    whole = run("finetune", "mynets:build", *words, "--out", "whole")
    assert "calibrated on 18 clips: R² of each layer's output" in whole.stderr
    run("finetune", "mynets:interrupting", *words, "--out", "cut", code=130)
    again = run("finetune", "mynets:build", *words, "--out", "cut")
    assert "calibrated" not in again.stderr
    expected, found = (load_file(folder / out / "best/model.safetensors") for out in ("whole", "cut"))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_without_labels(run, folder, scenes):
    """Folders are no classes then: nine of them, and any number of answers would do."""
    words = ("--train", scenes / "train", "--val", scenes, *CLIP, *QUICK, "--epochs", "1", "--out", "run")
    document = json.loads(run("finetune", "mynets:build", *words, "--no-labels", "--json").stdout)
    assert document["agreement"]
    assert document["history"][0]["accuracy"] == 1.0  # as converted
    assert document["num_clips"] == 36  # train/ and val/, at any depth
    assert not (folder / "run/best/classes.txt").exists()


def test_what_knows_nothing_cannot_teach(run, data, folder):
    (folder / "names.txt").write_text("a\n")
    result = run("finetune", "vared2_demo", *data, *QUICK, "--out", "run", "--distill-weight", "1", code=2)
    assert "vared2_demo has nothing to teach, its weights are random" in result.stderr
    result = run("finetune", "vared2_demo", *data, *QUICK, "--out", "run", "--no-labels", code=2)
    assert "its weights are random" in result.stderr
    result = run(
        "finetune", "mynets:build", *data, *QUICK, "--out", "run", "--no-labels", "--classes", "names.txt", code=2
    )
    assert "--no-labels reads none" in result.stderr


def test_every_setting_of_the_config_has_an_option():
    options = inspect.signature(finetune).parameters
    for field in fields(FinetuneConfig):
        if field.name not in ("progress", "out"):
            assert field.name in options, field.name
            assert options[field.name].default == getattr(FinetuneConfig(), field.name), field.name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--target-macs", "60"), "target_macs=60.0; it is a share"),
        (("--target-macs", "0.2%"), "finetune: a target of 0.2 % of the multiply-adds is out of reach"),
        (("--epochs", "0"), "epochs=0, expected at least 1"),
        (("--train", "nix"), "`nix` does not exist"),
        (("--classes", "nix.txt"), "`nix.txt` cannot be read"),
        (("--out", "mynets.py"), "--out mynets.py: that is a file"),
        (("--mixed-precision", "fp4"), "Invalid value for '--mixed-precision'"),
        (("--label-smoothing", "2"), "Invalid value for '--label-smoothing'"),
        (("--temperature", "0", "1"), "temperature=(0.0, 1.0), expected values above 0"),
        (("--optimizer", "adamv"), "optimizer 'adamv': timm knows none of that name. Did you mean adam"),
        (("--gate", "wooden"), "gate='wooden'"),
    ],
)
def test_mistakes(run, data, words, message):
    result = run("finetune", "mynets:build", *data, *CLIP, *QUICK, "--out", "run", *words, code=2)
    assert message in result.stderr
    assert result.stdout == ""


def test_one_gpu_for_several_processes(run, data, folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun and accelerate set it
    result = run("finetune", "mynets:build", *data, *CLIP, "--device", "cuda:1", "--out", "run", code=2)
    assert "each takes a device of its own; write --device cuda, and" in " ".join(result.stderr.split())
    assert not (folder / "run").exists()


def test_classes_have_to_agree(run, data, folder):
    run("convert", "vared2_demo", "--num-classes", "5", "--out", "five")
    result = run("finetune", "five", *data, *QUICK, "--out", "run", code=2)
    assert "five answers with 5 classes, but --train has 9 (moving_anticlockwise, moving_clockwise," in result.stderr
    assert not (folder / "run").exists()


def test_validation_data_of_other_classes(run, data, folder):
    (folder / "val/dog").mkdir(parents=True)
    result = run("finetune", "mynets:build", *data, *CLIP, *QUICK, "--out", "run", "--val", "val", code=2)
    assert "is not one of the 9 classes" in result.stderr
