"""What the two files of a release hold, built in a copy of the checkout."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("hatchling", reason="hatchling builds the files")
TOP = {
    *("CHANGELOG.md", "CITATION.cff", "LICENSE", "PKG-INFO", "README.md"),
    *("constraints.txt", "pyproject.toml", ".gitignore", "src"),
}


def build(folder: Path, *kinds: str) -> None:
    command = [sys.executable, "-m", "hatchling", "build", *kinds]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


@pytest.mark.slow
def test_strangers_stay_and_a_wheel_of_the_source_is_the_wheel(tmp_path: Path) -> None:
    """A folder of data that lies in a checkout must not be published."""
    here = tmp_path / "checkout"
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src" / "fedpeft", here / "src" / "fedpeft", ignore=skip)
    for name in TOP - {"PKG-INFO", "src"}:
        shutil.copy(ROOT / name, here / name)
    for place in ("patients/a.csv", "runs/first/rounds.jsonl", "src/notes.txt"):
        (here / place).parent.mkdir(parents=True, exist_ok=True)
        (here / place).write_text("secret")
    build(here, "-t", "sdist", "-t", "wheel")
    [source], [wheel] = (here / "dist").glob("*.tar.gz"), (here / "dist").glob("*.whl")
    with tarfile.open(source) as file:
        names = [name.partition("/")[2] for name in file.getnames()]
        assert {name.partition("/")[0] for name in names} == TOP
        assert {name for name in names if name.startswith("src/")} == {
            path.relative_to(here).as_posix()
            for path in (here / "src" / "fedpeft").rglob("*")
            if path.is_file()
        }
        file.extractall(tmp_path / "unpacked", filter="data")
    [unpacked] = (tmp_path / "unpacked").iterdir()
    build(unpacked, "-t", "wheel")
    [again] = (unpacked / "dist").glob("*.whl")
    assert again.read_bytes() == wheel.read_bytes()
    with ZipFile(wheel) as file:
        tops = {name.partition("/")[0] for name in file.namelist()}
        assert "fedpeft/assets/micro-vit/model.safetensors" in file.namelist()
    assert {one.rpartition(".")[2] for one in tops} == {"fedpeft", "dist-info"}
