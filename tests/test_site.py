"""The site has every page that it names, and the decisions are all in their list."""

import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools.architecture import DRAWING, draw, read_floors
from tools.decisions_index import PAGE, page
from tools.site_hooks import ADDED, on_page_markdown, weigh

ROOT = Path(__file__).parents[1]


def test_the_site_names_pages_that_are_there() -> None:
    named = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert len(named) > 25 and len(set(named)) == len(named)
    made = set(ADDED.values())
    assert made <= set(named) and all(source.is_file() for source in ADDED)
    assert [one for one in named if one not in made and not (ROOT / "docs" / one).is_file()] == []


def test_every_guide_is_in_the_site() -> None:
    nav = (ROOT / "mkdocs.yml").read_text()
    docs = ROOT / "docs"
    pages = [*docs.glob("*.md"), *docs.glob("guide/*.md"), *docs.glob("tutorials/*.md")]
    names = [str(one.relative_to(ROOT / "docs")) for one in pages]
    assert [one for one in names if f": {one}\n" not in nav] == []


def test_the_list_of_decisions_is_whole() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tools.decisions_index"


def test_the_drawing_of_the_architecture_is_that_of_the_code() -> None:
    floors = read_floors()
    drawn = {package.name for floor in floors for package in floor}
    code = ROOT / "src" / "fedpeft"
    there = {one.parent.name for one in code.glob("*/__init__.py")}
    assert there <= drawn and len(drawn) > 35
    assert DRAWING.read_text(encoding="utf-8") == draw(floors), "run python -m tools.architecture"


def test_the_search_finds_what_to_do_before_why_it_was_decided() -> None:
    tutorial, plain, decision = map(weigh, ("tutorials/nodes.md", "models.md", "decisions/0001.md"))
    assert tutorial > plain > decision > 0


@pytest.mark.parametrize("word", ["resume", "csv", "privacy"])
def test_what_newcomers_look_for_is_in_a_heading_of_a_guide(word: str) -> None:
    """The search counts words of headings far above those of text."""
    guides = (ROOT / "docs" / "guide").glob("*.md")
    headings = [re.findall(r"^#+ (.*)$", one.read_text(), re.MULTILINE) for one in guides]
    assert any(re.search(rf"\b{word}\b", x, re.I) for lines in headings for x in lines)


def test_plans_of_digits_need_no_file_but_the_one_that_the_guide_names() -> None:
    told = (ROOT / "docs" / "guide" / "plans.md").read_text()
    for plan in (ROOT / "plans").glob("*digits*.toml"):
        if plan.stem != "spoken-digits" and "path" in tomllib.loads(plan.read_text()).get(
            "data", {}
        ):
            assert f"`{plan.stem}`, whose digits a tool writes" in told


def test_links_out_of_the_site_are_paths() -> None:
    text = "[a](../choosing.md) [b](../../plans/x.toml) [c](https://x.org)\n```\n[d](../../y)\n```"
    page = SimpleNamespace(file=SimpleNamespace(src_uri="guide/a.md"), meta={})
    shown = on_page_markdown(text, page)
    assert page.meta == {"search": {"boost": weigh("guide/a.md")}}
    assert shown == (
        "[a](../choosing.md) b (`plans/x.toml`) [c](https://x.org)\n```\n[d](../../y)\n```"
    )
