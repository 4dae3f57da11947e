"""docs/networks.md: made from the committed results, and these are what the code gives today."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from vared2_fx import zoo

ROOT = Path(__file__).parents[1]
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "networks.json").read_text())
SMALL = ("vared2_demo", "x3d_xs", "efficient_x3d_xs")
TRANSFORMERS = {name for name in zoo.names() if name.startswith(("mvit", "swin"))}
NEAR = 1e-6
"""As in test_convert_zoo.py."""


@pytest.fixture(scope="module")
def table():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return runpy.run_path(str(ROOT / "benchmarks" / "networks_table.py"))
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_every_network_of_the_zoo_is_in_it():
    assert tuple(RESULTS["networks"]) == zoo.names()


def test_the_page_is_that_of_the_results(table):
    assert (ROOT / "docs" / "networks.md").read_text() == table["page"](RESULTS)


@pytest.mark.parametrize("name", zoo.names())
def test_counts_are_those_of_today(name, table):
    row = dict(RESULTS["networks"][name])
    row.pop("error")
    assert table["facts"](name) == row


@pytest.mark.parametrize("name", zoo.names())
def test_results_say_what_the_page_claims(name):
    row = RESULTS["networks"][name]
    assert (row["converted"] == 0) == bool(row["why_nothing"]) == (row["error"] is None) == (name in TRANSFORMERS)
    if name in TRANSFORMERS:
        assert row["cheapest_macs"] == row["macs"]
    else:
        assert row["not_followed"] == 0
        assert row["error"] <= NEAR
        assert 0.1 < row["cheapest_macs"] / row["macs"] < 0.2  # 1/2 · 1/4, and overhead


@pytest.mark.parametrize("name", [n if n in SMALL else pytest.param(n, marks=pytest.mark.slow) for n in zoo.names()])
@pytest.mark.timeout(1200)
def test_the_error_at_full_size_is_within_rounding(name, table):
    measured = table["error"](name)
    assert (measured is None) == (name in TRANSFORMERS)
    assert measured is None or measured <= NEAR
