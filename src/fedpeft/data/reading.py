"""Reading tables through Hugging Face `datasets`: files and folders of this machine, and datasets
of the hub."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from importlib import import_module
from pathlib import Path
from re import split as cut
from tempfile import TemporaryDirectory
from typing import Any

from fedpeft.core.places import locate
from fedpeft.data.splits import TEST, TRAIN, VALIDATION
from fedpeft.errors import DataError

BUILDERS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
    ".jsonl": ("json", {}),
    ".ndjson": ("json", {}),
    ".json": ("json", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
}
"""By the end of a file's name: the reader of `datasets`, and how it is set."""


def read_splits(path: str, config: str = "") -> tuple[dict[str, Any], Path]:
    """Each split as a `datasets.Dataset`, and the folder that relative paths in it start from.

    Files of this machine are read into memory through a temporary folder: no copy of them stays in
      a cache.

    Raises:
      DataError: there is no such data, it cannot be read, or it has no rows.
    """
    found = locate(path)
    try:
        splits = _from_hub(path, config) if found is None else _from_files(found)
    except DataError:
        raise
    except Exception as error:  # readers raise what their parsers raise
        raise DataError(_explained(path, found, error)) from None
    splits = {name: rows for name, rows in splits.items() if len(rows)}
    if not splits:
        raise DataError(f"{found or path} has no rows")
    return splits, (found.parent if found and found.is_file() else found or Path())


def _from_hub(path: str, config: str) -> dict[str, Any]:
    import datasets

    loaded = datasets.load_dataset(path, config or None)
    return {str(name): rows for name, rows in loaded.items()}


def _from_files(found: Path) -> dict[str, Any]:
    import datasets

    splits: dict[str, Any] = {}
    for name, files in _files(found).items():
        kind, settings = BUILDERS[_suffix(files[0])]
        names = {name: [escape(str(file)) for file in files if file.stat().st_size]}
        if not names[name]:
            raise DataError(f"{files[0]} is empty")
        with TemporaryDirectory() as scratch, _quiet(datasets):
            # not load_dataset: it tells a server of each use of a reader, also where all files are
            # of this machine
            reader = _reader(kind)(cache_dir=scratch, data_files=names, **settings)
            reader.download_and_prepare()
            splits[name] = reader.as_dataset(split=name, in_memory=True)
    return splits


def _reader(kind: str) -> Any:
    """The class of `datasets` that reads files of a kind, e.g.
    `datasets.packaged_modules.csv.csv.Csv`."""
    return getattr(import_module(f"datasets.packaged_modules.{kind}.{kind}"), kind.capitalize())


def _files(found: Path) -> dict[str, list[Path]]:
    """The files of each split. A folder's files say in their names, or their folders', which they
    belong to."""
    if found.is_file():
        if _suffix(found) not in BUILDERS:
            raise DataError(f"{found} is no table: its name must end in {', '.join(BUILDERS)}")
        return {"train": [found]}
    files = sorted(
        file for file in found.rglob("*") if file.is_file() and _suffix(file) in BUILDERS
    )
    # save_to_disk's notes.
    files = [file for file in files if not file.name.startswith((".", "dataset_", "state."))]
    kinds = sorted({_suffix(file) for file in files})
    if len(kinds) != 1:
        what = f"files of {len(kinds)} kinds ({', '.join(kinds)})" if kinds else "no file"
        raise DataError(
            f"the folder {found} holds {what}; a table is files of one kind of "
            f"{', '.join(BUILDERS)}"
        )
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_of(file.relative_to(found)), []).append(file)
    return splits


def _split_of(file: Path) -> str:
    words = {word.lower() for part in file.parts for word in cut(r"[^A-Za-z]+", part)}
    for split, known in (("test", TEST), ("validation", VALIDATION), ("train", TRAIN)):
        if words & set(known):
            return split
    return "train"


def _suffix(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).suffix.lower()


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """No progress bars and no log lines: what goes wrong arrives as an error."""
    shown, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(50)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not shown:
            datasets.enable_progress_bars()


def _explained(path: str, found: Path | None, error: BaseException) -> str:
    if found is None:
        return (
            f"{path!r} is neither a file nor a folder (looked here and in $FEDPEFT_DATA), "
            f"nor a hub dataset that can be read: {_first_line(error)}"
        )
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{found} cannot be read: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
