"""The pictures in a report: which models stand side by side, and that a page of them needs nothing
else."""

import json
from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from cells import write_cell
from PIL import Image
from running import fedpeft
from test_report import Page
from test_report_browser import Opened, browser, opened_at

from fedpeft.report.gallery import COLUMNS, ROWS, galleries
from fedpeft.report.groups import sections
from fedpeft.report.reading import read_cells

__all__ = ["browser"]
EVIL = '"><img src=x onerror="window.evil=1">'


def webp(shade: int) -> str:
    held = BytesIO()
    Image.new("RGB", (8, 8), (shade, 255 - shade, 90)).save(held, "WEBP", lossless=True)
    return b64encode(held.getvalue()).decode()


def draw(
    run: Path, shade: int, captions: Sequence[str] = ("a cat", EVIL), clip: Any = None, **how: Any
) -> Path:
    pictures = [
        {"caption": caption, "truth": webp(k), "before": webp(100 + k), "after": webp(shade + k)}
        for k, caption in enumerate(captions)
    ]
    told = {
        "round": 1,
        "steps": 25,
        "guidance": 3.0,
        "seed": 0,
        "pictures": pictures,
        "clip": clip,
        **how,
    }
    (run / "pictures.json").write_text(json.dumps(told))
    return run


def of(root: Path) -> list[Any]:
    (section,) = sections(read_cells([root])[0])
    return galleries(section)


def test_models_stand_side_by_side_that_drew_the_same(tmp_path: Path) -> None:
    """A group's first seed that has pictures stands for it; other noise is a gallery of its own."""
    write_cell(tmp_path / "bias", [0.5], method="bias", seed=1)
    draw(write_cell(tmp_path / "bias-2", [0.5], method="bias", seed=2), 30)
    draw(write_cell(tmp_path / "bias-3", [0.5], method="bias", seed=3), 40)
    draw(write_cell(tmp_path / "lora", [0.5]), 60)
    draw(write_cell(tmp_path / "head", [0.5], method="head"), 80, seed=7)
    write_cell(tmp_path / "full", [0.5], method="full")
    one, other = of(tmp_path)
    assert [column.name for column in one.columns] == ["held out", "before", "bias", "lora"]
    assert [column.pictures[1] for column in one.columns] == [
        webp(1),
        webp(101),
        webp(31),
        webp(61),
    ]
    assert one.columns[2].about == ["seed 2, round 1"] and one.captions == ["a cat", EVIL]
    assert [column.name for column in other.columns] == ["held out", "before", "head"]


