"""The notebooks, run from top to bottom as a reader would."""

import ast
import json
import os
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))
every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_of(path: Path) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_there_are_three() -> None:
    assert {path.stem for path in NOTEBOOKS} == {"quickstart", "own-module", "one-shot"}


@every
def test_it_is_python_and_draws_something(path: Path) -> None:
    cells = ["".join(cell["source"]) for cell in code_of(path)]
    for cell in cells:
        ast.parse(cell)
    assert "plt.show()" in cells[-1]


@every
def test_what_is_stored_of_it_is_no_error_and_no_path(path: Path) -> None:
    outputs = [one for cell in code_of(path) for one in cell["outputs"]]
    assert all(one["output_type"] != "error" for one in outputs)
    assert "/home/" not in json.dumps(outputs) and "/work/" not in json.dumps(outputs)
    assert path.stat().st_size < 100_000


@pytest.mark.slow
@pytest.mark.timeout(900)
@every
def test_it_runs_from_top_to_bottom(path: Path) -> None:
    reason = "notebooks run with the extra `notebooks`"
    client = pytest.importorskip("nbclient", reason=reason)
    pytest.importorskip("ipykernel", reason=reason)
    nbformat = pytest.importorskip("nbformat", reason=reason)
    notebook = nbformat.read(path, as_version=4)
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    client.NotebookClient(notebook, timeout=800, kernel_name="python3").execute(env=environment)
    drawn = [one for cell in notebook.cells for one in cell.get("outputs", ()) if "data" in one]
    assert any("image/png" in one["data"] for one in drawn)
