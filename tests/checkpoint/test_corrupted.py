"""Two hundred and more corrupted saves: none is loaded, and each is refused in words."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from networks import tiny_net
from saved import rewritten, trained

import vared2_fx as vr
from vared2_fx.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from vared2_fx.errors import Vared2Error

FILES = (CONFIG_FILE, WEIGHTS_FILE)
Damage = Callable[[Path], None]
WRONG_KIND = ("text", -3, 2.5, True, None, [], {}, ["text"], {"text": 1})


def cut(name: str, share: float) -> Damage:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return damage


def flip(name: str, seed: int, bits: int) -> Damage:
    def damage(folder: Path) -> None:
        data, draw = bytearray((folder / name).read_bytes()), random.Random(seed)
        for place in draw.sample(range(len(data)), bits):
            data[place] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(data)

    return damage


def places(value: object, way: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    """The way to every value of a document; of a long list to its first two."""
    if way:
        yield way
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*way, key))


def change(way: tuple[object, ...], how: Callable[[object, object], None]) -> Damage:
    """Change one value, and give the description the checksum that it then has."""

    def damage(folder: Path) -> None:
        document = json.loads((folder / CONFIG_FILE).read_text())
        inner = document
        for key in way[:-1]:
            inner = inner[key]
        how(inner, way[-1])
        rewritten(folder, document)

    return damage


def of_another_kind(seed: int) -> Callable[[object, object], None]:
    def how(inner, key) -> None:
        now = inner[key]
        kinds = [float, int] if isinstance(now, float) else [type(now)]
        inner[key] = random.Random(seed).choice([v for v in WRONG_KIND if type(v) not in kinds and v is not None])

    return how


def remove(inner, key) -> None:
    del inner[key]


def from_another(name: str, other: str) -> Damage:
    return lambda folder: shutil.copy(folder.parent / other / name, folder / name)


OTHERS = {
    "other weights": lambda: trained(1),
    "other gates": lambda: trained(gate_hidden=5),
    "other choices": lambda: trained(frame_strides=(1, 2)),
    "other layers": lambda: trained(exclude=("stem",)),
    "other network": lambda: vr.convert(vr.zoo.load("vared2_demo", pretrained=True)),
}


@pytest.fixture(scope="module")
def saves(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("saves")
    vr.save(trained(), root / "right")
    for name, make in OTHERS.items():
        vr.save(make(), root / name)
    return root


CUTS = {f"{name} cut at {k}/25": cut(name, k / 25) for name in FILES for k in range(25)}
FLIPS = {f"{name}, {bits} bits, {k}": flip(name, k, bits) for name in FILES for bits in (1, 8) for k in range(20)}
SWAPS = {f"{name} of {other}": from_another(name, other) for name in FILES for other in OTHERS}
BYTES = CUTS | FLIPS | SWAPS


@pytest.mark.parametrize("case", BYTES)
def test_damaged_bytes_are_refused(tmp_path, saves, case, untouched):
    shutil.copytree(saves, tmp_path / "saves")
    folder, base = tmp_path / "saves/right", tiny_net(2)
    BYTES[case](folder)
    refused(folder, base, untouched)


def refused(folder: Path, base: torch.nn.Module, untouched) -> None:
    with untouched(base), pytest.raises(Vared2Error) as caught:
        vr.load(folder, base=base)
    text = str(caught.value)
    assert text.startswith("load: ")
    assert str(folder) in text
    assert len(text) > 60


def test_wrong_values_with_a_right_checksum_are_refused(tmp_path, saves, untouched):
    """Every value of the description replaced by one of another kind; every one taken out; one thing at a time."""
    document, base = json.loads((saves / "right" / CONFIG_FILE).read_text()), tiny_net(2)
    ways = [way for way in places(document) if way[0] != "sha256" and not optional(way)]
    kinds = [change(way, of_another_kind(seed)) for seed, way in enumerate(ways)]
    removed = [change(way, remove) for way in ways if isinstance(way[-1], str)]
    assert len(kinds) >= 100
    assert len(removed) >= 80
    for damage in kinds + removed:
        folder = tmp_path / "net"
        shutil.copytree(saves / "right", folder)
        damage(folder)
        refused(folder, base, untouched)
        shutil.rmtree(folder)


def optional(way: tuple[object, ...]) -> bool:
    """Settings of modules are compared as far as both sides know them."""
    return way[:2] == ("graph", "modules") and len(way) == 4 and way[-1] != "type"


def test_the_undamaged_save_loads(saves):  # the control
    loaded, right = vr.load(saves / "right", base=tiny_net(2)), trained()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in right.state_dict().items())


def test_there_are_two_hundred_and_all_differ(saves, tmp_path):
    for case in ("vared2.json, 1 bits, 3", "model.safetensors cut at 24/25", "model.safetensors of other gates"):
        shutil.copytree(saves, tmp_path / case)
        BYTES[case](tmp_path / case / "right")
        before, after = (
            [(root / name).read_bytes() for name in FILES] for root in (saves / "right", tmp_path / case / "right")
        )
        assert before != after
    assert len(BYTES) >= 140
