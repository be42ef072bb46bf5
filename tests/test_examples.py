"""Each example, run as a user would run it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = [
    file
    for file in sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
    if "sys.argv" not in file.read_text(encoding="utf-8")
]
"""Those that run as they are; the others belong to tutorials, whose tests give them a folder."""


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_learns(example: Path) -> None:
    ended = subprocess.run(
        [sys.executable, example],
        cwd=example.parents[1],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert float(re.findall(r"accuracy (\d\.\d+)", ended.stdout)[-1]) > 0.9


def test_there_are_some() -> None:
    assert {"digits", "own_model"} <= {path.stem for path in EXAMPLES}
