"""What the pages of the project point at is there."""

import re
from pathlib import Path

from fedpeft.catalogue import CATALOGUE

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "SECURITY.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCED = re.compile(r"```.*?```", re.DOTALL)


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(
        r"^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE
    )
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


def test_links_lead_somewhere() -> None:
    dead, seen = [], 0
    for page in PAGES:
        for link in re.findall(
            r"\]\(([^)\s]+)\)", FENCED.sub("", page.read_text(encoding="utf-8"))
        ):
            if link.startswith(("http://", "https://", "mailto:")):
                continue
            seen += 1
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (anchor and anchor not in _anchors(target)):
                dead.append(f"{page.relative_to(ROOT)}: {link}")
    assert seen > 50
    assert dead == []


TESTED = re.compile(r"`((?:tests/\w+\.py)?)::(\w+)`")


def _named_tests(text: str) -> list[tuple[str, str]]:
    """The tests that a page names, each with its file: `::name` is of the file named last."""
    file, found = "", []
    for path, name in TESTED.findall(text):
        file = path or file
        found.append((file, name))
    return found


def test_the_tests_that_pages_name_are_there() -> None:
    missing, seen = [], 0
    for page in PAGES:
        for file, name in _named_tests(page.read_text(encoding="utf-8")):
            seen += 1
            source = ROOT / file
            if not source.is_file() or f"def {name}(" not in source.read_text(encoding="utf-8"):
                missing.append(f"{page.relative_to(ROOT)}: {file}::{name}")
    assert seen > 80
    assert missing == []


def test_what_the_page_on_security_promises_names_its_tests() -> None:
    """By section, and in the one on files by paragraph; what is not so has no test."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"(?ms)^## (.+?)\n(.*?)(?=^## |\Z)", text))
    assert {"What a node answers", "What secure aggregation promises"} <= set(sections)
    untested = [
        name
        for name, part in sections.items()
        if not _named_tests(part) and "not there" not in name
    ]
    assert untested == []
    paragraphs = re.findall(
        r"(?ms)^(\*\*.+?)(?=^\*\*|\Z)", sections["What a file from outside can do"]
    )
    assert len(paragraphs) >= 7
    assert [one[:40] for one in paragraphs if not _named_tests(one)] == []


def test_a_test_that_is_not_there_is_found_out() -> None:
    told = "(`tests/test_a.py::test_one`, `::test_two`) and (`tests/test_b.py::test_three`)"
    assert _named_tests(told) == [
        ("tests/test_a.py", "test_one"),
        ("tests/test_a.py", "test_two"),
        ("tests/test_b.py", "test_three"),
    ]


def _first_cells(text: str) -> list[str]:
    """The first cell of each row of the tables of a page."""
    return re.findall(r"(?m)^\| ((?:[^|\n]|\\\|)+?) \|", text)


def test_a_system_and_a_key_have_one_row_each() -> None:
    """Two branches that write of one thing each add a row, and a merge keeps both."""
    for name in ("systems.md", "guide/plans.md"):
        cells = _first_cells((ROOT / "docs" / name).read_text(encoding="utf-8"))
        assert len(cells) > 20
        assert sorted({cell for cell in cells if cells.count(cell) > 1}) == [], name


def test_the_guide_to_plans_names_each_task() -> None:
    page = (ROOT / "docs" / "guide" / "plans.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith("| `task` |"))
    assert [task for task in CATALOGUE["task"] if f"`{task}`" not in row] == []


def test_settings_that_a_shell_would_change_are_in_quotes() -> None:
    """A shell takes quotes away and looks for files that fit brackets."""
    sources = [*(ROOT / "src").rglob("*.py"), *(ROOT / "plans").rglob("*.toml"), *PAGES]
    bare = re.compile(r"""--set [a-z_.]+=[^'"`\s]*[\[{"]""")
    found = {str(one): bare.findall(one.read_text(encoding="utf-8")) for one in sources}
    assert {where: what for where, what in found.items() if what} == {}
