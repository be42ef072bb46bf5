"""What a command says of examples and models that it reads several times."""

from pathlib import Path

import pytest
from running import fedpeft


def test_what_is_read_twice_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A doctor reads the data for the plan, and for its report; another one says it again."""
    rows = ["text;label", "one two;a", "three;b", "four;a", "five;b"]
    (tmp_path / "x.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "plan.toml").write_text(
        f'data = {{ name = "table", path = "{tmp_path / "x.csv"}", test_fraction = 0.5 }}\n'
        'task = "parts:Points"\n'
    )
    for times in (1, 2):
        fedpeft(
            "doctor", tmp_path / "plan.toml", "--data", tmp_path / "x.csv", "-o", tmp_path / "r"
        )
        assert sum("';'" in line for line in caplog.messages) == times, caplog.messages
