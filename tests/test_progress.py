"""The progress bar: only for those who wait, only on a terminal, only on stderr."""

import io
import sys
import threading
import time

import pytest

from vared2_fx import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def endless_loader():
    yield from range(3)


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("quiet_s", [0.0, 60.0])
def test_items_pass_and_the_bar_shows_when_it_takes_long(monkeypatch, capsys, terminal, quiet_s):
    shown = Terminal() if terminal else io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(progress, "QUIET_S", quiet_s)
    for items in ([0, 1, 2], endless_loader()):
        assert list(progress.track(items, "Counting")) == [0, 1, 2]
    assert ("Counting" in shown.getvalue()) == (terminal and quiet_s == 0)
    assert capsys.readouterr().out == ""


def test_not_wanted(monkeypatch):
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    assert list(progress.track(range(3), "Counting", enabled=False)) == [0, 1, 2]
    assert shown.getvalue() == ""


def test_an_error_ends_the_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "QUIET_S", 0.0)

    def breaks():
        yield 0
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(progress.track(breaks(), "Counting"))


@pytest.mark.parametrize(
    ("terminal", "quiet_s", "expected"), [(True, 0.0, True), (True, 60.0, False), (False, 0.0, False)]
)
def test_waiting(monkeypatch, terminal, quiet_s, expected):
    shown = Terminal() if terminal else io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(progress, "QUIET_S", quiet_s)
    with progress.waiting("Converting"):
        time.sleep(0.3)
    assert ("Converting" in shown.getvalue()) == expected
    assert not any(isinstance(thread, threading.Timer) for thread in threading.enumerate())


@pytest.mark.parametrize("together", [True, False])
def test_lines_in_a_file_are_not_moved_to_the_terminal(monkeypatch, together):
    """`command > lines` shows its bar on the terminal, and its lines are for the file."""
    out, shown = (Terminal() if together else io.StringIO()), Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    for item in progress.track(range(3), "Counting"):
        print(f"line {item}")
    wanted = "line 0\nline 1\nline 2\n"
    assert "Counting" in shown.getvalue()
    assert (out.getvalue() == wanted) != together
