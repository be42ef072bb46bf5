"""What lies in a folder of pictures or videos: splits, classes, examples, and files that are
none."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from fedpeft.data.splits import split_named
from fedpeft.data.volumes import volume_format
from fedpeft.errors import DataError, say_count

STUBS = ("BUFR", "GRIB", "HDF5", "MPEG", "WMF")
"""Formats that Pillow knows by name and cannot read by itself."""
SYSTEM = (
    "@eadir", "@recycle", "#recycle", "__macosx", "lost+found", "$recycle.bin",
    "system volume information", "thumbs.db", "desktop.ini",
)  # fmt: skip
"""What operating systems and network storages put beside pictures, thumbnails among them."""


@cache
def endings() -> frozenset[str]:
    """What the names of pictures end in, in small letters: all formats that Pillow reads."""
    from PIL import Image

    Image.init()
    known = Image.registered_extensions().items()
    return frozenset(end for end, kind in known if kind in Image.OPEN and kind not in STUBS)


def is_picture(name: str) -> bool:
    """Whether a file is one of a picture, or of a medical format, by its name."""
    if is_of_the_system(name):
        return False
    return bool(volume_format(name)) or Path(name).suffix.lower() in endings()


def is_of_the_system(name: str) -> bool:
    """Whether a file or a folder is hidden, or an operating system's own."""
    return name.startswith(".") or name.lower() in SYSTEM


@dataclass(frozen=True)
class FileKind:
    """Which files are examples, and what to call them.

    Attributes:
      plural: what they are, e.g. "pictures".
      accepts: whether a file is one, by its name.
      reader: what reads them, for errors.
      ending: of files that it reads.
      parts_in: the files of a folder that are one example together; none where they are not.
    """

    plural: str
    accepts: Callable[[str], bool]
    reader: str
    ending: str
    parts_in: Callable[[Path], Sequence[Path]] = lambda _: ()


PICTURES = FileKind("pictures", is_picture, "Pillow", ".png")


@dataclass
class Found:
    """What lies in the folders of one side.

    Attributes:
      files: class and file, in the order of the names.
      classes: the names of the folders that a class may have, also where they are empty.
      left_out: by reason how many files are left out.
    """

    files: list[tuple[str, Path]] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Sides:
    """The folders of both sides; none held out where a part of the training pictures is to be."""

    train: Sequence[Path]
    test: Sequence[Path]
    left_out: Counter[str]


def find_sides(root: Path, kind: FileKind = PICTURES) -> Sides:
    """The folders whose folders are the classes.

    Folders called like a split, such as `Training`, are one if they hold folders themselves. Where
    there is one for testing, one for validation is left out and counted, as is everything beside
    the splits. A folder that holds nothing but the folder of the splits is looked into.

    Raises:
      DataError: there are splits, but none to train on.
    """
    folders = _folders(root)
    splits = {folder: split_named(folder.name) for folder in folders if _folders(folder)}
    by_split = {
        name: [folder for folder in splits if splits[folder] == name]
        for name in ("train", "test", "validation")
    }
    if not by_split["train"]:
        if len(folders) == 1 and any(split_named(f.name) == "train" for f in _folders(folders[0])):
            return find_sides(folders[0], kind)
        if folders and all(splits.get(folder) for folder in folders):
            names = ", ".join(folder.name for folder in folders)
            raise DataError(f"{root} holds the splits {names}, and none to train on: add train/")
        return Sides([root], [], Counter())
    test = by_split["test"] or by_split["validation"]
    used = [*by_split["train"], *test]
    left_out = Counter[str]()
    for place in sorted(root.iterdir()):
        if place in used or is_of_the_system(place.name):
            continue
        whole, rest = ([], [(place, False)]) if place.is_file() else _entries(place, kind)
        number = len(whole) + sum(kind.accepts(file.name) for file, _ in rest)
        if number:
            left_out[f"{kind.plural} in {place.name}, beside the splits that are used"] += number
    return Sides(
        [_inner(folder) for folder in by_split["train"]],
        [_inner(folder) for folder in test],
        left_out,
    )


def _inner(split: Path) -> Path:
    """Archives often hold `train/train/<class>`."""
    folders = _folders(split)
    if len(folders) == 1 and split_named(folders[0].name) == split_named(split.name):
        return folders[0]
    return split


def find_examples(roots: Sequence[Path], kind: FileKind = PICTURES) -> Found:
    """The examples below `<class>/`, at any depth, of all these folders together.

    Raises:
      DataError: a class has files, but no examples, or there is no class with examples at all.
    """
    found = Found()
    for root in roots:
        for place in sorted(root.iterdir()):
            if place.is_dir() and not is_of_the_system(place.name):
                _look_into(place, found, kind)
            elif place.is_dir():
                found.left_out["files in hidden folders or those of the system"] += sum(
                    1 for _ in _walk(place)
                )
            else:
                found.left_out[_reason(place.name, kind, loose=True)] += 1
    if not found.files:
        seen = "".join(
            f"; left out: {say_count(count, what)}" for what, count in found.left_out.items()
        )
        raise DataError(
            f"{', '.join(map(str, roots))} has no {kind.plural} with labels: each must lie in a "
            f"folder called like its class{seen}"
        )
    found.classes = sorted(set(found.classes))
    found.files.sort(key=lambda one: one[0])
    return found


def _look_into(folder: Path, found: Found, kind: FileKind) -> None:
    """Add the examples of one class."""
    others = Counter[str]()
    examples, rest = _entries(folder, kind)
    for file, hidden in rest:
        if not hidden and kind.accepts(file.name):
            examples.append(file)
        elif hidden and not is_of_the_system(file.name):
            others["files in hidden folders or those of the system"] += 1
        else:
            others[_reason(file.name, kind)] += 1
    readable = [what for what in others if what.endswith(" files") and what != HIDDEN]
    if not examples and readable:
        seen = ", ".join(f"{others[what]} {what}" for what in readable)
        raise DataError(
            f"{folder} has no {kind.plural} that {kind.reader} reads, but {seen}: convert them, "
            f"e.g. to {kind.ending}, or take the folder away"
        )
    found.classes.append(folder.name)
    found.files += [(folder.name, file) for file in sorted(examples)]
    found.left_out.update(others)


HIDDEN = "hidden files"


def _reason(name: str, kind: FileKind, loose: bool = False) -> str:
    """Why a file is left out."""
    if is_of_the_system(name):
        return HIDDEN if name.startswith(".") else "files of the system"
    if loose and kind.accepts(name):
        return f"{kind.plural} in no folder of a class"
    return f"{Path(name).suffix.lower() or 'nameless'} files"


def _folders(root: Path) -> list[Path]:
    return sorted(
        place for place in root.iterdir() if place.is_dir() and not is_of_the_system(place.name)
    )


def _entries(folder: Path, kind: FileKind) -> tuple[list[Path], list[tuple[Path, bool]]]:
    """The folders below this one that are one example each, and all files that are no part of one,
    with whether a folder on the way is hidden or the system's."""
    hidden = dict(_walk(folder))
    parts, whole = set[Path](), []
    for at in sorted({file.parent for file in hidden if not hidden[file]} - {folder}):
        found = kind.parts_in(at)
        if found:
            whole.append(at)
            parts.update(found)
    return whole, sorted(
        (file, is_hidden) for file, is_hidden in hidden.items() if file not in parts
    )


def _walk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """All files below a folder, and whether a folder on the way is hidden or the system's."""
    for at, _, names in os.walk(folder):
        inside = Path(at).relative_to(folder).parts
        hidden = any(map(is_of_the_system, inside))
        yield from ((Path(at) / name, hidden) for name in names)
