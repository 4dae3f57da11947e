"""`vared2 bench`."""

import json

import pytest

from vared2_fx.cli.options import read_choices

QUICK = ("--threads", "1", "--rounds", "2")
SMALL = ("--frames", "8", "--size", "16")


def test_a_network_alone(run):
    text = run("bench", "mynets:build", *SMALL, *QUICK).stdout
    assert text.startswith("Sequential in torch, fp32, 1 thread, batch 1: 1×3×8×16×16\n")


def test_variants_of_a_network(run):
    words = ("bench", "mynets:build", *SMALL, *QUICK, "--json", "--batch-size", "2")
    result = run(*words, "--choices", "*=2,1", "--choices", "3=2,0.5;0=4,1")
    document = json.loads(result.stdout)
    assert [row["name"] for row in document["variants"]] == ["*=2,1", "3=2,0.5;0=4,1"]
    assert document["batch_size"] == 2
    assert document["variants"][0]["ideal_speed_up"] > 1.9
    assert "not fine-tuned: times are right, answers are not" in result.stderr


def test_variants_of_a_saved_network(run):
    run("convert", "vared2_demo", "--out", "saved", "--granularity", "block")
    document = json.loads(run("bench", "saved", *QUICK, "--json", "--choices", "*=2,1.0").stdout)
    assert document["network"] == "DemoNet"
    assert document["variants"][0]["macs"] < document["base"]["macs"]
    for words in (("--granularity", "stage"), ("--exclude", "stem.*")):
        result = run("bench", "saved", *QUICK, "--choices", "*=2,1.0", *words, code=2)
        assert "saved is converted already; --granularity, --include and --exclude say how to convert" in result.stderr


@pytest.mark.parametrize("text", ["*", "*=2", "=2,1", "*=two,1", "*=2,1;", ""])
def test_choices_that_are_none(run, text):
    assert f"--choices {text}: expected PATTERN=R,r" in run("bench", "vared2_demo", "--choices", text, code=2).stderr


def test_choices_are_read():
    assert read_choices("re:a=b.*=2,0.5; c=1,1") == {"re:a=b.*": (2, 0.5), "c": (1, 1.0)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--engine", "tensorrt"), "no engine 'tensorrt'; there are torch, compile, onnx, openvino"),
        (("--precision", "int4"), "no precision 'int4'"),
        (("--choices", "nowhere=2,1"), "'nowhere' matches none of the"),
        (("--engine", "onnx", "--precision", "bf16"), "engine 'onnx' has no precision 'bf16'"),
    ],
)
def test_mistakes(run, words, message):
    result = run("bench", "mynets:build", *SMALL, *words, code=2)
    assert message in result.stderr
    assert result.stdout == ""
