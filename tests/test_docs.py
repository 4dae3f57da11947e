"""Every code block of README and docs runs, and the output they print is a committed run's."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN_ELSEWHERE = {
    "pip install -e . && vared2 demo": "the demo: tests/test_demo.py",
    "pip install -e '.[test]' && pytest": "this very run",
}


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


def test_there_are_pages_and_blocks():
    assert len(PAGES) > 1
    assert sum(len(blocks(page, "python")) for page in PAGES) >= 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_what_it_is(page):
    assert {kind for kind, _ in BLOCK.findall(page.read_text())} <= {"python", "bash", "text"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, text in enumerate(blocks(page, "python"), start=1):
        exec(compile(text, f"{page.name}, python block {number}", "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_run(page, tmp_path, monkeypatch, scene_folders):
    from vared2_fx.cli import app

    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").symlink_to(scene_folders)
    for text in blocks(page, "bash"):
        for line in text.strip().splitlines():
            if line in RUN_ELSEWHERE:
                continue
            program, *arguments = shlex.split(line.split("  #")[0])
            assert program == "vared2", f"{page.name}: `{line}` is run by no test"
            if line.endswith("  # needs Kinetics"):  # too large to run, but it has to be a valid command
                name, *rest = arguments
                get_command(app).commands[name].make_context(name, rest)
                continue
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, f"{page.name}: `{line}`:\n{result.output}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_printed_output_is_a_committed_runs(page):
    results = "\n".join(path.read_text() for path in sorted((ROOT / "benchmarks" / "results").glob("*.txt")))
    for text in blocks(page, "text"):
        for part in re.split(r"^\.\.\.\n", text, flags=re.MULTILINE):
            assert part.strip("\n") in results, f"{page.name}: no result file in benchmarks/results holds\n{part}"
