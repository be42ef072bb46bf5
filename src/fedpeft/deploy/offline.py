"""A plan with everything that carries it out, as a folder for a site that no network reaches.

wheels/         fedpeft and all that it needs, at the versions that are installed here
models/         the plan's base model, and `method.init`, under the names in the plan
plan.toml       the plan, with the same fingerprint as here
install.sh      makes env/ of the wheels, and asks no index for anything
fedpeft         the command, which finds models/ and asks no hub
README.txt      what to do with these
SHA256SUMS      for `sha256sum --check`, so that a copy can be trusted
"""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from hashlib import file_digest
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath
from shutil import copyfile, rmtree

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fedpeft import __version__
from fedpeft.deploy.own_wheel import write_wheel
from fedpeft.errors import RunError, explain_install
from fedpeft.export.base_files import find_base
from fedpeft.plan.plan import Plan

PACKAGE = "fedpeft"
EXTRAS = ("oneshot",)
"""What one file from a site needs: keys that sign and seal it."""
INSTALL = """\
#!/bin/sh
# Makes env/ beside this file. Nothing is asked of a network.
set -e
here=$(cd "$(dirname "$0")" && pwd)
python=${{PYTHON:-python3}}
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != ({major}, {minor}))' || {{
    echo "these wheels are for Python {major}.{minor} on {platform}:" \\
        "say PYTHON=python{major}.{minor} sh install.sh" >&2
    exit 2
}}
"$python" -m venv "$here/env"
PIP_CONFIG_FILE=/dev/null "$here/env/bin/python" -m pip install --quiet --no-index \\
    --disable-pip-version-check --find-links "$here/wheels" '{wanted}'
echo "installed: $here/fedpeft --help"
"""
COMMAND = """\
#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
[ -x "$here/env/bin/fedpeft" ] || { echo "first say: sh $here/install.sh" >&2; exit 2; }
FEDPEFT_DATA="$here/models" HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 exec "$here/env/bin/fedpeft" "$@"
"""
README = """\
The plan {plan!r} with fedpeft {version}, for Python {major}.{minor} on {platform}.

    sha256sum --check --quiet SHA256SUMS      that nothing was lost or changed on the way
    sh install.sh                             makes env/ here; no network is needed
    ./fedpeft doctor plan.toml --data PATH    looks at your examples
    ./fedpeft run plan.toml                   tries the plan on the data that it names

With an invitation from the server, which is a folder of its own:

    ./fedpeft contribute STUDY --data PATH --name YOUR-NAME -o YOUR-NAME.safetensors

Nothing but that file leaves. The command shows what it tells before you agree.
"""


