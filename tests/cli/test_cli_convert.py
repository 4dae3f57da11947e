"""`vared2 convert`: what it saves is what `vr.convert` makes."""

import json

import pytest
import torch

import vared2_fx as vr

CLIP = ("--frames", "4", "--size", "16")


def test_a_network_of_the_zoo(run, folder):
    result = run("convert", "vared2_demo", "--num-classes", "5", "--out", "saved")
    assert "Saved saved: DemoNet with" in result.stdout
    assert "the weights are random" in result.stderr
    dynamic = vr.load(folder / "saved")
    assert dynamic(vr.zoo.spec("vared2_demo").example_inputs()).shape == (1, 5)


def test_weights_from_a_file(run, folder):
    torch.manual_seed(1)
    base = vr.zoo.load("vared2_demo", num_classes=5)
    torch.save(base.state_dict(), folder / "mine.pt")
    result = run("convert", "vared2_demo", "--num-classes", "5", "--weights", "mine.pt", "--out", "saved")
    assert "random" not in result.output
    clip = vr.zoo.spec("vared2_demo").example_inputs()
    with torch.no_grad():
        torch.testing.assert_close(vr.load(folder / "saved")(clip), base(clip), rtol=0, atol=1e-5)  # rounding


def test_a_network_of_ones_own(run, folder):
    result = run("convert", "mynets:build", *CLIP, "--out", "saved", "--gate", "soft_modulation", "--json")
    document = json.loads(result.stdout)
    assert document["folder"] == "saved"
    assert [entry["reason"] for entry in document["plan"]["entries"]] == ["convert", "convert"]
    import mynets

    dynamic = vr.load(folder / "saved", base=mynets.build())
    clip = torch.randn(2, 3, 4, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(dynamic(clip), mynets.build()(clip), rtol=0, atol=1e-5)  # rounding
    assert {region.gate.kind for region in dynamic.modules() if hasattr(region, "gate")} == {"soft_modulation"}


def test_a_saved_network_is_not_replaced_by_mistake(run, folder):
    run("convert", "mynets:build", *CLIP, "--out", "saved")
    before = (folder / "saved/vared2.json").read_bytes()
    result = run("convert", "mynets:build", *CLIP, "--out", "saved", "--exclude", "0", code=2)
    assert "a network is saved there; take another folder, or --overwrite" in result.stderr
    assert (folder / "saved/vared2.json").read_bytes() == before
    run("convert", "mynets:build", *CLIP, "--out", "saved", "--exclude", "0", "--overwrite")
    assert (folder / "saved/vared2.json").read_bytes() != before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("vared2_demo", "--weights", "nix.pt"), "'nix.pt': no such file"),
        (("vared2_demo", "--weights", "mynets.py"), "mynets.py"),
        (("vared2_demo", "--weights", "a.pt", "--pretrained"), "two sets of weights"),
        (
            ("mynets:build", "--pretrained"),
            "--pretrained does not go with mynets:build, which is a network of your own",
        ),
        (("mynets:build", "--num-classes", "3"), "--num-classes does not go with"),
        (("mynets:build", "--gate", "wooden"), "gate='wooden', expected one of softmax, gumbel"),
        (("vared2_demo", "--exclude", "*"), "nothing worth converting"),
        (("converted",), "converted is converted already; name the original"),
        (("vared2_demo", "--out", "mynets.py"), "--out mynets.py: that is a file"),
    ],
)
def test_mistakes(run, words, message):
    run("convert", "mynets:build", *CLIP, "--out", "converted") if words[0] == "converted" else None
    out = () if "--out" in words else ("--out", "saved")
    result = run("convert", *words, *out, code=2)
    assert message in result.stderr
    assert result.stdout == ""
