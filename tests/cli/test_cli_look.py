"""`vared2 zoo` and `vared2 scan`."""

import json
from dataclasses import asdict

import pytest

import vared2_fx as vr


def test_zoo(run):
    text = run("zoo").stdout
    assert [line.split()[0] for line in text.splitlines()[1:]] == list(vr.zoo.names())
    assert max(map(len, text.splitlines())) <= 100


def test_zoo_for_a_machine(run):
    specs = json.loads(run("zoo", "--json").stdout)
    assert [spec["name"] for spec in specs] == list(vr.zoo.names())
    assert specs[0] == json.loads(json.dumps(asdict(vr.zoo.spec(specs[0]["name"]))))


def test_scan_prints_the_plan(run):
    assert run("scan", "vared2_demo").stdout == f"{vr.scan(vr.zoo.load('vared2_demo'))}\n"


def test_scan_for_a_machine(run):
    plan = json.loads(run("scan", "vared2_demo", "--json").stdout)
    assert (plan["schema"], plan["version"], plan["network"]) == ("vared2_fx.plan", 4, "DemoNet")
    expected = vr.scan(vr.zoo.load("vared2_demo"))
    assert [entry["path"] for entry in plan["entries"]] == [entry.path for entry in expected.entries]
    assert plan["macs"] == expected.macs
    assert plan["reach"] == asdict(expected.reach)


def test_scan_options(run):
    words = ("scan", "mynets:build", "--json", "--frames", "4", "--size", "16")
    plan = json.loads(run(*words).stdout)
    assert [entry["reason"] for entry in plan["entries"]] == ["convert", "convert"]
    assert plan["entries"][0]["out_shape"] == [12, 4, 8, 8]
    assert plan["regions"][0]["grid"] == {"frame_strides": [1, 2, 4], "channel_shares": [1.0, 0.5]}
    more = ("--frame-strides", "1,2", "--channel-shares", "1", "--exclude", "3")
    plan = json.loads(run(*words, *more).stdout)
    assert [entry["reason"] for entry in plan["entries"]] == ["convert", "excluded"]
    assert plan["regions"][0]["grid"] == {"frame_strides": [1, 2], "channel_shares": [1.0]}
    (whole,) = json.loads(run(*words, "--granularity", "stage").stdout)["regions"]
    assert len(whole["convs"]) == 2
    assert [e["reason"] for e in json.loads(run(*words, "--include", "3").stdout)["entries"]] == ["excluded", "convert"]


def test_scan_names_layers_in_every_way(run):
    words = ("scan", "vared2_demo", "--json")
    for option, count in (("stem", 8), ("stage*", None), (r"re:stem.*", 8), ("type:Conv3d", 0)):
        entries = json.loads(run(*words, "--exclude", option).stdout)["entries"]
        left = sum(entry["reason"] == "convert" for entry in entries)
        assert left == count if count is not None else 0 < left < 9


def test_scan_with_a_target(run):
    reach = vr.scan(vr.zoo.load("vared2_demo")).reach
    assert run("scan", "vared2_demo", "--target-macs", "65%").stdout == run("scan", "vared2_demo").stdout
    result = run("scan", "vared2_demo", "--target-macs", "1%", code=2)
    assert f"this conversion reaches from {100 * reach.cheapest / reach.dense:.1f} %" in result.stderr
    assert result.stdout == ""
    run("convert", "vared2_demo", "--out", "saved")
    assert "out of reach" in run("scan", "saved", "--target-macs", "0.01", code=2).stderr


def test_scan_names_what_cannot_be_followed(run, folder):
    words = ("scan", "mynets:branching", "--frames", "4", "--size", "16")
    lines = (folder / "mynets.py").read_text().splitlines()
    (where,) = json.loads(run(*words, "--json").stdout)["untraced"]
    assert (where["path"], where["kind"], where["file"]) == ("0", "Branching", "mynets.py")
    assert "x.sum() > 0" in lines[where["line"] - 1]
    assert f"not followed: 0 (Branching, mynets.py:{where['line']}): TraceError" in run(*words).stdout
    assert "0.conv" in run(*words).stdout


