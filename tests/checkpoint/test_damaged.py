"""Loading what does not fit, or is damaged: clear words, and nothing changed."""

import json
import os
from pathlib import Path

import pytest
import torch
from networks import Net, TinyNet, tiny_net
from saved import edited, trained

import vared2_fx as vr
from vared2_fx import ConvertConfig
from vared2_fx.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from vared2_fx.errors import CheckpointError, ZooError


def cut(name: str, share: float):
    return lambda folder: os.truncate(folder / name, int((folder / name).stat().st_size * share))


def flip(name: str, place: float):
    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[int(len(data) * place)] ^= 0x10
        (folder / name).write_bytes(data)

    return damage


def plan_with(**changes: object):
    def do(folder: Path) -> None:
        plan = json.loads((folder / CONFIG_FILE).read_text())["plan"]
        edited(folder, plan={**plan, **changes})

    return do


def config_with(**changes: object):
    def damage(folder: Path) -> None:
        config = json.loads((folder / CONFIG_FILE).read_text())["config"]
        edited(folder, config={**config, **changes})

    return damage


def by_hand(old: str, new: str):
    def damage(folder: Path) -> None:
        text = (folder / CONFIG_FILE).read_text()
        assert old in text
        (folder / CONFIG_FILE).write_text(text.replace(old, new))

    return damage


