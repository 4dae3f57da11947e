"""Choosing layers: by path, pattern, type and function."""

import json
from dataclasses import asdict

import pytest
import torch
from networks import CONVS, TinyNet, make_clip, tiny_net
from torch import nn

import vared2_fx as vr
from vared2_fx import ConvertConfig
from vared2_fx.convert import conversion
from vared2_fx.errors import ConvertError

CLIP = make_clip(1, 3, 8, 16, 16)


class Branch(nn.Sequential):
    """A type of ours around a convolution."""


class NarrowBranch(Branch):
    """A subclass."""


class Separable(nn.Conv3d):
    """A type of ours that is a convolution."""


def typed_net() -> nn.Module:
    """TinyNet's function, some of its parts of other types."""
    model = tiny_net()
    for path, kind in (("stem", Branch), ("down", NarrowBranch)):
        model.set_submodule(path, kind(*model.get_submodule(path)))
    model.depthwise[0].__class__ = Separable
    return model


def converted(**config: object) -> list[str]:
    return [entry.path for entry in vr.scan(typed_net(), CLIP, ConvertConfig(**config)).converted]


@pytest.mark.parametrize(
    ("config", "paths"),
    [
        ({}, list(CONVS)),
        ({"include": ("stem", "last")}, ["stem.0", "last"]),
        ({"include": ("*.0",)}, ["stem.0", "depthwise.0", "down.0"]),
        ({"include": (r"re:(stem|down)\.\d",)}, ["stem.0", "down.0"]),
        ({"include": (Branch,)}, ["stem.0", "down.0"]),
        ({"include": (NarrowBranch, "last")}, ["down.0", "last"]),
        ({"include": ("type:Branch",), "exclude": ("type:NarrowBranch",)}, ["stem.0"]),
        ({"include": ("type:Separable",)}, ["depthwise.0"]),
        ({"include": (nn.Conv3d,)}, list(CONVS)),
        ({"include": ("type:torch.nn.modules.conv.Conv3d",), "exclude": (Separable, "grouped")}, None),
        ({"include": (TinyNet,), "exclude": ("re:.*0",)}, ["expand", "grouped", "last"]),
        ({"exclude": ["stem", "last"]}, ["depthwise.0", "expand", "down.0", "grouped"]),
        ({"filter": lambda module, path: module.kernel_size == (3, 3, 3)}, ["stem.0", "depthwise.0", "grouped"]),
        ({"filter": lambda module, path: path != "last", "include": ("last", "expand")}, ["expand"]),
    ],
)
def test_what_is_chosen(config, paths):
    assert converted(**config) == (["stem.0", "expand", "down.0", "last"] if paths is None else paths)


def test_reasons_say_what_kept_a_layer_out():
    config = ConvertConfig(
        include=("*.0", "expand", "last"),
        exclude=("down", "type:Separable"),
        filter=lambda module, path: path != "last",
    )
    entries = {entry.path: entry for entry in vr.scan(typed_net(), CLIP, config).entries}
    assert {path: entry.reason for path, entry in entries.items()} == {
        "stem.0": "convert",
        "depthwise.0": "excluded",
        "expand": "convert",
        "down.0": "excluded",
        "grouped": "excluded",
        "last": "filtered",
    }
    assert entries["depthwise.0"].detail == "exclude names it by 'type:Separable'"
    assert entries["down.0"].detail == "exclude names it by 'down'"
    assert entries["grouped"].detail == "none of the entries of include names it"
    assert "filter returned False" in entries["last"].detail


@pytest.mark.parametrize("field", ["include", "exclude"])
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("stem.1", "'stem.1' matches none of the 6 3D convolutions; near it are stem.0"),
        ("re:down", "near it are"),
        ("dwon", "near it are down"),
        ("type:Brunch", "no module of type 'Brunch' is or holds .* types that do are Branch"),
        (nn.Linear, r"no module of type 'torch.nn.modules.linear.Linear' .* types that do are"),
        ("type:", "no module of type ''"),
    ],
)
def test_an_entry_that_matches_nothing_names_near_misses(field, entry, message):
    with pytest.raises(ConvertError, match=rf"ConvertConfig.{field}: .*{message}"):
        vr.scan(typed_net(), CLIP, ConvertConfig(**{field: (entry,)}))


def test_near_types_come_with_their_subclasses():
    with pytest.raises(ConvertError, match="types that do are Branch, NarrowBranch"):
        vr.scan(typed_net(), CLIP, ConvertConfig(include=("type:Branches",)))


def fails(module: nn.Module, path: str) -> bool:
    raise KeyError(path)


@pytest.mark.parametrize(
    ("filter", "message"),
    [
        (fails, r"filter failed on `stem.0` \(KeyError: 'stem.0'\)"),
        (lambda module: True, r"filter failed on `stem.0` \(TypeError"),
        (lambda module, path: None, "filter returned None for `stem.0`; return True or False"),
        (lambda module, path: 1, "filter returned 1"),
    ],
)
def test_a_filter_that_fails_says_where(filter, message, untouched):
    model = tiny_net()
    with untouched(model), pytest.raises(ConvertError, match=message):
        vr.convert(model, CLIP, ConvertConfig(filter=filter))


def test_a_filter_sees_a_copy(untouched):
    def spoil(module: nn.Module, path: str) -> bool:
        with torch.no_grad():
            module.weight.zero_()
        return True

    model = tiny_net()
    with untouched(model):
        vr.scan(model, CLIP, ConvertConfig(filter=spoil))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"include": (3,)}, "ConvertConfig.include: 3 is no pattern"),
        ({"include": (int,)}, "is no pattern"),
        ({"exclude": ("re:(",)}, "ConvertConfig.exclude: .* no regular expression"),
        ({"include": nn.Conv3d}, r"include is one type; write \(Conv3d,\)"),
        ({"filter": "stem"}, "filter='stem', expected a function of a module and its path"),
    ],
)
def test_what_cannot_name_a_layer(values, message):
    with pytest.raises(ConvertError, match=message):
        ConvertConfig(**values)


def test_classes_become_names_that_json_can_hold():
    config = ConvertConfig(include=[Branch], exclude=(nn.ConvTranspose3d, "stem"))
    assert config.include == (f"type:{__name__}.Branch",)
    assert config == ConvertConfig(**asdict(config))
    assert json.loads(json.dumps(config.exclude)) == ["type:torch.nn.modules.conv.ConvTranspose3d", "stem"]


def test_the_result_keeps_what_a_filter_chose_not_the_filter():
    model, config = tiny_net(), ConvertConfig(filter=lambda module, path: path == "expand")
    made = conversion(vr.convert(model, CLIP, config))
    assert made.config == ConvertConfig()
    assert made.plan == vr.scan(model, CLIP, config)
    assert [entry.path for entry in made.plan.converted] == ["expand"]
