"""What the short form of a plan's data, `data = "..."`, stands for: a source, a file, a folder, a
hub dataset."""

from collections.abc import Container
from pathlib import Path
from typing import Any

from fedpeft.core.places import locate
from fedpeft.data.images import ENDINGS
from fedpeft.data.reading import BUILDERS

DEPTH = 3
"""Levels down to a picture: train/<class>/<file>. A folder is looked through no deeper."""
NOTES = (".", "dataset_", "state.")
"""What the names of files about a dataset begin with."""


def source(text: str, known: Container[str]) -> dict[str, Any]:
    """The plan's table for `text`: a name in `known` or "module:Class" first, then what lies there,
    then the hub.

    `x.npz` is arrays, a folder of pictures without tables is images, and any other place is a
    table.
    """
    if text in known or ":" in text:
        return {"name": text}
    found = locate(text)
    if text.lower().endswith(".npz"):
        return {"name": "arrays", "path": text}
    if found is not None and found.is_dir() and _holds_pictures_only(found):
        return {"name": "images", "path": text}
    return {"name": "table", "path": text} if found is not None or "/" in text else {"name": text}


def _holds_pictures_only(root: Path) -> bool:
    """Pictures in folders, beside which there is no table: a table may have its pictures in folders
    too."""
    pictures = False
    for depth in range(1, DEPTH + 1):
        for file in root.glob("*/" * (depth - 1) + "*"):
            if Path(
                file.name.removesuffix(".gz")
            ).suffix.lower() in BUILDERS and not file.name.startswith(NOTES):
                return False
            pictures = pictures or (depth > 1 and file.suffix.lower() in ENDINGS)
    return pictures
