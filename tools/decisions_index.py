"""Write the list of all decisions, by their titles: python -m tools.decisions_index"""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "docs" / "decisions"
PAGE = FOLDER / "index.md"
HEAD = """# Decisions

Why things are as they are: one page each, numbered in the order in which they were made. A later
page says where it takes an earlier one back. `python -m tools.decisions_index` writes this list.

"""


def page() -> str:
    """The whole page."""
    rows = []
    for file in sorted(FOLDER.glob("[0-9]*.md")):
        first = file.read_text(encoding="utf-8").partition("\n")[0]
        number = file.name.partition("-")[0]
        title = first.removeprefix("#").strip().removeprefix(number).lstrip(". :")
        rows.append(f"* [{number}]({file.name}) {title}")
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
