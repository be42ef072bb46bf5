"""CSV files as people save them: other separators, other encodings, and text that stays text.

A column is numbers only if every value reads back to what is written, so that the label `01` is not
the label `1`. Only an empty field is a missing value: `NA` and `null` are text.
"""

import csv
import gzip
from collections import Counter
from collections.abc import Sequence
from io import BytesIO, StringIO
from logging import getLogger
from pathlib import Path
from typing import Any

from fedpeft.errors import DataError
from fedpeft.storage.text_files import encoding_of

SEPARATORS = (",", ";", "\t", "|")
SAMPLE = 1 << 16
"""Characters from which the separator is told."""
BLOCK = 1 << 26
"""Bytes that are read at once; no row may be longer."""
WHOLE = r"^-?(0|[1-9][0-9]{0,17})$"
NUMBER = r"^-?(0|[1-9][0-9]*)?\.?[0-9]+([eE][-+]?[0-9]+)?$"
CODE = r"^-?(0[0-9]|[0-9]{19})"
"""What begins a code or a number of something, which a float would not give back."""


def read_csv(files: Sequence[Path], separator: str | None, encoding: str | None) -> Any:
    """The rows of all files together, as an Arrow table.

    The log names the separator and the encoding where they are not a comma and UTF-8.

    Raises:
      DataError: the files have other columns, a column is there twice, or a file is no CSV.
    """
    import pyarrow as pa  # type: ignore[import-untyped]

    tables = [_read_text_columns(file, separator, encoding) for file in files]
    names = tables[0].column_names
    for file, table in zip(files, tables, strict=True):
        if set(table.column_names) != set(names):
            raise DataError(
                f"{file} has the columns {', '.join(table.column_names)}, and {files[0]} has "
                f"{', '.join(names)}: give them the same ones"
            )
    whole = pa.concat_tables([table.select(names) for table in tables])
    return pa.table({name: _convert_column(whole.column(name).combine_chunks()) for name in names})


def _read_text_columns(file: Path, separator: str | None, encoding: str | None) -> Any:
    """One file's table, all columns of which are text; an empty field is null."""
    from pyarrow import csv as arrow_csv

    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    content, found = _as_utf8(content, encoding, file)
    between = separator or _separator(content[: 4 * SAMPLE].decode(errors="replace")[:SAMPLE])
    names = _column_names(content, between, file)
    told = [found] if found else []
    told += [f"the separator {between!r}"] if not separator and between != "," else []
    if told:
        getLogger("fedpeft").warning("%s: it is read with %s", file, " and ".join(told))
    return arrow_csv.read_csv(
        BytesIO(content),
        read_options=arrow_csv.ReadOptions(
            use_threads=False, block_size=BLOCK, column_names=names, skip_rows=0
        ),
        parse_options=arrow_csv.ParseOptions(delimiter=between, newlines_in_values=True),
        convert_options=arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(names, "string"), null_values=[""], strings_can_be_null=True
        ),
    ).slice(1)


def _as_utf8(content: bytes, encoding: str | None, file: Path) -> tuple[bytes, str]:
    """The file's text in UTF-8, and in words its encoding where that is another."""
    chosen = encoding or encoding_of(content) or _guess(content)
    try:
        text = content.decode(chosen)
    except (UnicodeDecodeError, LookupError) as error:
        raise DataError(
            f"{file} cannot be read in the encoding {chosen!r} ({error}): set data.encoding"
        ) from None
    plain = chosen in ("utf-8", "utf-8-sig") or encoding
    return text.removeprefix(
        "\ufeff"
    ).encode(), "" if plain else f"the encoding {chosen} (data.encoding sets another)"


def _guess(content: bytes) -> str:
    """UTF-8, or what Windows saves in Western languages, in which five bytes mean nothing."""
    for encoding in ("utf-8", "cp1252"):
        try:
            content.decode(encoding)
            return encoding
        except UnicodeDecodeError:
            continue
    return "latin-1"


def _separator(sample: str) -> str:
    """What stands between the columns: of what cuts all lines of the sample like the header, what
    makes the most columns; else what the header has most of."""
    found: dict[str, tuple[bool, int]] = {}
    for separator in SEPARATORS:
        try:
            rows = [row for row in csv.reader(StringIO(sample), delimiter=separator) if row]
        except csv.Error:
            continue
        rows = rows[:-1] if len(sample) == SAMPLE and len(rows) > 1 else rows
        if rows and len(rows[0]) > 1:
            alike = all(len(row) == len(rows[0]) for row in rows)
            found[separator] = (alike, len(rows[0]))
    return max(found, key=lambda separator: found[separator], default=",")


def _column_names(content: bytes, separator: str, file: Path) -> list[str]:
    """The names in the first line that is not empty.

    Raises:
      DataError: a name is there twice.
    """
    text = content[: 4 * SAMPLE].decode(errors="replace")
    row = next((row for row in csv.reader(StringIO(text), delimiter=separator) if row), [])
    names = [name.strip() or f"Unnamed: {k}" for k, name in enumerate(row)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(
            f"{file} has more than one column called {', '.join(map(repr, twice))}: give each a "
            "name of its own"
        )
    return names


def _convert_column(column: Any) -> Any:
    """Whole numbers or numbers, where each value is one as it would be written; else the text."""
    from pyarrow import compute

    values = column.drop_null()
    if not len(values):
        return column

    def every(pattern: str) -> bool:
        return bool(compute.all(compute.match_substring_regex(values, pattern)).as_py())

    if every(WHOLE):
        return column.cast("int64")
    if every(NUMBER) and not compute.any(compute.match_substring_regex(values, CODE)).as_py():
        return column.cast("float64")
    return column
