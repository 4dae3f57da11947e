"""The page: what is in it, and how it behaves in a real browser."""

import json
import re
import shutil
from dataclasses import fields, replace

import pytest
import torch
from networks import make_clip, tiny_net

from vared2_fx import RunLog, report, scan, scan_page
from vared2_fx.errors import ReportError
from vared2_fx.report.document import Alarm
from vared2_fx.report.flow import flow
from vared2_fx.report.html import NUM_BINS, _box, _costs
from vared2_fx.train import EpochLog

NUMBERS = [field.name for field in fields(EpochLog) if field.name not in ("epoch", "layers")]
EVIL = "<script>window.hacked = true</script>"
LIMIT_BYTES = 2 * 2**20


@pytest.fixture
def made(dynamic, clips):
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    batch = {"video": clips, "label": labels, "video_name": [f"videos/{i}.mp4" for i in range(6)]}
    return report(dynamic, [batch], timing_clips=2, timing_repeats=1, sensitivity=True, notes=("a note.",))


def evil(made):
    """The report with a script in every text that comes from outside."""
    names = {layer.path: f"{layer.path}{EVIL}" for layer in made.layers}

    def renamed(layer):
        return replace(layer, path=names[layer.path], operation=EVIL, source_class=EVIL, detail=EVIL)

    nodes = tuple(
        replace(n, name=names.get(n.name, n.name + EVIL), operation=EVIL, reads=tuple(names.get(r, r) for r in n.reads))
        for n in made.graph
    )
    return replace(
        made,
        network=EVIL,
        notes=(EVIL,),
        missing=(EVIL,),
        layers=tuple(map(renamed, made.layers)),
        graph=nodes,
        classes=(EVIL,) * 5,
        clips=tuple(replace(clip, name=EVIL) for clip in made.clips),
        alarms=tuple(replace(alarm, path=EVIL, text=EVIL) for alarm in made.alarms),
    )


def test_the_page_needs_nothing_else(made, tmp_path):
    page = made.to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
    assert len(page.encode()) < LIMIT_BYTES
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)


def test_the_page_names_every_layer_and_clip(made):
    page = made.to_html()
    for layer in made.layers:
        assert f">{layer.path}</button>" in page
    assert "a note." in page
    for number in range(6):
        assert f">videos/{number}.mp4</h4>" in page
    assert page.count('src="data:image/jpeg;base64,') == sum(len(example.frames) for example in made.examples) == 6 * 8


def test_the_histogram_sums_to_the_number_of_clips(made):
    costs = _costs(made)
    assert len(costs["counts"]) == NUM_BINS
    assert sum(costs["counts"]) == made.totals.num_clips == 6


def test_what_comes_from_outside_is_shown_as_text(made):
    page = evil(made).to_html()
    assert "<script>window" not in page
    assert "&lt;script&gt;window.hacked" in page
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert EVIL in json.loads(data)[0]["title"]


def test_a_page_without_times_labels_and_pictures(dynamic, clips):
    made = report(dynamic, clips, timing=False, rebuild_error=False, thumbnails=False)
    page = made.to_html()
    assert "not measured" in page
    assert "the data has no labels" in page
    assert "<img" not in page


def test_a_page_that_cannot_be_written(made, tmp_path):
    with pytest.raises(ReportError, match="cannot be written"):
        made.to_html(tmp_path / "nowhere" / "report.html")


@pytest.fixture(scope="module")
def chromium():
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no browser: install Debian's chromium (apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e '.[test]'")
    with sync_api.sync_playwright() as library:
        browser = library.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, tmp_path):
    """Open a page; after the test there was no console message, no error and no request but for the page itself."""
    heard, contexts = [], []

    def open_page(html, **options):
        path = tmp_path / "page.html"
        path.write_text(html, encoding="utf-8")
        contexts.append(chromium.new_context(**{"viewport": {"width": 1200, "height": 900}, **options}))
        page = contexts[-1].new_page()
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on(
            "request", lambda request: request.url.startswith(("data:", path.as_uri())) or heard.append(request.url)
        )
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert heard == []


def column(page, place):
    script = f"rows => rows.map(row => row.children[{place}].dataset.value).filter(v => v !== undefined).map(Number)"
    return page.eval_on_selector_all("#table tbody tr", script)


def test_sorting(visit, made):
    page = visit(made.to_html())
    assert column(page, 1) == [layer.dense_macs.mean for layer in made.layers]
    page.get_by_role("button", name="MACs", exact=True).click()
    assert column(page, 1) == sorted(layer.dense_macs.mean for layer in made.layers)
    assert page.get_attribute("#table th:nth-child(2)", "aria-sort") == "ascending"
    page.keyboard.press("Enter")  # the button has the focus
    assert column(page, 1) == sorted((layer.dense_macs.mean for layer in made.layers), reverse=True)
    assert page.get_attribute("#table th:nth-child(2)", "aria-sort") == "descending"


