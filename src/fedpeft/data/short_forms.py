"""What the short form of a plan's data, `data = "..."`, stands for: a source, a file, a folder, a
hub dataset."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from fedpeft.data.array_files import ENDINGS
from fedpeft.data.folders import is_of_the_system, is_picture
from fedpeft.data.masks import holds_masks
from fedpeft.data.reading import BUILDERS
from fedpeft.errors import PlanError, unknown
from fedpeft.storage.locate import locate

FORMS = ("arrays", "images", "masks", "table")
"""The sources that a short form may stand for, which read the same examples from places of several
kinds."""
NOTES = (".", "dataset_", "state.")
"""What the names of files about a dataset begin with."""


def source(text: str, known: Collection[str]) -> dict[str, Any]:
    """The plan's table for `text`: a name in `known` or "module:Class" first, then what lies there,
    then the hub.

    `x.npz` and `x.h5` are arrays, a folder of pictures without tables is images, or masks where
    there are some of their names in folders called so, and any other place is a table.

    Raises:
      PlanError: it is none of these.
    """
    if text in known or ":" in text:
        return {"name": text}
    found = locate(text)
    if text.lower().endswith(ENDINGS):
        return {"name": "arrays", "path": text}
    if found is not None and found.is_dir() and _holds_pictures_only(found):
        return {"name": "masks" if holds_masks(found) else "images", "path": text}
    if found is not None or "/" in text:
        return {"name": "table", "path": text}
    raise PlanError(
        f"{unknown('data', text, known)} There is no file or folder {text!r} here or in "
        "$FEDPEFT_DATA either: write where it lies"
    )


def _holds_pictures_only(root: Path) -> bool:
    """Pictures in folders, beside which there is no table: a table may have its pictures in folders
    too."""
    pictures = False
    for at, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not is_of_the_system(name)]
        for name in files:
            ending = Path(name.removesuffix(".gz")).suffix.lower()
            if ending in BUILDERS and not name.startswith(NOTES):
                return False
            pictures = pictures or (Path(at) != root and is_picture(name))
    return pictures
