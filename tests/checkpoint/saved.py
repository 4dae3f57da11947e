"""A converted network that is anything but fresh, and ways to change what was saved of it."""

import json
from pathlib import Path

import torch
from networks import make_clip, randomise_gates, randomise_rebuilds, tiny_net

import vared2_fx as vr
from vared2_fx import ConvertConfig
from vared2_fx.checkpoint import CONFIG_FILE
from vared2_fx.description import to_json

CLIP = make_clip(3, 3, 8, 16, 16)


def trained(seed: int = 0, **config: object):
    """A converted network that no value of is at its initial one."""
    return randomise_gates(
        randomise_rebuilds(vr.convert(tiny_net(seed), config=ConvertConfig(**config)), seed), seed=seed
    )


def assert_same(left, right):
    ours, theirs = left.state_dict(), right.state_dict()
    assert list(ours) == list(theirs)
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        assert torch.equal(ours[name], theirs[name])
    assert torch.equal(left(CLIP.to(ours["head.weight"])), right(CLIP.to(ours["head.weight"])))


def edited(folder: Path, **changes: object) -> None:
    """Change the description as someone would who knows how; `...` takes a key out."""
    document = json.loads((folder / CONFIG_FILE).read_text())
    document.update(changes)
    rewritten(folder, {key: value for key, value in document.items() if value is not ...})


def rewritten(folder: Path, document: dict[str, object]) -> None:
    """Write another description, its own checksum right."""
    document.pop("sha256", None)
    (folder / CONFIG_FILE).write_text(to_json(document))
