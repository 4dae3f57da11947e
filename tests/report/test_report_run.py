"""A training as its log tells it."""

import json
import math

import pytest
from networks import make_clip, tiny_net

from vared2_fx import ConvertConfig, FinetuneConfig, convert, finetune, read_run
from vared2_fx.errors import ReportError
from vared2_fx.passes.rewrite import regions
from vared2_fx.train.history import best_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two epochs."""
    out = tmp_path_factory.mktemp("run")
    dynamic = convert(tiny_net(), make_clip(1, 3, 8, 16, 16), ConvertConfig(min_macs_share=0))
    loader = [(make_clip(5, 3, 8, 16, 16), make_clip(5).abs().long())]
    finetune(dynamic, loader, loader, FinetuneConfig(epochs=2, out=str(out), progress=False))
    return out


def changed(folder, tmp_path, change):
    """The log with its lines, as dicts, changed."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    change(lines)
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return tmp_path


def test_every_epoch_and_layer_is_there(folder):
    run = read_run(folder)
    assert [epoch.epoch for epoch in run.epochs] == [0, 1, 2]
    dynamic = convert(tiny_net(), make_clip(1, 3, 8, 16, 16), ConvertConfig(min_macs_share=0))
    assert run.paths == tuple(regions(dynamic))
    for layer in run.epochs[0].layers.values():
        assert layer["share"] > 1  # everything computed, and the gate
        assert layer["entropy"] == 0
    assert run.best is best_of(run.epochs)
    assert run.notes == ()
    text = str(run)
    assert max(map(len, text.splitlines())) <= 100
    assert all(path in text for path in run.paths)
    assert text.count("best") == 1
    assert json.loads(json.dumps(run.to_document(), allow_nan=False))["epochs"][2]["epoch"] == 2


def test_the_page_of_a_run(folder, tmp_path):
    page = read_run(folder).to_html(tmp_path / "run.html")
    assert (tmp_path / "run.html").read_text(encoding="utf-8") == page
    assert page.count("<polyline") == 5
    for path in read_run(folder).paths:
        assert f"<code>{path}</code>" in page


def test_a_loss_that_is_nan_is_said(folder, tmp_path):
    def diverge(lines):
        for line in lines[1:]:
            line.update(train_loss=math.nan, objective=math.nan, accuracy=0.0)

    run = read_run(changed(folder, tmp_path, diverge))
    assert "The loss is nan in epoch 1: training diverged." in run.notes[0]
    assert run.best.epoch == 0
    assert run.to_document()["epochs"][1]["train_loss"] is None
    assert "training diverged" in str(run)
    assert "training diverged" in run.to_html()
    all_lost = read_run(changed(folder, tmp_path, lambda lines: [line.update(objective=math.nan) for line in lines]))
    assert all_lost.best is None
    assert "every objective is NaN" in all_lost.to_html()


def test_a_line_that_is_being_written_is_left_out(folder, tmp_path):
    text = (folder / "log.jsonl").read_text()
    (tmp_path / "log.jsonl").write_text(text + '{"epoch": 3, "train')
    run = read_run(tmp_path)
    assert len(run.epochs) == 3
    assert "not finished" in run.notes[0]


def test_a_log_without_layers_reads_too(folder, tmp_path):
    run = read_run(changed(folder, tmp_path, lambda lines: [line.pop("layers") for line in lines]))
    assert run.paths == ()
    assert "no numbers for layers" in run.to_html()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[0].update(new=1), r"line 1: this is no epoch of a run of this release \(unknown: new"),
        (lambda lines: lines[1].pop("share"), "line 2: this is no epoch .*share"),
        (lambda lines: lines[1].update(share="much"), "line 2: .*share is 'much'"),
        (lambda lines: lines[1].update(layers={"a": {}}), "line 2: this is no epoch"),
        (lambda lines: lines[1].update(layers=[1]), "line 2: this is no epoch"),
        (lambda lines: lines.clear(), "no epoch"),
    ],
)
def test_a_log_of_another_version(folder, tmp_path, change, message):
    with pytest.raises(ReportError, match=message):
        read_run(changed(folder, tmp_path, change))


def test_no_log(tmp_path):
    with pytest.raises(ReportError, match=r"no log of a run in .*No such file"):
        read_run(tmp_path)
    (tmp_path / "log.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ReportError, match="it is no text"):
        read_run(tmp_path)
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(ReportError, match="is empty"):
        read_run(tmp_path)
