"""The page of `fedpeft report` in a browser: it draws, sorts, switches and saves without a word on
the console."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from cells import write_cell, write_study
from running import fedpeft

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
WIDTHS = (360, 768, 1280, 1920)
TOOLS = Path(__file__).parents[1] / "tools"
FIGURES = 7
HOVERED = [
    ("rounds", "symbol", "group, round, accuracy, interval"),
    ("rounds", "rule", "group, accuracy, interval"),  # what is no federation
    ("bytes-up", "symbol", "group, bytes sent, accuracy, interval"),
    ("bytes-up", "rule", "group, accuracy, interval"),
    ("bytes-down", "symbol", "group, bytes received, accuracy, interval"),
    ("axis-method", "rect", "group, accuracy, interval"),
    ("clients", "rect", "group, client, seed, accuracy"),
    ("epsilon", "symbol", "group, round, epsilon, at"),
    ("partition", "rect", "client, class, examples"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    write_study(root / "study")
    evil = '<img src=x onerror="window.evil=1">'
    plan = {"routing": [{"name": "personal", "patterns": ["*"]}]}
    write_cell(root / "study" / "alone", [None, None, 0.35], method="head", up=40, plan=plan)
    write_cell(
        root / "study" / "evil", [0.4, 0.5, 0.6], method=evil, classes=(evil, "y"), failed=evil
    )
    out = root / "page.html"
    assert fedpeft("report", root / "study", "-o", out).exit_code == 0
    return out


@dataclass(frozen=True)
class Opened:
    """A drawn page, and what it has said on the console."""

    page: Any
    said: list[str]


@pytest.fixture(scope="module", params=["light", "dark"])
def opened(browser: Any, page_file: Path, request: pytest.FixtureRequest) -> Iterator[Opened]:
    with opened_at(browser, page_file, request.param) as found:
        yield found


@contextmanager
def opened_at(browser: Any, page_file: Path, scheme: str) -> Iterator[Opened]:
    """It has no network: whatever the page asks for fails and is said."""
    context, said = (
        browser.new_context(color_scheme=scheme, offline=True, accept_downloads=True),
        list[str](),
    )
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(page_file.as_uri())
    page.wait_for_function("document.documentElement.dataset.drawn", timeout=30_000)
    yield Opened(page, said)
    context.close()


@pytest.fixture
def page(opened: Opened) -> Iterator[Any]:
    """The page; no test may make it say anything."""
    yield opened.page
    assert opened.said == []


def background(page: Any) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def test_it_draws_at_every_width(page: Any) -> None:
    assert page.evaluate("document.documentElement.dataset.drawn") == "yes"
    assert page.locator(".plot svg").count() == FIGURES
    assert page.locator(".plot .role-legend").count() == 0  # the page has one for all
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(150)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        over = """[...document.querySelectorAll('.plot')]
            .filter(p => p.scrollWidth > p.clientWidth + 1).length"""
        assert page.evaluate(over) == 0
    assert page.evaluate("window.evil") is None


def test_the_names_of_the_front_do_not_overlap(page: Any) -> None:
    boxes = page.evaluate(
        """[...document.querySelectorAll('[data-figure="bytes-up"] svg .mark-text.role-mark text')]
        .filter(t => t.textContent && +getComputedStyle(t).opacity).map(t => {
          const b = t.getBoundingClientRect();
          return [t.textContent, b.left, b.right, b.top, b.bottom]; })"""
    )
    assert {"head", "bias"} <= {box[0] for box in boxes}
    for k, (_, left, right, top, bottom) in enumerate(boxes):
        for _, left2, right2, top2, bottom2 in boxes[k + 1 :]:
            assert right <= left2 or right2 <= left or bottom <= top2 or bottom2 <= top


def test_the_switch_changes_the_theme(page: Any) -> None:
    before, button = background(page), page.locator("#theme")
    text = button.inner_text()
    button.click()
    assert background(page) != before and button.inner_text() != text
    button.click()
    assert background(page) == before


def test_tables_sort_by_number_and_by_name(page: Any) -> None:
    table = page.locator("table").first
    heading = table.locator("thead th", has_text="parameters trained")
    column = heading.evaluate("th => th.cellIndex") + 1
    cells = table.locator(f"tbody tr > :nth-child({column})")
    heading.locator("button").click()
    assert cells.all_inner_texts() == ["10", "25", "125", "250", "500"]
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.locator("button").click()
    assert cells.all_inner_texts() == ["500", "250", "125", "25", "10"]
    table.locator("thead th button").first.click()
    assert table.locator("tbody th").all_inner_texts()[1:] == [
        "bias",
        "head",
        "local only, head",
        "lora",
    ]
    assert heading.get_attribute("aria-sort") == "none"


def test_a_group_can_be_hidden(page: Any) -> None:
    bars = page.locator('[data-figure="axis-method"] .mark-rect.role-mark path')
    assert bars.count() == 4
    page.locator(".chip", has_text="lora").click()
    page.wait_for_timeout(300)
    assert bars.count() == 3
    page.locator(".chip", has_text="lora").click()
    page.wait_for_timeout(300)
    assert bars.count() == 4


def test_bars_are_as_long_as_the_means(page: Any) -> None:
    bars = page.locator('[data-figure="axis-method"] .mark-rect.role-mark path')
    told = [bars.nth(k).get_attribute("aria-label") for k in range(bars.count())]
    wide = {
        str(text).split("group: ")[1].split(";")[0]: bars.nth(k).bounding_box()["width"]
        for k, text in enumerate(told)
    }
    # the means are 0.72, 0.62 and 0.42
    assert wide["lora"] / wide["bias"] == pytest.approx(62 / 72, abs=0.01)
    assert wide["head"] / wide["bias"] == pytest.approx(42 / 72, abs=0.01)


def test_a_line_goes_through_the_means(page: Any) -> None:
    draw = """async () => {
      const spec = JSON.parse(document.querySelector('script.specs').textContent).rounds;
      const wide = { ...spec, width: 500 };
      const { view } = await vegaEmbed(document.createElement('div'), wide, { actions: false });
      const lines = (mark) =>
        mark.marktype === 'line' ? mark.items : (mark.items || []).flatMap(lines);
      const drawn = lines(view.scenegraph().root)
        .filter((item) => item.datum && item.datum.group === 'bias');
      return drawn.map((item) => view.scale('y').invert(item.y));
    }"""
    points = page.evaluate(draw)
    assert points == pytest.approx([0.4, 0.6, 0.72], abs=1e-3)


@pytest.mark.parametrize(("figure", "mark", "words"), HOVERED)
def test_hovering_tells_the_values(page: Any, figure: str, mark: str, words: str) -> None:
    page.mouse.move(0, 0)
    tip = page.locator("#vg-tooltip-element")
    tip.wait_for(state="hidden")
    marks = page.locator(f'[data-figure="{figure}"] .mark-{mark}.role-mark').locator("path, line")
    marks.last.evaluate("mark => mark.scrollIntoView({ block: 'center' })")
    box = marks.last.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip.wait_for(state="visible")
    assert set(words.split(", ")) <= set(tip.locator("td.key").all_inner_texts())
    assert all(tip.locator("td.value").all_inner_texts())


@pytest.mark.slow
def test_the_picture_of_a_report_is_taken_in_light_and_in_dark(
    browser: Any, tmp_path: Path
) -> None:
    from PIL import Image

    write_study(tmp_path / "study")
    out = tmp_path / "report.png"
    subprocess.run(
        [sys.executable, TOOLS / "report_picture.py", tmp_path / "study", out], check=True
    )
    shades = []
    for path in (out, tmp_path / "report-dark.png"):
        picture: Any = Image.open(path).convert("RGB")
        assert picture.size == (1280, 1480) and len(picture.getcolors(2**24)) > 50
        shades.append(picture.getpixel((5, 5))[0])
    assert shades[0] > 200 and shades[1] < 60


def test_figures_can_be_saved(page: Any, tmp_path: Path) -> None:
    for number in range(FIGURES):
        with page.expect_download() as download:
            page.locator("button.save").nth(number).click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in path.read_text()
        if path.name == "rounds.svg":
            texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
            # A legend, which the page has beside its figures.
            assert {"bias", "head", "lora"} <= set(texts)
