"""Reading tables through Hugging Face `datasets`: files and folders of this machine, and datasets
of the hub."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory, mkstemp
from typing import Any

from fedpeft.data.csv_files import read_csv
from fedpeft.data.folders import is_picture
from fedpeft.data.metadata import find_metadata, join_pictures, split_of, suffix
from fedpeft.data.workbooks import OTHERS, SHEETS, write_sheet
from fedpeft.errors import DataError
from fedpeft.storage.hub import spare_lookups
from fedpeft.storage.locate import locate
from fedpeft.storage.text_files import encoding_of, read_text

BUILDERS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
    ".jsonl": ("json", {}),
    ".ndjson": ("json", {}),
    ".json": ("json", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {}),
    **dict.fromkeys(SHEETS, ("sheet", {})),
}
"""By the end of a file's name: the reader, of `datasets` but for CSV and sheets, and how it is
set."""


@dataclass(frozen=True)
class CsvForm:
    """How CSV files are written, as far as the plan says it.

    Attributes:
      separator: what stands between columns; None for what is found.
      encoding: of the text; None for what is found.
    """

    separator: str | None = None
    encoding: str | None = None


def read_splits(
    path: str, config: str = "", form: CsvForm = CsvForm()
) -> tuple[dict[str, Any], Path]:
    """Each split as a `datasets.Dataset`, and the folder that relative paths in it start from.

    In a folder with files called `metadata`, these are the table, and their columns `file_name` or
    `NAME_file_name` are the pictures `image` or `NAME`, as the image folders of `datasets` have it.
    A picture's own folder then says its split, and the column `folder` how that folder is called.

    Files of this machine are read into memory through a temporary folder: no copy of them stays in
      a cache.

    Raises:
      DataError: there is no such data, it cannot be read, or it has no rows.
    """
    found = locate(path)
    try:
        splits = _from_hub(path, config) if found is None else _from_files(found, form)
    except DataError:
        raise
    except Exception as error:  # readers raise what their parsers raise
        raise DataError(_explain(path, found, error)) from None
    splits = {name: rows for name, rows in splits.items() if len(rows)}
    if not splits:
        raise DataError(f"{found or path} has no rows")
    return splits, (found.parent if found and found.is_file() else found or Path())


def _from_hub(path: str, config: str) -> dict[str, Any]:
    spare_lookups()
    import datasets

    loaded = datasets.load_dataset(path, config or None)
    return {str(name): rows for name, rows in loaded.items()}


def _from_files(found: Path, form: CsvForm) -> dict[str, Any]:
    import datasets

    splits: dict[str, Any] = {}
    with TemporaryDirectory() as scratch, _quiet(datasets):
        named = find_metadata(found)
        if named:
            tables = [(file, _read_files([file], form, Path(scratch))) for file in named]
            return join_pictures(tables, found if found.is_dir() else found.parent)
        for name, files in _files(found).items():
            splits[name] = _read_files(files, form, Path(scratch))
    return splits


def _read_files(files: Sequence[Path], form: CsvForm, scratch: Path) -> Any:
    """The rows of files of one kind, in memory."""
    import datasets

    kind, settings = BUILDERS[suffix(files[0])]
    files = [file for file in files if file.stat().st_size] or [_empty(files[0])]
    if kind == "csv":
        return datasets.Dataset(
            datasets.table.InMemoryTable(read_csv(files, form.separator, form.encoding))
        )
    if kind == "sheet":
        sheets = [write_sheet(file, scratch) for file in files]
        return datasets.Dataset(datasets.table.InMemoryTable(read_csv(sheets, ",", "utf-8")))
    if kind == "json":
        files = [_plain_utf8(file, scratch) for file in files]
    names = {"train": [escape(str(file)) for file in files]}
    # not load_dataset: it tells a server of each use of a reader, also where all files are of this
    # machine
    with TemporaryDirectory(dir=scratch) as cache:
        reader = _reader(kind)(cache_dir=cache, data_files=names, **settings)
        reader.download_and_prepare()
        return reader.as_dataset(split="train", in_memory=True)


def _empty(file: Path) -> Path:
    raise DataError(f"{file} is empty")


def _plain_utf8(file: Path, scratch: Path) -> Path:
    """The file, or a copy in UTF-8 of one that has a byte order mark or is in UTF-16."""
    with file.open("rb") as opened:
        marked = encoding_of(opened.read(4)) is not None
    if not marked or file.suffix == ".gz":
        return file
    handle, copy = mkstemp(suffix=file.suffix, dir=scratch)
    with open(handle, "w", encoding="utf-8") as written:
        written.write(read_text(file))
    return Path(copy)


def _reader(kind: str) -> Any:
    """The class of `datasets` that reads files of a kind, e.g.
    `datasets.packaged_modules.csv.csv.Csv`."""
    return getattr(import_module(f"datasets.packaged_modules.{kind}.{kind}"), kind.capitalize())


def _files(found: Path) -> dict[str, list[Path]]:
    """The files of each split. A folder's files say in their names, or their folders', which they
    belong to."""
    if found.is_file():
        if suffix(found) not in BUILDERS:
            raise DataError(_not_a_table(found))
        return {"train": [found]}
    files = sorted(file for file in found.rglob("*") if file.is_file() and suffix(file) in BUILDERS)
    # save_to_disk's notes.
    files = [file for file in files if not file.name.startswith((".", "dataset_", "state."))]
    kinds = sorted({suffix(file) for file in files})
    if not kinds:
        raise DataError(_without_tables(found))
    if len(kinds) != 1:
        raise DataError(
            f"the folder {found} holds files of {len(kinds)} kinds ({', '.join(kinds)}); a table "
            f"is files of one kind of {', '.join(BUILDERS)}"
        )
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(split_of(file.relative_to(found)), []).append(file)
    return splits


def _not_a_table(found: Path) -> str:
    if suffix(found) in OTHERS:
        return f"{found} is a workbook of a kind that is not read: save it as .xlsx or CSV"
    return f"{found} is no table: its name must end in {', '.join(BUILDERS)}"


def _without_tables(found: Path) -> str:
    """What a folder holds that has no table in it: pictures in no folders of their own, or
    nothing."""
    pictures = sum(is_picture(file.name) for file in found.iterdir())
    if pictures:
        return (
            f"the folder {found} holds {pictures:,} pictures and no folders: put those of each "
            f"class into a folder of its own, {found}/CLASS/, or a table beside them, metadata.csv"
        )
    return (
        f"the folder {found} holds no pictures in folders, one a class, and no table: "
        f"{', '.join(BUILDERS)}"
    )


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


def _explain(path: str, found: Path | None, error: BaseException) -> str:
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
