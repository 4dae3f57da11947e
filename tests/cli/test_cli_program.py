"""The program as a whole: help, version, what goes where, and how it ends."""

import inspect
import json
import logging
import subprocess
import sys
from typing import get_args

import pytest
from typer.testing import CliRunner

from vared2_fx import __version__
from vared2_fx.cli import app
from vared2_fx.errors import ConvertError

COMMANDS = ("zoo", "scan", "convert", "finetune", "report", "demo")


def test_help_lists_the_commands_and_the_way(run):
    text = run("--help").stdout
    for part in (*COMMANDS, "vared2 finetune x3d_s", "vared2 COMMAND --help"):
        assert part in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(run, command):
    text = run(command, "-h").stdout
    assert f"Usage: vared2 {command}" in text
    if command not in ("zoo", "demo"):
        assert "Examples:" in text
        assert text.count(f"vared2 {command} ") >= 3  # the usage, and two examples at least


def test_every_option_is_explained():
    for command in app.registered_commands:
        for name, parameter in inspect.signature(command.callback, eval_str=True).parameters.items():
            assert get_args(parameter.annotation)[1].help, f"{command.callback.__name__} {name}"


def test_version(run):
    assert run("--version").stdout == f"vared2_fx {__version__}\n"


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "vared2_fx", "scan", "x3d"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("vared2: The zoo has no network 'x3d'. Did you mean x3d_")


def test_without_a_command_it_shows_help(run):
    assert "Usage: vared2" in run(code=2).output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("dance",), "No such command 'dance'"),
        (("scan",), "Missing argument 'NETWORK'"),
        (("scan", "x3d_s", "--frame", "4"), "No such option"),
        (("scan", "x3d_s", "--frames", "four"), "Invalid value for '--frames'"),
        (("scan", "x3d_s", "--frames", "0"), "Invalid value for '--frames'"),
    ],
)
def test_usage(run, words, message):
    result = run(*words, code=2)
    assert message in result.stderr
    assert result.stdout == ""


def test_debug_shows_where():
    result = CliRunner().invoke(app, ["--debug", "scan", "nix", "--frame-strides", "2"])
    assert result.exit_code == 1
    assert isinstance(result.exception, ValueError)
    result = CliRunner().invoke(app, ["--debug", "scan", "vared2_demo", "--frame-strides", "2"])
    assert isinstance(result.exception, ConvertError)


def test_what_nobody_foresaw_is_a_failure(run):
    result = run("report", "mynets:fragile", "--frames", "4", "--size", "16", "--json", "--no-timing", code=1)
    assert "RuntimeError: only real clips break this" in result.stderr
    assert "vared2 --debug" in result.stderr
    assert result.stdout == ""


def test_interrupted(run):
    result = run("scan", "mynets:interrupted", code=130)
    assert (result.stdout, result.stderr) == ("", "vared2: interrupted\n")


def test_what_the_library_logs_goes_to_stderr(run, caplog):
    result = run("-v", "convert", "mynets:build", "--frames", "4", "--size", "16", "--out", "a", "--json")
    json.loads(result.stdout)
    assert "check: largest difference" in result.stderr
    assert "check: largest" not in run("convert", "mynets:build", "--frames", "4", "--size", "16", "--out", "b").stderr
    handlers = logging.getLogger("vared2_fx").handlers
    assert len({type(handler) for handler in handlers}) == len(handlers)
