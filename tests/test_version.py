"""What `fedpeft --version` says, of a release and of a checkout."""

import re
import subprocess
from pathlib import Path

import pytest
from running import fedpeft

from fedpeft import __version__
from fedpeft.cli.version import describe_version
from fedpeft.errors import explain_install

ROOT = Path(__file__).parents[1]


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)


def test_a_release_is_its_number(tmp_path: Path) -> None:
    assert describe_version(tmp_path) == __version__
    (tmp_path / ".git").mkdir()  # of somebody else, with no package beside it
    assert describe_version(tmp_path) == __version__
    (tmp_path / "pyproject.toml").write_text("")  # no repository, whatever it is called
    assert describe_version(tmp_path) == __version__


def test_a_checkout_names_its_commit_and_whether_it_was_changed(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    clean = describe_version(tmp_path)
    assert re.fullmatch(rf"{re.escape(__version__)} \(commit [0-9a-f]{{12}}\)", clean)
    (tmp_path / "pyproject.toml").write_text("[project]")
    assert describe_version(tmp_path) == f"{clean[:-1]}, changed)"


def test_without_git_the_number_stands_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text("")
    git(tmp_path, "init")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_version(tmp_path) == __version__


def test_the_command_begins_with_the_number() -> None:
    assert fedpeft("--version").stdout.startswith(__version__)


def test_all_places_have_one_version() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    citation = (ROOT / "CITATION.cff").read_text()
    assert f'\nversion = "{__version__}"\n' in project
    assert f"\nversion: {__version__}\n" in citation


def test_a_missing_extra_names_packages_that_a_registry_has() -> None:
    said = explain_install("secure")
    assert said.startswith("pip install 'fedpeft[secure]', or its packages alone: pip install '")
    assert "'cryptography>=43'" in said and "'pycryptodome" in said
    both = explain_install("hdf5,speech")
    assert "'fedpeft[hdf5,speech]'" in both and "'h5py" in both and "'soundfile" in both
    assert explain_install("nothing") == "pip install 'fedpeft[nothing]'"
