"""The archive of raw cells: what a study's CSV file leaves out, for a release and not for the
repository."""

import io
import re
import tarfile
from hashlib import file_digest
from pathlib import Path

from fedpeft.storage.files import write_atomically
from fedpeft.studies.cell_store import KEPT

MEMBER = re.compile(rf"[\w.-]*\w/[\w.-]*\w/({'|'.join(map(re.escape, KEPT))})", re.ASCII)
"""STUDY/CELL/FILE, and no step out of the folder."""


def pack(cells: Path, archive: Path) -> int:
    """Write the finished cells in `cells`/STUDY/CELL into one archive, and its SHA-256 beside it.

    Weights and checkpoints stay outside. The same cells give the same bytes.

    Returns:
      How many cells the archive has.

    Raises:
      SystemExit: there is no finished cell.
    """
    found = sorted(file.parent for file in cells.glob("*/*/summary.json"))
    if not found:
        raise SystemExit(f"{cells} has no finished cell: it must have STUDY/CELL/summary.json")
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz", preset=9) as tar:
        for folder in found:
            for name in sorted(KEPT):
                _add(tar, folder / name, f"{folder.parent.name}/{folder.name}/{name}")
    archive.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(archive, content.getvalue())
    write_atomically(digest_file(archive), f"{digest(archive)}  {archive.name}\n".encode())
    return len(found)


def _add(tar: tarfile.TarFile, file: Path, name: str) -> None:
    """Add a file without owner, time and rights, which differ from machine to machine."""
    if MEMBER.fullmatch(name) is None or not file.is_file():
        raise SystemExit(f"{file} is missing, or its folders have names that no archive takes")
    content = file.read_bytes()
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))


def unpack(archive: Path, out: Path, wanted: str) -> int:
    """Write the cells of an archive to `out`/STUDY/CELL.

    Args:
      wanted: the SHA-256 that the archive must have.

    Returns:
      How many cells the archive has.

    Raises:
      SystemExit: the archive is another, has a file that no cell has, or `out` is not empty.
    """
    if (own := digest(archive)) != wanted:
        raise SystemExit(f"{archive} has the SHA-256 {own}, not {wanted}: fetch it again")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SystemExit(f"{out} is not empty: give --out a new folder")
    cells = set()
    with tarfile.open(archive, "r:xz") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isfile() else None
            if content is None or MEMBER.fullmatch(member.name) is None:
                raise SystemExit(f"{archive} has {member.name!r}, which is no file of a cell")
            path = out / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())
            cells.add(path.parent)
    return len(cells)


def digest(file: Path) -> str:
    """The SHA-256 of a file.

    Raises:
      SystemExit: there is no such file.
    """
    try:
        with file.open("rb") as opened:
            return file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise SystemExit(f"{file} cannot be read: {error.strerror}") from None


def digest_file(archive: Path) -> Path:
    return archive.with_name(f"{archive.name}.sha256")


def read_digest(file: Path) -> str:
    """The SHA-256 in a file that `sha256sum` could check.

    Raises:
      SystemExit: there is no such file, or it has none.
    """
    try:
        words = file.read_text().split()
    except OSError as error:
        raise SystemExit(
            f"{file} cannot be read: {error.strerror}; give the archive's SHA-256 with --sha256"
        ) from None
    if not words or re.fullmatch(r"[0-9a-f]{64}", words[0]) is None:
        raise SystemExit(f"{file} has no SHA-256: it must begin with 64 hexadecimal digits")
    return words[0]