DAMAGES = {
    "no folder": (
        lambda f: [p.unlink() for p in f.iterdir()] and f.rmdir(),
        r"vared2.json cannot be read: No such file",
    ),
    "no config": (lambda f: (f / CONFIG_FILE).unlink(), "vared2.json cannot be read: No such file"),
    "no weights": (lambda f: (f / WEIGHTS_FILE).unlink(), "model.safetensors cannot be read: No such file"),
    "config is a folder": (lambda f: [(f / CONFIG_FILE).unlink(), (f / CONFIG_FILE).mkdir()], "cannot be read"),
    "half a config": (cut(CONFIG_FILE, 0.5), "no valid JSON .* damaged"),
    "empty config": (cut(CONFIG_FILE, 0), "no valid JSON"),
    "config is not text": (lambda f: (f / CONFIG_FILE).write_bytes(b"\xff\xfe\x00"), "no valid JSON"),
    "config is a list": (lambda f: (f / CONFIG_FILE).write_text("[1, 2]"), "format version None"),
    "half the weights": (cut(WEIGHTS_FILE, 0.5), "or it is damaged"),
    "no byte of weights": (cut(WEIGHTS_FILE, 0), "or it is damaged"),
    "a bit of a weight": (flip(WEIGHTS_FILE, 0.9), "or it is damaged"),
    "a bit of the header": (flip(WEIGHTS_FILE, 0.01), "or it is damaged"),
    "garbage": (lambda f: (f / WEIGHTS_FILE).write_bytes(os.urandom(1000)), "or it is damaged"),
    "a bit of the description": (flip(CONFIG_FILE, 0.5), "damaged"),
    "nesting without end": (lambda f: (f / CONFIG_FILE).write_text("[" * 100_000), "no valid JSON"),
    "changed by hand": (by_hand('"gate_bins": 4', '"gate_bins": 3'), "changed after it was written"),
    "a way out": (lambda f: edited(f, weights_sha256="/../../../etc/passwd"), "weights_sha256 is '/../"),
    "other version": (lambda f: edited(f, format_version=99), "format version 99, this release reads 6"),
    "no plan": (lambda f: edited(f, plan=...), "lacks plan; the file is damaged"),
    "no checksum": (lambda f: edited(f, weights_sha256=...), "lacks weights_sha256"),
    "wrong plan": (lambda f: edited(f, plan={"entries": 3}), "holds what cannot be: plan lacks network"),
    "wrong mode": (lambda f: edited(f, training="often"), "holds what cannot be: training is 'often'"),
    "config from the future": (config_with(colour="red"), "holds what cannot be: config has colour"),
    "impossible config": (config_with(frame_strides=[2]), "holds what cannot be: .*begin with 1"),
    "other containers": (
        plan_with(nesting=[["set", None]]),
        r"what cannot be: plan.nesting\[0\] is \['set'",
    ),
    "deep containers": (plan_with(nesting=[["list", ["dict", {"a": 3}]]]), r"plan.nesting\[0\]\[0\]\['a'\] is 3"),
    "half a leaf": (plan_with(untraced=[{"path": "stem"}]), r"plan.untraced\[0\] lacks kind, file, line, reason"),
    "no such leaf": (
        plan_with(untraced=[{"path": "nowhere", "kind": "A", "file": "a.py", "line": 1, "reason": "b"}]),
        "does not fit",
    ),
    "other gate": (config_with(gate_hidden=3), "does not fit.*size mismatch"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(tmp_path, damage, untouched):
    folder, base = vr.save(trained(), tmp_path / "net"), tiny_net()
    do, message = DAMAGES[damage]
    do(folder)
    with untouched(base), pytest.raises(CheckpointError, match=rf"(?s)load: .*{message}"):
        vr.load(folder, base=base)


def with_part(path: str, part: torch.nn.Module) -> torch.nn.Module:
    model = tiny_net()
    model.set_submodule(path, part)
    return model


class OtherForward(TinyNet):
    """The same parameters, another function."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(self.expand(self.depthwise(self.stem(x))))
        x = x - self.grouped(x)
        x = self.norm(self.last(x)).relu()
        return self.head(self.dropout(x.mean((2, 3, 4))))


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (lambda: TinyNet(num_classes=7), "does not fit TinyNet.*`head` was saved with out_features=5, .* it has .*=7"),
        (Net, "does not fit Net.*`stem.0` is called 0 times"),
        (trained, "does not fit"),
        (lambda: with_part("depthwise.2", torch.nn.ReLU()), "`depthwise.2` was saved with type=SiLU, here .*=ReLU"),
        (lambda: with_part("norm", torch.nn.BatchNorm3d(16, eps=1e-3)), "`norm` was saved with eps=1e-05, here"),
        (
            lambda: with_part("last", torch.nn.Conv3d(12, 16, (1, 3, 3), dilation=(1, 2, 2), bias=False)),
            "`last` was .*",
        ),
        (lambda: with_part("last", torch.nn.ConvTranspose3d(12, 16, (1, 3, 3), bias=False)), "does not fit TinyNet"),
        (OtherForward, "its forward function computed"),
        (lambda: TinyNet().to("meta"), "on the meta device, .*to_empty"),
    ],
)
def test_another_base_is_refused(tmp_path, base, message):
    vr.save(trained(), tmp_path)
    with pytest.raises(CheckpointError, match=rf"(?s){message}"):
        vr.load(tmp_path, base=base())


def test_a_network_of_ones_own_needs_its_base(tmp_path):
    with pytest.raises(CheckpointError, match=r"pass the original as load\(folder, base=model\)"):
        vr.load(vr.save(trained(), tmp_path))


@pytest.mark.parametrize("source", [{"name": "x3d_q", "num_classes": 3}, {"name": "r3d_18"}, ["r3d_18"], 3])
def test_a_zoo_that_does_not_know_it(tmp_path, source):
    edited(vr.save(trained(), tmp_path), source=source)
    with pytest.raises((CheckpointError, ZooError)):
        vr.load(tmp_path)


def test_a_zoo_network_with_a_head_of_ones_own_asks_for_it(tmp_path):
    model = vr.zoo.load("r3d_18", num_classes=3)
    model.fc = torch.nn.Linear(512, 9)
    vr.save(vr.convert(model, config=ConvertConfig(include=("layer4.1.*",))), tmp_path)
    with pytest.raises(CheckpointError, match=r"pass the network that was converted as load\(folder, base=model\)"):
        vr.load(tmp_path)
    assert vr.load(tmp_path, base=model).fc.out_features == 9