def test_a_gallery_is_bounded(tmp_path: Path) -> None:
    captions = [f"c{k}" for k in range(4 * ROWS)]
    for k in range(COLUMNS + 2):
        draw(
            write_cell(tmp_path / f"{k}", [0.5], method={"name": "lora", "rank": k + 1}),
            60,
            captions,
        )
    (gallery,) = of(tmp_path)
    assert (
        len(gallery.columns) == 2 + COLUMNS
        and gallery.captions == captions[:: len(captions) // ROWS]
    )
    assert f"Shown are {ROWS} of {len(captions)} captions." in gallery.told
    assert f"Shown are the first {COLUMNS} of {COLUMNS + 2} groups." in gallery.told


def test_scores_are_of_one_clip(tmp_path: Path) -> None:
    scored = {"truth": [0.9, 0.7], "before": [0.2, 0.4], "after": [0.6, 0.5]}
    draw(write_cell(tmp_path / "bias", [0.5], method="bias"), 30)
    draw(write_cell(tmp_path / "head", [0.5], method="head"), 60, clip={"model": "tiny", **scored})
    draw(write_cell(tmp_path / "lora", [0.5]), 60, clip={"model": "other", **scored})
    (gallery,) = of(tmp_path)
    about = {column.name: list(column.about) for column in gallery.columns}
    assert about["held out"] == ["CLIP 0.800 (0.700 to 0.900)"] and about["before"] == [
        "base model",
        "CLIP 0.300 (0.200 to 0.400)",
    ]
    assert about["head"] == ["seed 1, round 1", "CLIP 0.550 (0.500 to 0.600)"]
    assert about["lora"] == about["bias"] == ["seed 1, round 1"]
    assert "by tiny, mean over all 2 captions" in gallery.told


@pytest.mark.parametrize("wrong", ["data:text/html,x", '"onerror="', "", "A" * 2**20])
def test_a_picture_that_is_none_is_refused(tmp_path: Path, wrong: str) -> None:
    run = draw(write_cell(tmp_path / "run", [0.5]), 30)
    values = json.loads((run / "pictures.json").read_text())
    values["pictures"][0]["after"] = wrong
    (run / "pictures.json").write_text(json.dumps(values))
    result = fedpeft("report", run, "-o", tmp_path / "page.html")
    assert result.exit_code == 2 and "pictures.json is damaged: pictures.0.after" in result.stderr


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gallery")
    close: dict[str, Any] = {"each": {"a": 0.998, "b": 1.0}}
    for k, method in enumerate(("bias", "lora")):
        for alpha in (0.1, 1.0):
            part = {"partition": {"name": "dirichlet", "alpha": alpha}}
            name = root / "study" / f"{method}-{alpha}"
            run = write_cell(name, [0.9985, 0.999, 0.9995], method=method, plan=part, **close)
            if alpha < 1:
                draw(run, 30 * k)
    assert fedpeft("report", root / "study", "-o", root / "page.html").exit_code == 0
    return root / "page.html"


def test_the_page_holds_its_pictures(page_file: Path) -> None:
    page = Page(page_file.read_text())
    images = [values for tag, values in page.elements if tag == "img"]
    assert len(images) == 2 * 4 and all(
        str(values["src"]).startswith("data:image/webp;base64,") for values in images
    )
    assert images[0]["alt"] == "a cat: held out" and EVIL in page.words


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_are_seen_and_hidden(browser: Any, page_file: Path, scheme: str) -> None:
    with opened_at(browser, page_file, scheme) as opened:
        check_pictures(opened)
        check_labels(opened)
        check_bars(opened)
        assert opened.said == [] and opened.page.evaluate("window.evil") is None


def check_pictures(opened: Opened) -> None:
    images = opened.page.locator(".drawn img")
    natural = "[...document.querySelectorAll('.drawn img')].map(i => i.complete && i.naturalWidth)"
    assert images.count() == 8 and opened.page.evaluate(natural) == [8] * 8
    chip = opened.page.locator(".chip", has_text="lora, alpha 0.1")
    chip.click()
    assert [images.nth(k).is_visible() for k in range(4)] == [True, True, True, False]
    chip.click()
    assert images.nth(3).is_visible()
    opened.page.set_viewport_size({"width": 360, "height": 900})
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 360
    opened.page.set_viewport_size({"width": 1280, "height": 900})


def check_labels(opened: Opened) -> None:
    """No axis of accuracies goes beyond 100 %, and no two ticks of any have the same label, close
    as values may be."""
    axes = opened.page.evaluate(
        """[...document.querySelectorAll('.plot')].flatMap(plot =>
          [...plot.querySelectorAll('.role-axis-label')].map(axis => [
            plot.dataset.figure,
            [...axis.querySelectorAll('text')]
              .filter(t => +getComputedStyle(t).opacity)
              .map(t => t.textContent)]))"""
    )
    percents = [
        (name, labels)
        for name, labels in axes
        if labels and all(label.endswith("%") for label in labels)
    ]
    assert {name for name, _ in percents} >= {
        "rounds",
        "bytes-up",
        "bytes-down",
        "clients",
        "axis-method",
    }
    assert ["rounds", ["1", "2", "3"]] in axes
    for name, labels in axes:
        assert len(set(labels)) == len(labels), (name, labels)
    for _, labels in percents:
        assert all(0 <= float(label[:-1]) <= 100 for label in labels), labels


def check_bars(opened: Opened) -> None:
    """Each bar's value stands beside it, where several share a level too."""
    middles = opened.page.evaluate(
        """['.mark-rect.role-mark path', '.mark-text.role-mark text'].map(mark =>
        [...document.querySelectorAll(`[data-figure="axis-method"] ${mark}`)]
        .map(one => one.getBoundingClientRect())
        .map(box => (box.top + box.bottom) / 2).sort((a, b) => a - b))"""
    )
    bars, values = middles
    assert len(bars) == 4 and values == pytest.approx(bars, abs=3)