def write_offline(
    plan: Plan, out: Path, extras: Sequence[str] = EXTRAS, wheels: Path | None = None
) -> Iterator[str]:
    """Write the folder; gives a line for each part when it is there.

    Args:
      extras: of fedpeft, beside what it always needs.
      wheels: a folder that has all wheels; None for the index that pip is set to.

    Raises:
      RunError: something is at `out`, a library is not installed or has no wheel, or the base model
        is not on this machine.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} is there already: name a new or an empty folder")
    pinned = pin_requirements(extras)
    models = _models(plan)
    write_wheel(distribution(PACKAGE), out / "wheels", wheels)  # first: it is refused at once
    try:
        _fetch_wheels(pinned, out / "wheels", wheels)
    except BaseException:  # Ctrl-C too, or the same command would find a folder that is not empty
        rmtree(out / "wheels")
        raise
    yield f"{out / 'wheels'}: fedpeft {__version__} and {len(pinned)} packages that it needs"
    for name, place in models.items():
        yield f"{_copy_model(place, out / 'models' / name)}: a model that the plan names"
    (out / "plan.toml").write_text(plan.toml(), encoding="utf-8")
    _write_scripts(out, plan.name, extras)
    _write_sums(out)
    yield f"{out}: copy it as it is; README.txt says what to do there"


def pin_requirements(extras: Sequence[str]) -> list[str]:
    """All that fedpeft needs with these extras, at the versions installed here, by name.

    Raises:
      RunError: there is no such extra, or a library is not installed.
    """
    own = distribution(PACKAGE)
    known = own.metadata.get_all("Provides-Extra") or []
    if strange := [one for one in extras if one not in known]:
        raise RunError(f"there is no extra {strange[0]!r}; there are {', '.join(known)}")
    found: dict[str, str] = {}
    waiting = [(own, tuple(extras))]
    seen = {(PACKAGE, "")}
    while waiting:
        package, wanted = waiting.pop()
        for need in _needs(package, wanted):
            name = canonicalize_name(need.name)
            marks = {(name, ""), *((name, extra) for extra in need.extras)}
            if marks <= seen:
                continue
            seen |= marks
            inner = _installed(need, extras)
            waiting.append((inner, tuple(need.extras)))
            found[name] = f"{name}=={inner.version}"
    found.pop(PACKAGE, None)
    return sorted(found.values())


def _needs(package: Distribution, extras: Sequence[str]) -> Iterator[Requirement]:
    """What a package needs on this machine with these extras."""
    for line in package.requires or []:
        need = Requirement(line)
        marker = need.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield need


def _installed(need: Requirement, extras: Sequence[str]) -> Distribution:
    try:
        return distribution(need.name)
    except PackageNotFoundError:
        # only an extra's package can be missing where fedpeft itself runs
        how = explain_install(",".join(extras))
        raise RunError(f"{need.name} is not installed here, and goes along: {how}") from None


def _models(plan: Plan) -> dict[str, Path]:
    """Where the plan's base model and the start of its method lie, by their names in the plan."""
    named = (getattr(plan.task, "model", None), getattr(plan.method, "init", None))
    found = {}
    for name in (one for one in named if isinstance(one, str) and one):
        place = find_base(name)
        if place is None:
            raise RunError(
                f"the model {name!r} is not on this machine: run the plan once where the hub can "
                "be reached, or name a folder below $FEDPEFT_DATA"
            )
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or name.startswith("~"):
            raise RunError(
                f"the model's name {name!r} is a place on this machine, which another one does "
                "not have: set FEDPEFT_DATA to the folder above it and give its name from there"
            )
        found[name] = place
    return found


def _fetch_wheels(pinned: Sequence[str], folder: Path, wheels: Path | None) -> None:
    source, names = [], {**os.environ}
    if wheels is not None:  # nor the folders that pip is set to look into
        source = ["--isolated", "--no-index", "--find-links", str(wheels)]
        names["PIP_CONFIG_FILE"] = os.devnull
    options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, *source, "-d", str(folder)]
    ended = subprocess.run(
        [*command, *pinned], env=names, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line.startswith("ERROR")]
        said = " ".join(lines) or ended.stderr.strip()[-300:] or "it said nothing"
        raise RunError(f"pip could not fetch the wheels: {said}; --wheels FOLDER takes your own")


def _copy_model(base: Path, to: Path) -> Path:
    """The base's files, those that the hub's cache links to as files of their own."""
    sources = [base] if base.is_file() else [one for one in base.rglob("*") if one.is_file()]
    for source in sources:
        place = to / source.relative_to(base) if base.is_dir() else to
        place.parent.mkdir(parents=True, exist_ok=True)
        copyfile(source, place)
    return to


def _write_scripts(out: Path, plan: str, extras: Sequence[str]) -> None:
    wanted = f"{PACKAGE}[{','.join(extras)}]" if extras else PACKAGE
    facts = {
        "major": sys.version_info.major,
        "minor": sys.version_info.minor,
        "platform": sysconfig.get_platform(),
    }
    (out / "install.sh").write_text(INSTALL.format(wanted=wanted, **facts), encoding="utf-8")
    (out / "fedpeft").write_text(COMMAND, encoding="utf-8")
    (out / "fedpeft").chmod(0o755)
    text = README.format(plan=plan, version=__version__, **facts)
    (out / "README.txt").write_text(text, encoding="utf-8")


def _write_sums(out: Path) -> None:
    lines = []
    for path in sorted(one for one in out.rglob("*") if one.is_file()):
        with path.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        lines.append(f"{digest}  {path.relative_to(out).as_posix()}\n")
    (out / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")
