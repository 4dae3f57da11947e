"""docs/speed.md is made from the committed results."""

import json
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def test_the_page_is_that_of_the_results():
    table = runpy.run_path(str(ROOT / "benchmarks" / "engines_table.py"))
    results = [json.loads((RESULTS / name).read_text()) for name in table["FILES"]]
    assert (ROOT / "docs" / "speed.md").read_text() == table["page"](*results)
