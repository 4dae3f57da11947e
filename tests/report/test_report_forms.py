"""A report as JSON, CSV and text."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch

from vared2_fx import CompressionReport, report
from vared2_fx.errors import ReportError
from vared2_fx.report.document import Failure
from vared2_fx.report.schema import json_schema
from vared2_fx.report.stages import stages

SCHEMA_FILE = Path(__file__).parents[2] / "docs" / "report.schema.json"


@pytest.fixture
def made(dynamic, clips):
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    batch = {"video": clips, "label": labels, "video_name": [f"clip, {i}.mp4" for i in range(6)]}
    return report(dynamic, [batch], timing_clips=1, timing_repeats=1, notes=("weights are random.",))


def test_json_there_and_back(made):
    text = made.to_json()
    assert CompressionReport.from_json(text) == made
    assert CompressionReport.from_json(made.to_json(indent=None)) == made
    document = json.loads(text)
    assert (document["schema"], document["version"]) == ("vared2_fx.report", 2)
    assert document["totals"]["computed_macs"]["total"] == made.totals.computed_macs.total
    assert isinstance(document["layers"][0]["dense_macs"]["min"], int)
    assert document["environment"]["torch"] == torch.__version__


def test_json_without_times_and_labels(dynamic, clips):
    made = report(dynamic, clips, timing=False)
    assert CompressionReport.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=1), "version 1, this release reads 2"),
        (lambda d: d.pop("version"), "version None"),
        (lambda d: d.update(schema="other"), "this JSON is no report"),
        (lambda d: d.pop("totals"), "report should have the fields .*different: totals"),
        (lambda d: d["totals"].update(more=1), "report.totals should have .*different: more"),
        (lambda d: d["totals"].update(params="many"), "report.totals.params is 'many'; expected int"),
        (lambda d: d["totals"].update(params=1.5), "report.totals.params is '1.5'; expected int"),
        (lambda d: d["totals"].update(params=True), "report.totals.params is 'True'; expected int"),
        (lambda d: d["layers"][1].update(kind="dynamite"), r"report.layers\[1\].kind is 'dynamite'"),
        (lambda d: d.update(layers=None), "report.layers is 'None'"),
        (lambda d: d.update(layers=[3]), r"report.layers\[0\] is '3'; expected LayerReport"),
    ],
)
def test_json_that_is_no_report(made, change, message):
    document = json.loads(made.to_json())
    change(document)
    with pytest.raises(ReportError, match=message):
        CompressionReport.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null"])
def test_text_that_is_no_report(text):
    with pytest.raises(ReportError, match=r"this (is no JSON|JSON is no report)"):
        CompressionReport.from_json(text)


def test_csv_has_a_row_for_each_layer(made):
    rows = list(csv.DictReader(io.StringIO(made.to_csv())))
    assert [row["path"] for row in rows] == [layer.path for layer in made.layers]
    for name, total in (
        ("dense_macs", made.totals.dense_macs),
        ("computed_macs", made.totals.computed_macs),
        ("cheap_macs", made.totals.cheap_macs),
        ("gate_macs", made.totals.gate_macs),
    ):
        assert sum(float(row[name]) for row in rows) == pytest.approx(total.mean)
    dynamic = [row for row in rows if row["kind"] == "dynamic"]
    choices = [name for name in rows[0] if name.startswith("clips_R")]
    assert choices[:3] == ["clips_R1_r1", "clips_R1_r0.5", "clips_R2_r1"]
    for row in dynamic:
        assert sum(int(row[name] or 0) for name in choices) == 6
        assert float(row["dense_ms"]) > 0
    (static,) = (row for row in rows if row["kind"] == "static")
    assert (static["reason"], static["dense_ms"], static["clips_R1_r1"]) == ("excluded", "", "")


def test_text_fits_100_columns_and_says_what_matters(made):
    text = str(made)
    assert max(map(len, text.splitlines())) <= 100
    for part in (
        "TinyNet: 5 dynamic layers, 6 clips of 3×8×16×16",
        "note: weights are random.",
        "excluded: exclude names it by",
    ):
        assert part in text
    for layer in made.layers:
        assert layer.path in text
    for part in ("FLOPs per clip (2 × multiply-adds)", "top-1", "batch 1", "1 clip picked at random", "Not counted:"):
        assert part in text
    assert made.environment.torch in text


def test_long_and_odd_names_fit_too(made):
    odd = "[red]" + "blocks.1." * 12 + "<script>"
    layers = tuple(
        replace(layer, path=f"{odd}{i}", operation=layer.operation * 3) for i, layer in enumerate(made.layers)
    )
    text = str(replace(made, layers=layers, notes=("word " * 60, "[bold]x")))
    assert max(map(len, text.splitlines())) <= 100
    assert "[red]" in text
    assert "[bold]x" in text


def test_many_small_static_layers_take_one_line(made):
    layers = []
    for layer in made.layers:
        tiny = replace(layer.dense_macs, total=1, mean=0.1)
        layers += (
            [replace(layer, path=f"{layer.path}.{i}", dense_macs=tiny) for i in range(9)] if layer.reason else [layer]
        )
    text = str(replace(made, layers=tuple(layers)))
    assert "9 small ones" in text
    assert "such as down.0.0" in text
    assert "down.0.5" not in text


def test_a_report_of_many_failures_shows_some(made):
    failures = tuple(Failure(name=f"{i}.mp4", reason=f"`{i}.mp4` is broken") for i in range(9))
    text = str(replace(made, failures=failures))
    assert "Videos that failed: 9" in text
    assert "`4.mp4`" in text
    assert "… and 4 more" in text
    assert "`5.mp4`" not in text


def test_the_published_schema_is_this_release_s_and_reports_keep_to_it(made, dynamic, clips):
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    assert schema == json_schema(), "python -m vared2_fx.report.schema > docs/report.schema.json"
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    bare = report(dynamic, clips, timing=False, rebuild_error=False, thumbnails=False)
    for one in (made, bare, report(dynamic, clips, timing=False, sensitivity=True)):
        validator.validate(json.loads(one.to_json()))
    broken = json.loads(made.to_json())
    broken["layers"][0]["params"] = "many"
    assert not validator.is_valid(broken)
    assert schema["$defs"]["PerClip"]["properties"]["p50"]["description"] == "Median."


def test_many_layers_are_folded_by_stage(made):
    one = made.dynamic[0]
    layers = tuple(replace(one, path=f"blocks.{i}.part{j}.conv") for i in range(4) for j in range(10))
    many = replace(made, layers=layers)
    text = str(many)
    assert "blocks.2, 10 layers" in text
    assert "blocks.2.part3.conv" not in text
    assert max(map(len, text.splitlines())) <= 100
    assert "blocks.2.part3.conv" in many.to_text(fold=False)
    assert [(stage.name, len(stage.layers)) for stage in stages(layers)] == [(f"blocks.{i}", 10) for i in range(4)]
    assert "stem, 1 layer" in made.to_text(fold=True)


def test_markdown(made):
    odd = replace(made, network="a|b <script>", notes=("*bold* [x](y)",))
    text = odd.to_markdown()
    assert "<script>" not in text
    assert r"a\|b &lt;script&gt;" in text
    assert r"\*bold\*" in text
    for layer in made.dynamic:
        assert f"| `{layer.path}` |" in text
    rows = [line for line in text.splitlines() if line.startswith("| `expand` |")]
    assert all(f"{100 * made.dynamic[2].computed_share:.1f} %" in row for row in rows)


@pytest.mark.parametrize("form", ["png", "svg"])
def test_plots(made, tmp_path, form):
    paths = made.save_plots(tmp_path / "plots", form=form)
    assert [path.name for path in paths] == [f"{name}.{form}" for name in ("depth", "choices", "clips", "classes")]
    head = {"png": b"\x89PNG", "svg": b"<?xml"}[form]
    assert all(path.read_bytes().startswith(head) for path in paths)


def test_plots_without_labels_and_where_there_is_no_place(dynamic, clips, tmp_path):
    made = report(dynamic, clips, timing=False)
    assert len(made.save_plots(tmp_path)) == 3
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match="plots cannot be written into"):
        made.save_plots(tmp_path / "file")


def test_records_for_pandas(made):
    records = made.to_records()
    assert len(records) == len(made.layers)
    assert {len(record) for record in records} == {len(records[0])}
    assert all(isinstance(value, (int, float, str, type(None))) for record in records for value in record.values())
    assert sum(record["dense_macs"] for record in records) == pytest.approx(made.totals.dense_macs.mean)
    assert sum(record["dense_share"] for record in records) == pytest.approx(1)
