"""What is installed is what is locked, and an audit without advisories says so."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from tools.audit_lock import pins, verdict
from tools.install import TORCH, WANTED, here, install, locked_torch, obstacle

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()


def locked() -> dict[str, str]:
    found = re.findall(r"(?m)^([A-Za-z0-9._-]+)==([^ \\\n]+)", LOCK)
    return {re.sub(r"[-_.]+", "-", name).lower(): number for name, number in found}


def test_every_locked_package_has_a_hash_and_the_lock_names_no_place() -> None:
    entries = re.split(r"(?m)^(?=[A-Za-z0-9])", LOCK)[1:]
    assert len(entries) == len(locked()) > 100
    for entry in entries:
        assert re.fullmatch(
            r"[A-Za-z0-9._-]+==\S+( ; [^\\\n]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+\n", entry
        ), entry
    assert not re.search(r"https?:|file:|--index|--find-links|--extra-index|^/|@", LOCK)


def test_the_lock_holds_what_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["dev"], *extras["text"]]
    for group in re.findall(r"fedpeft\[([a-z,-]+)\]", " ".join(asked)):
        asked += [one for extra in group.split(",") for one in extras[extra]]
    names = {re.split(r"[^A-Za-z0-9_-]", one)[0].replace("_", "-").lower() for one in asked}
    assert names - {"fedpeft"} <= set(locked())
    assert {"hatchling", "editables"} <= set(locked())


def test_the_lock_keeps_to_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    both = {
        name: (number, locked()[key])
        for name, _, number in (line.partition("==") for line in lines)
        if (key := re.sub(r"[-_.]+", "-", name).lower()) in locked()
    }
    assert len(both) > 30
    assert {n: b for n, b in both.items() if b[0] != b[1].partition("+")[0]} == {}


def test_the_tests_run_with_what_is_locked() -> None:
    """Where the environment was made by the lock, or by the same constraints."""
    if obstacle(here(), TORCH, "", lambda: True):
        pytest.skip("another platform than the lock's")
    other = {}
    for name in ("torch", "transformers", "peft", "numpy", "safetensors", "cryptography", "flwr"):
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        if found.partition("+")[0] != locked()[name].partition("+")[0]:
            other[name] = (found, locked()[name])
    assert not other


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"asked": "no"}, "LOCK=no"),
        ({"torch": "torch"}, "TORCH=torch is asked for, and the lock has torch==2.13.0"),
        ({"found": ("Darwin", "arm64", "CPython", "3.12")}, "this is Darwin arm64 CPython 3.12"),
        ({"offered": lambda: False}, "not offered here: name an index or a folder"),
    ],
)
def test_where_the_lock_is_not_used_it_is_said_why(changes: dict[str, object], words: str) -> None:
    usual = {"found": WANTED, "torch": TORCH, "asked": "", "offered": lambda: True}
    told = obstacle(**{**usual, **changes})  # type: ignore[arg-type]
    assert words in told and bool(told) == bool(words)


@pytest.mark.parametrize("fails", [None, 0, 1])
def test_a_wrong_hash_ends_the_installation(
    fails: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Sequence[str]] = []

    def pip(*words: str) -> int:
        ran.append(words)
        return 1 if len(ran) - 1 == fails else 0

    assert install("", TORCH, pip) == (0 if fails is None else 1)
    assert ran[0] == ("--require-hashes", "--no-deps", "-r", "requirements.lock")
    assert len(ran) == (1 if fails == 0 else 2)
    assert "by its hash in requirements.lock" in capsys.readouterr().out


def test_without_the_lock_the_constraints_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[Sequence[str]] = []

    def pip(*words: str) -> int:
        ran.append(words)
        return 0

    assert install("LOCK=no", "torch==2.13.0 --index-url x", pip) == 0
    assert ran[0] == ("torch==2.13.0", "--index-url", "x") and ran[1][:2] == (
        "-c",
        "constraints.txt",
    )
    assert "constraints.txt, not by hashes: LOCK=no" in capsys.readouterr().out


def test_the_locked_torch_is_the_one_for_cpus() -> None:
    assert locked_torch(LOCK) == f"{TORCH}+cpu"
    with pytest.raises(ValueError, match="has no torch"):
        locked_torch("numpy==1\n")


SEEN = {"name": "a", "version": "1", "vulns": []}
UNSEEN = {"name": "b", "skip_reason": "Dependency not found on PyPI"}
FLAWED = {"name": "c", "version": "2", "vulns": [{"id": "X-1", "fix_versions": ["3"]}]}


def test_an_audit_without_advisories_says_so_and_finds_nothing() -> None:
    """pip-audit itself says there that no vulnerabilities are known."""

    def said(*packages: object) -> str:
        return json.dumps({"dependencies": packages})

    code, [line] = verdict(0, said(UNSEEN, UNSEEN), "No known vulnerabilities found")
    assert code == 0 and line.startswith("audit skipped: no advisories can be had here (Dependency")
    code, [line] = verdict(1, "", "x\nConnectionError: no route\n")
    assert code == 0 and "audit skipped" in line and "ConnectionError: no route" in line
    assert verdict(0, said(SEEN, UNSEEN), "") == (0, ["1 of 2 packages looked up; not found: b"])
    code, lines = verdict(1, said(SEEN, FLAWED), "")
    assert code == 1 and lines == ["c 2: X-1, mended in 3", "2 of 2 packages looked up"]


def test_an_audit_asks_for_versions_that_advisories_know() -> None:
    assert pins(LOCK).count("torch==2.13.0") == 1
    assert len(pins(LOCK)) == len(locked())


def test_the_installer_needs_nothing_but_python() -> None:
    code = "import sys; sys.path.insert(0, '.'); import tools.install, tools.audit_lock"
    ran = subprocess.run([sys.executable, "-S", "-I", "-c", code], cwd=ROOT, capture_output=True)
    assert ran.returncode == 0, ran.stderr
