"""A folder that takes the place of another in one step, so that a kill leaves the old one or the
new one."""

import ctypes
import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory

from fedpeft.errors import RunError
from fedpeft.runs.folder import RunFolder, lock_run

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


@contextmanager
def replace_when_built(path: Path, new: bool = False) -> Iterator[Path]:
    """An empty folder beside `path` that takes its place at the end; after an error `path` is as it
    was.

    Args:
      new: nothing may be there at the end either, but an empty folder.

    Raises:
      RunError: of two that build a new folder at once, the one that ends later.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside `path`, as folders change places within one file system only. The lock tells what is
    # being built from what a kill left; see `clear`.
    with (
        TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as around,
        lock_run(RunFolder(Path(around))),
    ):
        folder = Path(around) / path.name
        folder.mkdir()
        yield folder
        if new:
            _put(folder, path)
        elif path.is_dir() and any(path.iterdir()):
            if not _exchange(folder, path):
                _one_after_another(folder, path)
        else:
            if path.is_dir():
                path.rmdir()
            folder.rename(path)


def clear(path: Path) -> None:
    """Take away what kills left beside `path`: what was being built, or the old folder; not what a
    process is at."""
    path = path.resolve()
    for around in path.parent.glob(f".{glob.escape(path.name)}.*"):
        # As `tempfile` draws names: other folders that begin so are the user's.
        drawn = re.fullmatch(r"[a-z0-9_]{8}", around.name.removeprefix(f".{path.name}."))
        if not drawn or not around.is_dir():
            continue
        # It is locked, or its owner has just taken it away.
        with suppress(RunError, FileNotFoundError):
            if {inside.name for inside in around.iterdir()} <= {path.name, ".lock"}:
                with lock_run(RunFolder(around)):
                    rmtree(around)


def put_back(path: Path) -> None:
    """Undo, or finish, what a kill interrupted where a system cannot exchange folders."""
    path, before = path.resolve(), _before(path)
    if before.is_dir() and not path.exists():
        before.rename(path)
    elif before.is_dir():
        rmtree(before)


def _put(folder: Path, path: Path) -> None:
    """A rename puts a folder in the place of an empty one and of nothing else, in one step."""
    try:
        if os.name == "nt" and path.is_dir():  # there it takes the place of none
            path.rmdir()
        folder.rename(path)
    except OSError as error:
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            raise
        raise RunError(
            f"{path} came to be while this one was made ({error.strerror}), and it is kept as it "
            "is: name another folder, or add these files to it with --add"
        ) from None


def _exchange(one: Path, other: Path) -> bool:
    """Whether the system has exchanged the two: Linux can, on most file systems."""
    try:
        libc = ctypes.CDLL(None)
        return bool(
            libc.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0
        )
    except (OSError, AttributeError, TypeError):
        return False


def _one_after_another(folder: Path, path: Path) -> None:
    path.rename(_before(path))
    folder.rename(path)
    rmtree(_before(path))


def _before(path: Path) -> Path:
    path = path.resolve()
    return path.with_name(f".{path.name}.before")
