"""Where the peers live: each in a virtual environment of its own, so that nothing of ours changes
for them.

They lie below $FEDPEFT_CACHE or ~/.cache/fedpeft, are made once and named after what is in them:
what pyproject.toml calls `race-...`, beside the versions of torch and its friends that the project
itself is tested with.
"""

import os
import subprocess
import sys
import tomllib
from hashlib import blake2b
from pathlib import Path
from shutil import rmtree

ROOT = Path(__file__).resolve().parents[2]
PEERS = ("flower", "pfl")
SHARED = ("torch", "transformers", "peft", "safetensors", "numpy", "accelerate")


def processors() -> int:
    """As many as this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def python_of(racer: str) -> str:
    """The interpreter of a racer: this one, or that of its virtual environment, which is made if
    there is none."""
    if racer not in PEERS:
        return sys.executable
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    pins = [
        pin
        for pin in (ROOT / "constraints.txt").read_text().split()
        if pin.partition("==")[0] in SHARED
    ]
    wanted = [*pins, *extras[f"race-{racer}"]]
    named = os.environ.get("FEDPEFT_CACHE")
    cache = Path(named).expanduser() if named else Path.home() / ".cache" / "fedpeft"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    key = blake2b(" ".join([version, *wanted]).encode(), digest_size=6).hexdigest()
    place = cache / "race" / f"{racer}-{key}"
    if not (place / "ready").exists():
        install(place, wanted)
    return str(place / "bin" / "python")


def install(place: Path, wanted: list[str]) -> None:
    """Make a virtual environment; torch first and alone, so that its build is settled before others
    ask for it.

    Raises:
      CalledProcessError: it cannot be made, or a package cannot be had.
    """
    print(f"installing {', '.join(wanted)} in {place}", file=sys.stderr)
    rmtree(place, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    pip = [
        str(place / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    torch = os.environ.get("TORCH") or next(pin for pin in wanted if pin.startswith("torch=="))
    subprocess.run([*pip, *torch.split()], check=True)
    subprocess.run([*pip, *wanted], check=True)
    (place / "ready").touch()
