"""Folders of pictures, one folder a class."""

from collections import Counter
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedpeft.core.types import Examples, Table
from fedpeft.data.class_folders import number_files, tell_folder
from fedpeft.data.depth import Window, check_window
from fedpeft.data.folders import find_examples, find_sides
from fedpeft.data.pictures import Pictures, pair_tables
from fedpeft.data.slices import check_slices_apart, find_unfit, spread_slices
from fedpeft.data.splits import check_fraction, check_subset, hold_out, some
from fedpeft.data.volumes import MIDDLE, Slice, check_slice
from fedpeft.errors import DataError, say_count
from fedpeft.registry import unwritten
from fedpeft.storage.locate import locate

REMEDY = "Mend it, take it away, or set data.skip_unreadable = true"


@dataclass(frozen=True)
class Images:
    """`path/train/<class>/...` and `path/test/<class>/...`, or `path/<class>/...` of which a part
    is held out.

    Gives `image`, `label`, and `file`, each picture's path below `path`. Classes are in the order
    of their names. A folder that is empty is a class of which there are no pictures here. Splits
    may be called in other common ways, such as `Training`, `Testing` and `validation`. All formats
    that Pillow reads are read; other files are left out, and the log says how many of which kind.

    Attributes:
      path: the folder.
      test_fraction: how large that part is; 0 for none.
      subset: at most so many training pictures, drawn once, whatever the partition; 0 for all.
      skip_unreadable: leave out, with a warning that counts them, pictures that cannot be read; by
        default they are an error that names them. All pictures are then decoded once more.
      seed: of the part that is held out and of the subset.
      window: which values of pictures with more than 8 bits become black and white: "minmax" or
        "percentile" (0.5 and 99.5) of each picture, [low, high] for all, or "own" for what a
        medical file names for display ("minmax" where it names nothing). Left out: the range that
        the pictures were recorded with, which the log names.
      slice: of medical files with several slices or frames, "middle", the number of one, from 0, or
        "all", each of which is then an example. Files of which no picture can be made are left out
        and counted.

    Raises:
      ValueError: a value out of range.
      DataError: there is no such folder, it holds no pictures in folders, a class has files but no
        pictures, or a class is held out but not trained on.
    """

    path: str
    test_fraction: float = 0.2
    subset: int = 0
    skip_unreadable: bool = False
    seed: int = 1
    window: Window = None
    slice: Slice = unwritten(MIDDLE)

    def __post_init__(self) -> None:
        check_window(self.window)
        check_slice(self.slice)
        check_fraction(self.test_fraction)
        check_subset(self.subset, "pictures")

    def check_plan(self, plan: Any) -> None:
        """Raises PlanError where slices of one file could be trained on and held out."""
        check_slices_apart(self.slice, plan)

    def load(self) -> Examples:
        root = locate(self.path)
        if root is None or not root.is_dir():
            raise DataError(f"there is no folder {self.path!r} here or in $FEDPEFT_DATA")
        sides = find_sides(root)
        found = find_examples(sides.train)
        left_out = sides.left_out + found.left_out
        files = self._readable(found.files, left_out)
        classes = found.classes
        label = number_files(files, classes)
        if sides.test:
            apart = find_examples(sides.test)
            left_out += apart.left_out
            held = self._readable(apart.files, left_out)
            held_label = number_files(held, classes)
        else:
            kept, out = hold_out(label, self.test_fraction, self.seed)
            held, held_label = [files[k] for k in out.tolist()], label[out]
            files, label = [files[k] for k in kept.tolist()], label[kept]
        chosen = some(torch.arange(len(files)), self.subset, self.seed)
        files, label = [files[k] for k in chosen.tolist()], label[chosen]
        tell_folder(classes, label, left_out, root, "pictures")
        tables = (
            spread_slices(_table(files, label, self._pictures(files), root)),
            spread_slices(_table(held, held_label, self._pictures(held), root)),
        )
        return Examples(*pair_tables(*tables, self.window), tuple(classes), dict(left_out))

    def _pictures(self, files: list[tuple[str, Path]]) -> Pictures:
        every = [file for _, file in files]
        return Pictures(every, range(len(files)), remedy=REMEDY, slice=self.slice)

    def _readable(
        self, files: list[tuple[str, Path]], left_out: Counter[str]
    ) -> list[tuple[str, Path]]:
        """The pictures that can be read, where the others are to be left out; these are counted.
        Medical files of which no picture can be made are left out in any case."""
        unfit = find_unfit(self._pictures(files), self.path)
        left_out.update({why: len(places) for why, places in unfit.items()})
        gone = {at for places in unfit.values() for at in places}
        files = [one for at, one in enumerate(files) if at not in gone]
        if not self.skip_unreadable:
            return files
        bad = self._pictures(files).unreadable()
        good, reasons = [one for at, one in enumerate(files) if at not in bad], list(bad.values())
        if reasons:
            left_out["pictures that cannot be read"] += len(reasons)
            first = reasons[0].removesuffix(f". {REMEDY}")
            getLogger("fedpeft").warning(
                "left out: %d of %s; the first: %s",
                len(reasons), say_count(len(files), "pictures"), first,
            )  # fmt: skip
        return good


def _table(files: list[tuple[str, Path]], label: Tensor, pictures: Pictures, root: Path) -> Table:
    names = [str(file.relative_to(root)) for _, file in files]
    return Table({"label": label, "image": pictures, "file": names})
