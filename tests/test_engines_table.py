"""docs/speed.md is made from the committed results."""

import json
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "engines.json").read_text())


def test_the_page_is_that_of_the_results():
    table = runpy.run_path(str(ROOT / "benchmarks" / "engines_table.py"))
    assert (ROOT / "docs" / "speed.md").read_text() == table["page"](RESULTS)
