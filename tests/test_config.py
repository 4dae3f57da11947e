"""What a config refuses, and how it says so."""

import dataclasses

import pytest

from vared2_fx import ConvertConfig
from vared2_fx.errors import ConvertError, Vared2Error


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"frame_strides": (1,), "channel_shares": (1.0,)},
        {"frame_strides": (1, 3, 6, 12), "channel_shares": (1, 0.75, 0.1)},
        {"gate": "soft_modulation", "normalize": False, "gate_hidden": 1, "gate_bins": 1},
        {"frame_rebuild": "interpolate", "channel_rebuild": "depthwise"},
    ],
)
def test_values_that_work(values):
    config = ConvertConfig(**values)
    assert all(getattr(config, name) == value for name, value in values.items())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"granularity": "layer"}, "granularity='layer', expected one of conv"),
        ({"gate": "sigmoid"}, "gate='sigmoid', expected one of softmax, gumbel"),
        ({"frame_rebuild": "copy"}, "expected one of hold, repeat, interpolate"),
        ({"channel_rebuild": "copy"}, "expected one of scale, depthwise"),
        ({"frame_strides": ()}, "begin with 1"),
        ({"frame_strides": (2, 4)}, "begin with 1, or the pretrained result is out of reach"),
        ({"frame_strides": (1, 2, 3)}, "3 does not follow 2.*such as"),
        ({"frame_strides": (1, 4, 2)}, "2 does not follow 4"),
        ({"frame_strides": (1, 2, 2)}, "2 does not follow 2"),
        ({"frame_strides": (1, 2.0)}, "2.0 does not follow 1"),
        ({"channel_shares": ()}, "begin with 1.0"),
        ({"channel_shares": (0.5,)}, "begin with 1.0"),
        ({"channel_shares": (1.0, 0.5, 0.5)}, "0.5 does not follow 0.5"),
        ({"channel_shares": (1.0, 0.0)}, "0.0 does not follow 1.0"),
        ({"gate_hidden": 0}, "gate_hidden=0, expected at least 1"),
        ({"gate_bins": -1}, "gate_bins=-1"),
        ({"include": "blocks.*"}, r"include is one string; write \('blocks.\*',\)"),
        ({"exclude": "stem"}, "exclude is one string"),
    ],
)
def test_values_that_cannot_work(values, message):
    with pytest.raises(ConvertError, match=f"ConvertConfig: .*{message}"):
        ConvertConfig(**values)


def test_a_config_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ConvertConfig().gate = "gumbel"
    with pytest.raises(TypeError):
        ConvertConfig("conv")


def test_errors_are_value_errors():
    assert issubclass(ConvertError, Vared2Error)
    assert issubclass(Vared2Error, ValueError)
