"""What changed between two reports, and which changes are too much."""

from dataclasses import replace

import pytest
import torch

from vared2_fx import compare, policy, report
from vared2_fx.errors import ReportError
from vared2_fx.report.compare import check_conditions


@pytest.fixture
def before(dynamic, clips):
    with policy(dynamic, {"*": (2, 0.5)}):
        return report(dynamic, [(clips, torch.zeros(6, dtype=torch.int64))], timing_clips=1, timing_repeats=1)


@pytest.fixture
def after(dynamic, clips):
    with policy(dynamic, {"*": (2, 0.5), "expand": (1, 1.0), "grouped": (4, 0.5)}):
        return report(dynamic, [(clips, torch.zeros(6, dtype=torch.int64))], timing_clips=1, timing_repeats=1)


def test_regressions_come_first(before, after):
    made = compare(before, after)
    macs = [change for change in made.layers if change.name == "macs"]
    assert [change.path for change in macs] == ["expand", "grouped"]
    assert macs[0].worse > 0 > macs[1].worse
    worse = [change.worse for change in made.layers]
    assert worse == sorted(worse, reverse=True)
    rows = {layer.path: layer for layer in after.layers}
    assert macs[0].after == rows["expand"].computed_macs.mean
    assert {change.name for change in made.layers} == {"macs", "time"}
    totals = {change.name: change for change in made.totals}
    assert totals["macs"].relative == pytest.approx(
        after.totals.computed_macs.mean / before.totals.computed_macs.mean - 1
    )
    assert totals["params"].relative == 0


def test_a_report_is_no_different_from_itself(before):
    made = compare(before, before)
    assert made.layers == made.added == made.removed == made.notes == ()
    assert all(change.relative == 0 for change in made.totals)
    assert made.failures(["macs>+0%", "params>+0%", "time>+0%", "top1<-0%"]) == ()
    assert "no layer changed" in str(made)


def test_conditions(before, after):
    before, after = after, before  # more became more expensive than cheaper
    made = compare(before, after)
    change = 100 * next(c for c in made.totals if c.name == "macs").relative
    assert change > 1
    (text,) = made.failures([f"macs>+{change - 0.5:.3f}%", f"macs>+{change + 0.5:.3f}%"])
    assert text.startswith(f"macs>+{change - 0.5:.3f}%: macs went from ")
    assert len(made.failures(["macs > 0 %", "macs<+100%"])) == 2
    top1 = replace(after, totals=replace(after.totals, top1=before.totals.top1 - 0.01))
    assert compare(before, top1).failures(["top1<-0.5%"])
    assert not compare(before, top1).failures(["top1<-1.5%"])


@pytest.mark.parametrize("wrong", ["macs", "macs>2", "speed>+2%", "macs>=2%", "", "macs>+2%;drop"])
def test_conditions_that_are_none(wrong):
    with pytest.raises(ReportError, match=r"is not understood; write macs>\+2%"):
        check_conditions([wrong])


def test_a_number_that_a_report_lacks(dynamic, clips, before):
    bare = report(dynamic, clips, timing=False)
    with pytest.raises(ReportError, match=r"`time>.*` cannot be judged, as the later report has no time"):
        compare(before, bare).failures(["time>+10%"])
    with pytest.raises(ReportError, match="as the earlier report has no top1"):
        compare(bare, before).failures(["top1<-1%"])


def test_what_may_not_be_compared_is_said(before, after):
    other = replace(
        after,
        network="other",
        environment=replace(after.environment, threads=99),
        clips=after.clips[:2],
        totals=replace(after.totals, num_clips=2),
        missing=("times",),
        layers=tuple(
            replace(layer, path=f"{layer.path}x") if layer.path == "last" else layer for layer in after.layers
        ),
    )
    made = compare(before, other)
    text = " ".join(made.notes)
    for part in ("of TinyNet, the later of other", "saw 6 clips, the later 2", "different machines", "was interrupted"):
        assert part in text
    assert (made.added, made.removed) == (("lastx",), ("last",))
    assert not any(change.name == "time" for change in made.layers)


def test_as_text(before, after):
    made = compare(before, after)
    assert max(map(len, str(made).splitlines())) <= 100
    for text in (str(made), made.to_markdown()):
        assert text.index("expand") < text.index("grouped")
        assert "macs" in text
    evil = replace(before, network="<script>|")
    assert "<script>" not in compare(before, evil).to_markdown()
