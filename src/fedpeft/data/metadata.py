"""Folders of pictures or recordings that a table describes: `metadata.csv` or `metadata.jsonl`, the
form that the image and audio folders of Hugging Face `datasets` document."""

from collections.abc import Callable, Sequence
from logging import getLogger
from os import walk
from pathlib import Path, PurePosixPath
from re import split as cut
from typing import Any

from fedpeft.data.folders import is_of_the_system, is_picture
from fedpeft.data.recordings import is_sound
from fedpeft.data.splits import TEST, TRAIN, VALIDATION
from fedpeft.errors import DataError, say_count

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE = "file_name"


def suffix(file: Path) -> str:
    """How the name of a file of a table ends, in small letters and without .gz."""
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def split_of(file: Path | PurePosixPath) -> str:
    """The split that the name of a file, or of a folder above it, says it belongs to."""
    words = {word.lower() for part in file.parts for word in cut(r"[^A-Za-z]+", part)}
    for split, known in (("test", TEST), ("validation", VALIDATION), ("train", TRAIN)):
        if words & set(known):
            return split
    return "train"


def find_metadata(found: Path) -> list[Path]:
    """The files called metadata in a folder and below, or the one that is named; none elsewhere."""
    if found.is_file():
        return [found] if found.name.lower() in METADATA else []
    return sorted(
        file
        for file in found.rglob("*")
        if file.name.lower() in METADATA and not any(map(is_of_the_system, file.parts))
    )


def join_pictures(tables: Sequence[tuple[Path, Any]], root: Path) -> dict[str, Any]:
    """By split the rows of all tables, with the paths of pictures or recordings from `root` on.

    Raises:
      DataError: a table names no files, or a file is none of a picture below `root`.
    """
    import datasets

    parts: dict[str, list[Any]] = {}
    named: set[str] = set()
    for file, rows in tables:
        rows, paths, others = _with_paths(file, rows, root)
        named.update(paths, others)
        splits = [split_of(PurePosixPath(path)) for path in paths]
        for split in dict.fromkeys(splits):
            places = [place for place, own in enumerate(splits) if own == split]
            parts.setdefault(split, []).append(rows.select(places))
    for what, fits in (("pictures", is_picture), ("recordings", is_sound)):
        beside = [path for path in _files_below(root, fits) if path not in named]
        if beside:
            getLogger("fedpeft").warning(
                "%s: left out: %s, the first %s",
                root, say_count(len(beside), f"{what} that no metadata file names"), beside[0],
            )  # fmt: skip
    return {split: datasets.concatenate_datasets(rows) for split, rows in parts.items()}


def _with_paths(file: Path, rows: Any, root: Path) -> tuple[Any, list[str], list[str]]:
    """A table whose columns of files are called after what these are, the first one's paths, and
    those of the others."""
    start = PurePosixPath(file.parent.relative_to(root).as_posix())
    found: list[list[str | None]] = []
    for name in _file_columns(file, rows):
        paths = [_path_in(start, value) for value in rows[name]]
        called = _kind(_known(paths)) if name == FILE else name.removesuffix(f"_{FILE}")
        if called != name and called in rows.column_names:
            raise DataError(f"{file} has both columns {name!r} and {called!r}: leave one out")
        rows = rows.remove_columns(name).add_column(called, paths, feature=_texts())
        found.append(paths)
    # a row that names no file belongs where its table lies
    first = [path or str(start / FILE) for path in found[0]]
    if "folder" not in rows.column_names:
        rows = rows.add_column("folder", [PurePosixPath(path).parent.name for path in first])
    return rows, first, [path for paths in found[1:] for path in _known(paths)]


def _file_columns(file: Path, rows: Any) -> list[str]:
    columns = [name for name in rows.column_names if name == FILE or name.endswith(f"_{FILE}")]
    if not columns:
        raise DataError(
            f"{file} has the columns {', '.join(rows.column_names)}: a metadata file needs "
            f"{FILE!r}, each file's path from the table's own folder"
        )
    return columns


def _path_in(start: PurePosixPath, value: Any) -> str | None:
    """A cell of a table as a path from the root on, or None for a gap."""
    words = "" if value is None or value != value else str(value)
    return str(start / words.replace("\\", "/")) if words.strip() else None


def _known(paths: Sequence[str | None]) -> list[str]:
    return [path for path in paths if path is not None]


def _texts() -> Any:
    """The type of a column of paths, which may all be gaps."""
    from datasets import Value

    return Value("string")


def _kind(paths: Sequence[str]) -> str:
    """What files are called that their table calls by `file_name` alone."""
    return "audio" if any(map(is_sound, paths)) else "image"


def _files_below(root: Path, fits: Callable[[str], bool]) -> list[str]:
    found = []
    for at, folders, files in walk(root):
        folders[:] = [name for name in folders if not is_of_the_system(name)]
        inside = Path(at).relative_to(root)
        found += [(inside / name).as_posix() for name in files if fits(name)]
    return sorted(found)
