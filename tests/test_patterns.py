"""Patterns: the one language for naming layers."""

import pytest

from vared2_fx.errors import ConvertError
from vared2_fx.patterns import check_pattern, matching, no_match

PATHS = ["stem", "blocks.1.conv", "blocks.1.norm.conv", "blocks.10.conv", "blocks.2.branch.conv", "head[0].conv"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("stem", ["stem"]),
        ("blocks.1", ["blocks.1.conv", "blocks.1.norm.conv"]),
        ("blocks.1.*", ["blocks.1.conv", "blocks.1.norm.conv"]),
        ("blocks.*.conv", [path for path in PATHS if path.startswith("blocks")]),
        ("*.branch.*", ["blocks.2.branch.conv"]),
        ("blocks.[12].*", ["blocks.1.conv", "blocks.1.norm.conv", "blocks.2.branch.conv"]),
        ("block?", []),
        ("block", []),
        ("BLOCKS.1.conv", []),
        ("head[[]0].conv", ["head[0].conv"]),
        ("*", PATHS),
        (r"re:blocks\.\d\.conv", ["blocks.1.conv"]),
        (r"re:blocks\.1\d?\..*", ["blocks.1.conv", "blocks.1.norm.conv", "blocks.10.conv"]),
        ("re:blocks", []),
        ("re:(?!blocks).*", ["stem", "head[0].conv"]),
    ],
)
def test_what_a_pattern_names(pattern, found):
    check_pattern("here", pattern)
    assert matching(pattern, PATHS) == found


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "'' is no pattern; write a path"),
        (None, "None is no pattern"),
        (3, "3 is no pattern"),
        (str, "no pattern"),
        ("re:blocks.(", r"'re:blocks.\(' is no regular expression \(missing"),
    ],
)
def test_what_can_be_no_pattern(pattern, message):
    with pytest.raises(ConvertError, match=f"here: .*{message}"):
        check_pattern("here", pattern)


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("blocks.1.convv", "near it are blocks.1.conv"),
        (r"re:blocks\.2\.branch", "blocks.2.branch"),
        ("blokcs.2", "near it are blocks.2"),
        ("zzzzzzzz", r"6 things\.$"),
    ],
)
def test_near_misses_are_named(pattern, near):
    error = no_match("here", pattern, PATHS, "things")
    with pytest.raises(ConvertError, match=near):
        raise error
