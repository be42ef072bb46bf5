"""Runs command lines of one tree of the library; a process of its own, started by path.

    PYTHONPATH=TREE/src python -P child.py JOBS.json SOURCE

JOBS.json maps names to lists of command lines of `fedpeft`. What becomes of each goes to standard
output, one line of JSON a name. Libraries are loaded once, and every command runs in a fork of
this process, which spares the seconds that loading takes. Nothing of the library is loaded before
the fork: a command begins as `python -m fedpeft` does.
"""

import json
import os
import runpy
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

PRELOADED = (
    "torch",
    "transformers.models.vit.modeling_vit",
    "transformers.models.vit.image_processing_pil_vit",
    "peft",
    "sklearn.datasets",
    "safetensors.torch",
    "typer",
    "rich.console",
    "rich.table",
    "pydantic",
    "scipy.stats",
    "tomli_w",
    "cryptography.hazmat.primitives.asymmetric.x25519",
)


def main(jobs: Path, source: Path) -> None:
    """Run all jobs; source is the folder that the library must come from."""
    found = find_spec("fedpeft")
    if found is None or found.origin is None or source not in Path(found.origin).parents:
        raise SystemExit(f"fedpeft was found at {found and found.origin}, not below {source}")
    for name in PRELOADED:
        import_module(name)
    for name, commands in json.loads(jobs.read_text()).items():
        seconds, code, said = 0.0, 0, ""
        for command in commands:
            code, said, took = in_fork(command, jobs.parent / f"{name}.log")
            seconds += took
            if code:
                break
        told = {"name": name, "code": code, "said": said, "seconds": round(seconds, 2)}
        print(json.dumps(told))
        sys.stdout.flush()


def in_fork(command: Sequence[str], log: Path) -> tuple[int, str, float]:
    """Run one command; return its exit status, the last line that it wrote, and the seconds of a
    processor that it took, which depend little on what else the machine does."""
    child = os.fork()
    if child == 0:
        os._exit(run(command, log))
    _, status, used = os.wait4(child, 0)
    lines = log.read_text(errors="replace").strip().splitlines() or [""]
    return os.waitstatus_to_exitcode(status), lines[-1], used.ru_utime + used.ru_stime


def run(command: Sequence[str], log: Path) -> int:
    """What `python -m fedpeft` does, with its output in a file; return the exit status."""
    opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(opened, 1)
    os.dup2(opened, 2)
    sys.argv = ["fedpeft", *command]
    code = 0
    try:
        runpy.run_module("fedpeft", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).resolve())
