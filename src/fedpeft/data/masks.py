"""Folders of pictures and their masks, pictures whose pixels number classes."""

from collections import Counter
from dataclasses import dataclass
from logging import getLogger
from os import walk
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from fedpeft.core.types import Examples, Table
from fedpeft.data.depth import Window, check_window
from fedpeft.data.folders import is_of_the_system, is_picture
from fedpeft.data.metadata import split_of
from fedpeft.data.pictures import Pictures, pair_tables
from fedpeft.data.slices import leave_out_unfit_volumes
from fedpeft.data.splits import check_fraction, check_subset, hold_out, some
from fedpeft.errors import DataError, say_count
from fedpeft.storage.locate import locate

Pairs: TypeAlias = list[tuple[Path, Path]]
"""Pictures, each with its mask."""
MASKS, IMAGES = "masks", "images"
ALONE = "pictures without a mask of the same name"
UNUSED = "masks without a picture of the same name"


@dataclass(frozen=True)
class PicturesWithMasks:
    """Pictures in a folder, and beside them `masks/`, in which `name.png` is the mask of
    `name.jpg`. Pictures may lie in a folder `images/` beside `masks/` instead.

    Such folders are looked for in `path` and below, so that `path/train/...`, `path/test/...` and a
    folder for each owner are found. Gives `image`, `mask`, `file`, each picture's path below
    `path`, and `folder`, the name of the folder that holds both, for partitions by a column.

    Attributes:
      path: the folder.
      test_fraction: how large a part is held out where no folder is called test, or validation; 0
        for none.
      subset: at most so many training pictures, drawn once, whatever the partition; 0 for all.
      seed: of the part that is held out and of the subset.
      window: which values of pictures with more than 8 bits become black and white; see `Images`.
        Masks are read as they are.

    Raises:
      ValueError: a value out of range.
      DataError: there is no such folder, or it holds no picture with a mask to train on.
    """

    path: str
    test_fraction: float = 0.2
    subset: int = 0
    seed: int = 1
    window: Window = None

    def __post_init__(self) -> None:
        check_window(self.window)
        check_fraction(self.test_fraction)
        check_subset(self.subset, "pictures")

    def load(self) -> Examples:
        root = locate(self.path)
        if root is None or not root.is_dir():
            raise DataError(f"there is no folder {self.path!r} here or in $FEDPEFT_DATA")
        left_out = Counter[str]()
        found = _find_pairs(root, left_out)
        train, held = _divided(found, root, left_out)
        if left_out:
            told = "; ".join(say_count(n, what) for what, n in left_out.items())
            getLogger("fedpeft").warning("%s: left out: %s", root, told)
        if not train:
            raise DataError(
                f"{root} holds no pictures with masks to train on: put name.png into a folder "
                f"{MASKS!r} beside each picture name.jpg, or beside its folder {IMAGES!r}"
            )
        if not held:
            alike = torch.zeros(len(train), dtype=torch.int64)  # there are no classes to balance
            kept, out = hold_out(alike, self.test_fraction, self.seed)
            train, held = _chosen(train, kept), _chosen(train, out)
        train = _chosen(train, some(torch.arange(len(train)), self.subset, self.seed))
        first, second = (
            leave_out_unfit_volumes(_table(one, root), self.path, left_out) for one in (train, held)
        )
        return Examples(*pair_tables(first, second, self.window), (), dict(left_out))


def holds_masks(root: Path) -> bool:
    """Whether there is a picture with a mask of its name in a folder or below."""
    return bool(_find_pairs(root, Counter()))


def _divided(pairs: Pairs, root: Path, left_out: Counter[str]) -> tuple[Pairs, Pairs]:
    """What is trained on and what is held out, as the folders are called."""
    splits: dict[str, Pairs] = {"train": [], "validation": [], "test": []}
    for picture, mask in pairs:
        splits[split_of(picture.relative_to(root).parent)].append((picture, mask))
    if splits["test"] and splits["validation"]:
        left_out["pictures for validation, beside those for testing"] = len(splits["validation"])
    return splits["train"], splits["test"] or splits["validation"]


def _find_pairs(root: Path, left_out: Counter[str]) -> Pairs:
    """Pictures and their masks, in the order of the pictures' paths; what has no partner is
    counted."""
    pairs = []
    for at, folders, _ in walk(root):
        folders[:] = sorted(name for name in folders if not is_of_the_system(name))
        if MASKS in folders:
            inner = IMAGES if IMAGES in folders else ""
            pairs += _matched(Path(at) / inner, Path(at) / MASKS, left_out)
    return sorted(pairs)


def _matched(images: Path, masks: Path, left_out: Counter[str]) -> Pairs:
    """The pictures of one folder with the masks of their names."""
    known = {file.stem: file for file in _files(masks) if file.suffix.lower() == ".png"}
    pictures = _files(images)
    found = [(file, known[file.stem]) for file in pictures if file.stem in known]
    unused = known.keys() - {file.stem for file in pictures}
    for what, count in ((ALONE, len(pictures) - len(found)), (UNUSED, len(unused))):
        if count:
            left_out[what] += count
    return found


def _chosen(pairs: Pairs, index: Tensor) -> Pairs:
    return [pairs[k] for k in index.tolist()]


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and is_picture(file.name))


def _pictures(pairs: Pairs, which: int) -> Pictures:
    return Pictures([one[which] for one in pairs], range(len(pairs)))


def _table(pairs: Pairs, root: Path) -> Table:
    holders = [mask.parent.parent.name for _, mask in pairs]
    names = [str(picture.relative_to(root)) for picture, _ in pairs]
    columns = {
        "image": _pictures(pairs, 0),
        "mask": _pictures(pairs, 1),
        "file": names,
        "folder": holders,
    }
    return Table(columns)