def test_scan_of_networks_with_other_inputs(run):
    plan = json.loads(run("scan", "slowfast_r50", "--size", "224", "--json").stdout)
    assert plan["input_shape"] == [1, 3, 32, 224, 224]
    assert plan["nesting"] == [["list", None, None]]
    plan = json.loads(run("scan", "slow_r50_detection", "--json").stdout)
    assert len([entry for entry in plan["entries"] if entry["reason"] == "convert"]) == 53
    assert "Nothing worth converting, because all that could" in run("scan", "swin3d_t").stdout


def test_scan_of_a_converted_network(run):
    run("convert", "vared2_demo", "--out", "saved", "--exclude", "stage3.*")
    result = run("scan", "saved", "--json")
    entries = json.loads(result.stdout)["entries"]
    assert {entry["reason"] for entry in entries if entry["path"].startswith("stage3.")} == {"excluded"}
    assert "converted already" in result.stderr


def test_scan_of_a_converted_network_of_ones_own(run):
    run("convert", "mynets:build", "--frames", "4", "--size", "16", "--out", "saved", "--exclude", "3")
    assert "say with --base module:function what builds" in run("scan", "saved", code=2).stderr
    text = run("scan", "saved", "--base", "mynets:build").stdout
    assert "1 of 2 3D convolutions convert" in text
    assert "fails() failed" in run("scan", "saved", "--base", "mynets:fails", code=2).stderr
    assert "--base does not go with mynets:build" in run("scan", "mynets:build", "--base", "x:y", code=2).stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("x3d",), "no network 'x3d'. Did you mean x3d_"),
        (("mynets:nix",), "mynets has no `nix`; name a function"),
        (("mynets:number",), "something not callable as `number`"),
        (("mynets:fails",), r"fails() failed (OSError: no weights here); it is called without arguments"),
        (("mynets:gives_three",), "gives_three() returned int, no torch.nn.Module"),
        (("othernets:build",), "Is there a othernets.py in "),
        (("nix/da",), "nix/da is no folder with a saved network. Give a name that `vared2 zoo` lists"),
        (("mynets.py",), "mynets.py is no folder with a saved network"),
        (("empty",), "empty is a folder without a saved network (vared2.json)"),
        (("vared2_demo", "--include", "blok.*"), "'blok.*' matches none of the"),
        (
            ("vared2_demo", "--frame-strides", "1;2"),
            "--frame-strides 1;2: expected numbers with commas between, such as 1,2,4",
        ),
        (("vared2_demo", "--frame-strides", "1,3,4"), "4 does not follow 3"),
        (("vared2_demo", "--channel-shares", "0.5"), "let it begin with 1.0"),
        (("vared2_demo", "--include", "type:Conv4d"), "no module of type 'Conv4d'"),
        (("vared2_demo", "--include", "re:("), "is no regular expression"),
        (("vared2_demo", "--target-macs", "65"), "--target-macs=65.0; it is a share"),
        (("vared2_demo", "--target-macs", "half"), "--target-macs='half' is no share; write 0.65 or '65%'"),
        (("mynets:build", "--size", "16"), "--frames and --size: give both"),
    ],
)
def test_mistakes(run, folder, words, message):
    (folder / "empty").mkdir()
    result = run("scan", *words, code=2)
    assert message in result.stderr
    assert result.stderr.startswith("vared2: ")
    assert result.stdout == ""


def test_scan_as_a_page(run, folder):
    result = run("scan", "mynets:build", "--frames", "8", "--size", "16", "--html", "scan.html")
    assert "wrote scan.html" in result.stderr
    assert "would convert" in (folder / "scan.html").read_text()
    assert "cannot be written" in run("scan", "mynets:build", "--html", "no/where.html", code=2).stderr


def test_scan_measures_redundancy_on_videos(run, folder, scenes):
    words = ("scan", "vared2_demo", "--pretrained", "--data", scenes / "val", "--html", "scan.html")
    result = run(*words)
    assert "18 clips: R² of what is predicted" in result.stdout
    assert "measured on 18 clips" in (folder / "scan.html").read_text()
    found = json.loads(run(*words, "--json").stdout)["redundancy"]
    assert [layer["path"] for layer in found["layers"]] == [e.path for e in vr.scan(vr.zoo.load("vared2_demo")).entries]
    assert "--data nowhere: there is no such folder" in run("scan", "vared2_demo", "--data", "nowhere", code=2).stderr
    assert "the weights are random" in run("scan", "vared2_demo", "--data", scenes / "val").stderr