def test_filtering(visit, made):
    page = visit(made.to_html())
    shown = page.locator("#table tbody tr:visible")
    assert shown.count() == len(made.layers) == 7
    page.get_by_label("Filter").fill("depth")
    assert shown.count() == 1
    assert page.locator("[data-count]").inner_text() == "1 of 7 layers"
    page.get_by_label("Filter").fill("")
    page.get_by_label("Kind").select_option("static")
    assert [row.inner_text().split()[0] for row in shown.all()] == ["down.0"]


def test_a_click_opens_a_layers_card_and_escape_closes_it(visit, made):
    page = visit(made.to_html())
    card = page.locator("dialog")
    assert not card.is_visible()
    page.get_by_role("button", name="expand", exact=True).focus()
    page.keyboard.press("Enter")
    assert page.locator("#card-title").inner_text() == "expand"
    assert "Conv3d 8→13 1×1×1" in card.inner_text()
    assert card.locator("tbody tr").count() == 6
    page.keyboard.press("Escape")
    assert not card.is_visible()
    page.locator(".flow a", has_text="grouped").click()
    assert page.locator("#card-title").inner_text() == "grouped"
    page.get_by_role("button", name="Close the card").click()
    page.locator(".chart rect[data-card]").first.click()
    assert page.locator("#card-title").inner_text() == made.dynamic[0].path


def test_a_script_in_a_name_is_text_in_its_card_too(visit, made):
    page = visit(evil(made).to_html())
    page.locator("button.open").first.click()
    assert page.locator("#card-title").inner_text() == f"stem.0{EVIL}"
    assert page.evaluate("window.hacked") is None


def background(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


@pytest.mark.parametrize(("system", "first", "then"), [("light", "Dark", "Light"), ("dark", "Light", "Dark")])
def test_both_themes(visit, made, system, first, then):
    page = visit(made.to_html(), color_scheme=system)
    before = background(page)
    assert page.locator("#theme").inner_text() == first
    page.locator("#theme").click()
    assert background(page) != before
    assert page.locator("#theme").inner_text() == then
    page.reload()  # it is remembered
    assert background(page) != before


def test_a_narrow_screen(visit, made):
    page = visit(made.to_html(), viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_pictures_stand_still_where_motion_is_unwanted(visit, made):
    moving = "getComputedStyle(document.querySelector('.film')).animationName"
    page = visit(made.to_html())
    assert page.evaluate(moving) == "play"
    page.get_by_role("button", name="Pause the clips").click()
    page.wait_for_function("getComputedStyle(document.querySelector('.film')).animationPlayState == 'paused'")
    page = visit(made.to_html(), reduced_motion="reduce")
    assert page.evaluate(moving) == "none"
    assert not page.locator("#pause").is_visible()


def test_in_print_nothing_is_cut_off(visit, made):
    page = visit(made.to_html())
    page.emulate_media(media="print")
    assert not page.locator("header").is_visible()
    assert page.evaluate("getComputedStyle(document.querySelector('.scroll')).maxHeight") == "none"
    assert page.pdf().startswith(b"%PDF")


@pytest.mark.parametrize("system", ["light", "dark"])
def test_axe_finds_no_serious_fault(visit, made, system):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe: pip install -e '.[test]'")
    many = replace(made, alarms=(Alarm(code="slower", path="expand", text="slower " * 30),) * 40)
    page = visit(many.to_html(), color_scheme=system)
    page.locator(".alarms summary").click()
    for opened in (False, True):
        if opened:
            page.locator("button.open").first.click()
        found = axe.Axe().run(page).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")] == []


def test_the_graph_is_drawn_alike_every_time_and_no_two_points_meet(made):
    drawn = flow(made.graph, boxes := [_box(layer) for layer in made.layers])
    assert drawn == flow(made.graph, boxes)
    assert [node.name for node in made.graph if not node.operation] == ["input", "output"]
    edges = {(source, node.name) for node in made.graph for source in node.reads}
    assert {("input", "stem.0"), ("stem.0", "depthwise.0"), ("expand", "down.0"), ("down.0", "grouped")} <= edges
    (join,) = (node for node in made.graph if node.operation and node.name not in {row.path for row in made.layers})
    assert set(join.reads) == {"down.0", "grouped"}
    assert drawn.count("<path ") == len(edges)
    corners = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)"[^>]*class="box"', drawn)
    assert len(set(corners)) == len(corners) == len(made.layers)


@pytest.mark.parametrize("which", ["scan", "run"])
def test_the_other_pages_in_a_browser(visit, which):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe: pip install -e '.[test]'")
    if which == "scan":
        html = scan_page(scan(tiny_net(), make_clip(1, 3, 8, 16, 16)))
    else:
        numbers = dict.fromkeys(NUMBERS, 0.5)
        epochs = tuple(EpochLog(epoch=n, **numbers, layers={"a": {"share": 0.5, "entropy": n}}) for n in range(3))
        html = RunLog(folder="run", epochs=epochs, notes=("a note",)).to_html()
    page = visit(html, viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    found = axe.Axe().run(page).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")] == []
    if which == "scan":
        page.locator("button.open").first.click()
        assert page.locator("#card-title").inner_text() == "stem.0"
