"""Try every extra in an environment that has the base dependencies and that extra alone.

    python -m tools.extras                    all, in a folder that is deleted afterwards
    python -m tools.extras privacy video      these
    python -m tools.extras --folder trial     keep all of it; base/ there is taken again

For each extra it installs the wheel with it, runs its feature once, and runs the same without it,
where the message must say what to install. It ends with 1 if something is to be mended.
TORCH=... names another torch, as in the Makefile. Packages come from where pip gets them.
"""

import argparse
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory

from tools.extras.probes import (
    ROOT,
    Ended,
    Probe,
    Row,
    judge_use,
    judge_without,
    read_probes,
    write_table,
)
from tools.install import CONSTRAINTS, TORCH

FEW = "--set data.subset=100 --set partition.clients=2"
TINY = "--rounds 1 --set cohort=2"
HERE = "--engine inprocess"
PIP = ("-m", "pip", "--disable-pip-version-check")


def main(words: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("extras", nargs="*")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args(words)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    probes, apart = read_probes(project["optional-dependencies"])
    if strange := [one for one in given.extras if one not in probes]:
        parser.error(f"no probe of {strange[0]}: there are {', '.join(probes)}")
    wanted = [probes[one] for one in given.extras or probes]
    with TemporaryDirectory() as temporary:
        rows = try_all(wanted, (given.folder or Path(temporary)).resolve())
    print(write_table(rows, {} if given.extras else apart))
    return 0 if all(row.good for row in rows) else 1


def try_all(probes: Sequence[Probe], folder: Path) -> list[Row]:
    """One row for each, in order.

    Raises:
      SystemExit: fedpeft itself could not be built or installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wheel = build(folder)
    plain = make_environment(folder, "plain", str(wheel))
    if isinstance(plain, Ended):
        raise SystemExit(f"fedpeft cannot be installed: {plain.last}")
    rows = []
    for probe in probes:
        print(f"{probe.extra} ...", file=sys.stderr, flush=True)
        rows.append(try_one(probe, folder, wheel, plain))
    return rows


def build(folder: Path) -> Path:
    """The wheel of this checkout, and base/ with what it needs, where that is not there.

    Raises:
      SystemExit: it could not be made.
    """
    python = folder / "base" / "bin" / "python"
    if not python.exists():
        execute([sys.executable, "-m", "venv", str(folder / "base")], folder)
    wheels = folder / "wheels"
    torch = os.environ.get("TORCH", TORCH).split()
    held = ["-c", str(ROOT / CONSTRAINTS)]
    for step in (
        ["wheel", "--quiet", "--no-deps", "-w", str(wheels), str(ROOT)],
        ["install", "--quiet", *torch],
        ["install", "--quiet", *held, str(ROOT)],
        ["uninstall", "--quiet", "--yes", "fedpeft"],
    ):
        ended = execute([str(python), *PIP, *step], folder)
        if ended.code:
            raise SystemExit(f"pip {step[0]} ended with {ended.code}: {ended.last}")
    return max(wheels.glob("fedpeft-*.whl"))


def make_environment(folder: Path, name: str, what: str) -> Path | Ended:
    """An environment that sees base/, with this requirement; or how that failed."""
    place, base = folder / "environments" / name, folder / "base"
    execute([sys.executable, "-m", "venv", "--clear", "--without-pip", str(place)], folder)
    [site] = place.glob("lib/*/site-packages")
    [below] = base.glob("lib/*/site-packages")
    (site / "base.pth").write_text(f"{below}\n")
    command = [str(base / "bin" / "python"), *PIP, "--python", str(place / "bin" / "python")]
    ended = execute([*command, "install", "--quiet", "-c", str(ROOT / CONSTRAINTS), what], folder)
    return ended if ended.code else place


def try_one(probe: Probe, folder: Path, wheel: Path, plain: Path) -> Row:
    """Install one extra, use it, and ask for it where it is not."""
    place = make_environment(folder, probe.extra, f"fedpeft[{probe.extra}] @ {wheel.as_uri()}")
    if isinstance(place, Ended):
        return Row(probe.extra, f"not installed: {place.last}", "no", "not tried")
    work = folder / "work" / probe.extra
    rmtree(work, ignore_errors=True)  # of a folder that is kept: commands want new files
    work.mkdir(parents=True)
    used = shell(f"{probe.prepare}\n{probe.use}", work, place)
    (work / "with.log").write_text(used.text)
    lacking = shell(probe.without, work, plain)
    (work / "without.log").write_text(lacking.text)
    return Row(probe.extra, weigh(place), judge_use(used), judge_without(lacking, probe.says))


def weigh(place: Path) -> str:
    """How many packages beside fedpeft lie in an environment, and how many MB they are."""
    [site] = place.glob("lib/*/site-packages")
    packages = [one for one in site.glob("*.dist-info") if not one.name.startswith("fedpeft-")]
    files = [one for one in site.rglob("*") if one.is_file() and "__pycache__" not in one.parts]
    own = sum(one.stat().st_size for one in files if one.relative_to(site).parts[0] != "fedpeft")
    return f"{len(packages)}, {own / 1e6:.0f}"


def shell(script: str, work: Path, place: Path) -> Ended:
    """A shell's commands in the folder `work` with this environment, without a hub."""
    names = {
        "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}",
        "ROOT": str(ROOT),
        "TINY": f"{TINY} {HERE}",
        "ONE": TINY,
        "FEW": FEW,
        "SMALL": f"{TINY} {HERE} {FEW}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return execute(["sh", "-ec", script], work, names)


def execute(command: Sequence[str], work: Path, names: Mapping[str, str] | None = None) -> Ended:
    """A command to its end, at most 15 minutes; where it takes longer, its status is 124."""
    try:
        ended = subprocess.run(
            command,
            cwd=work,
            env={**os.environ, **(names or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=900,
        )
    except subprocess.TimeoutExpired:
        return Ended(124, "it took longer than 15 minutes")
    return Ended(ended.returncode, ended.stdout)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
