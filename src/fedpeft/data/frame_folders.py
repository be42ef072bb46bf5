"""Clips whose frames are numbered pictures in a folder of their own."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedpeft.core.moments import choose_frames
from fedpeft.data.folders import endings, is_of_the_system

NUMBER = re.compile(r"(\d+)\D*$")
"""The last number in a name."""
LEAST = 2
"""Pictures of one clip: one alone may be a thumbnail."""


class RepeatedNumbers(Exception):
    """Two pictures have one number, as where two series lie in one folder."""


def find_frames(folder: Path, clips: Sequence[str]) -> list[Path]:
    """The pictures of a folder that are one clip's frames, in the order of their numbers, whatever
    the names before them; none where it is no such folder.

    A folder with files that are clips by themselves is none.

    Args:
      clips: what the names of clips end in, in small letters.
    """
    pictures = []
    for file in folder.iterdir():
        end = file.suffix.lower()
        if is_of_the_system(file.name) or not file.is_file():
            continue
        if end in clips:
            return []
        if end in endings() and NUMBER.search(file.stem):
            pictures.append(file)
    return sorted(pictures, key=_order) if len(pictures) >= LEAST else []


def read_pictures(files: Sequence[Path], wanted: int) -> tuple[Sequence[Any], int]:
    """So many of these pictures, upright, and how many there are.

    Args:
      wanted: how many; 0 for the first alone, which tells whether it can be read.

    Raises:
      RepeatedNumbers: the pictures are no one series.
      OSError, SyntaxError, ValueError: as Pillow raises them for a picture that cannot be read.
    """
    from PIL import Image, ImageOps

    if len({_order(file)[0] for file in files}) < len(files):
        raise RepeatedNumbers
    places = choose_frames(len(files), wanted) if wanted else [0]
    made = {}
    for place in sorted(set(places)):
        with Image.open(files[place]) as picture:
            made[place] = ImageOps.exif_transpose(picture).convert("RGB")
    return [made[place] for place in places], len(files)


def _order(file: Path) -> tuple[int, str]:
    found = NUMBER.search(file.stem)
    return int(found[1]) if found else -1, file.name
