"""docs/calibration.md has the numbers of the committed results."""

import json
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parents[2]
ROWS = {"r = 0.6": ("channels", "calibrated"), "R = 2, `frames=True`": ("frames", "frames too")}


def test_the_table_is_that_of_the_results():
    runs = json.loads((ROOT / "benchmarks" / "results" / "calibration.json").read_text())["runs"].values()
    page = (ROOT / "docs" / "calibration.md").read_text()

    def text(values: list[float]) -> str:
        return f"{100 * mean(values):.1f} ({', '.join(f'{100 * value:.1f}' for value in values)})"

    for granularity in ("conv", "block"):
        for name, (choice, start) in ROWS.items():
            cells = [[run[f"{granularity}, {choice}, {which}"] for run in runs] for which in ("uncalibrated", start)]
            numbers = " | ".join(text([run["top1"] for run in cell]) for cell in cells)
            assert f"| {granularity} | {name} | {100 * cells[0][0]['share']:.0f} % | {numbers} |" in page
    assert f"The original has {text([run['base'] for run in runs])}." in page
