"""Look up the packages of requirements.lock in the database of known vulnerabilities.

    python tools/audit_lock.py .supply/bin/pip-audit

It ends with 1 where a package has a known vulnerability. Where no advisories can be had it says so
and ends with 0: that is no statement about any package. `pip-audit` itself ends well there, and
says that it knows of none.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

LOCK = Path(__file__).parents[1] / "requirements.lock"
SECONDS = 600


def pins(lock: str) -> list[str]:
    """The packages of a lock with their versions; advisories know no local ones, such as `+cpu`."""
    return re.findall(r"(?m)^([A-Za-z0-9._-]+==[^ \\\n+]+)", lock)


def verdict(code: int, out: str, err: str) -> tuple[int, list[str]]:
    """An exit status and lines, from what pip-audit said.

    Args:
      code, out, err: its exit status, standard output (JSON) and standard error.
    """
    try:
        packages = json.loads(out)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (err.strip().splitlines() or [f"exit status {code}"])[-1]
        return 0, [f"audit skipped: no advisories can be had here ({last[:200]})"]
    unseen = [one for one in packages if "skip_reason" in one]
    if len(unseen) == len(packages):
        why = unseen[0]["skip_reason"] if unseen else "no packages"
        return 0, [f"audit skipped: no advisories can be had here ({why})"]
    told = list_vulnerabilities(packages)
    looked = f"{len(packages) - len(unseen)} of {len(packages)} packages looked up"
    names = ", ".join(one["name"] for one in unseen)
    return int(bool(told)), [*told, looked + (f"; not found: {names}" if unseen else "")]


def list_vulnerabilities(packages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The known vulnerabilities of packages as pip-audit tells of them, a line each."""
    return [
        f"{one['name']} {one['version']}: {vulnerability['id']}, mended in "
        f"{', '.join(vulnerability['fix_versions']) or 'no version'}"
        for one in packages
        for vulnerability in one.get("vulns", ())
    ]


def main(words: Sequence[str]) -> int:
    """The command."""
    [pip_audit] = words
    with TemporaryDirectory() as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text("\n".join(pins(LOCK.read_text())) + "\n")
        command = [pip_audit, "--disable-pip", "--no-deps", "-r", str(file), "-f", "json"]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
            code, lines = verdict(ran.returncode, ran.stdout, ran.stderr)
        except subprocess.TimeoutExpired:
            code, lines = 0, [f"audit skipped: no answer within {SECONDS} s"]
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
