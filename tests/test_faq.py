"""The page of frequent errors has messages that really come."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^### `(.*)`$", PAGE, re.MULTILINE)
SOURCES = sorted((ROOT / "src" / "fedpeft").rglob("*.py"))


@pytest.fixture(scope="module")
def messages() -> str:
    """All that modules say, with the pieces of a string as one; names in it are braces."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    return re.sub(r"[\"']\s*\n\s*f?[\"']", "", source)


def test_there_are_thirty_frequent_errors() -> None:
    assert len(HEADINGS) == len(set(HEADINGS)) >= 25


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_heading_is_a_message(heading: str, messages: str) -> None:
    pattern = r"\{[^{}]*\}".join(re.escape(piece) for piece in heading.split("…"))
    assert re.search(pattern, messages), f"no message says {heading!r}"
