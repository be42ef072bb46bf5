"""Examples in docstrings, and the page about Python, run as they are printed."""

import doctest
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
MODULES = sorted(
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in (SOURCE / "fedpeft").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


def test_there_are_examples() -> None:
    assert {"fedpeft.plan.reading", "fedpeft.rounds.loop"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_print_what_they_say(name: str) -> None:
    failed, tried = doctest.testmod(import_module(name))
    assert tried > 0
    assert failed == 0


@pytest.mark.slow
def test_the_page_about_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "guide" / "python.md").read_text(encoding="utf-8")
    [block] = re.findall(r"(?s)```python\n(.*?)```", page)
    names: dict[str, Any] = {}
    exec(block, names)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == names["state"].round
    assert names["accuracy"] > 0.95
