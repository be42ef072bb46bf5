"""Folders of pictures, one folder a class."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedpeft.core.places import locate
from fedpeft.core.types import Examples, Table
from fedpeft.data.pictures import Pictures
from fedpeft.data.splits import TEST, TRAIN, VALIDATION, check_fraction, hold_out, some
from fedpeft.errors import DataError, unknown

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""What the names of pictures end in; other files are passed over."""


@dataclass(frozen=True)
class Images:
    """`path/train/<class>/...` and `path/test/<class>/...`, or `path/<class>/...` of which a part
    is held out.

    Gives `image`, `label`, and `file`, each picture's path below `path`. Classes are in the order
    of their names.

    Attributes:
      test_fraction: how large that part is.
      subset: at most so many training pictures, drawn once, whatever the partition; 0 for all.
      skip_unreadable: leave out, with a warning that counts them, pictures that cannot be read; by
        default the first of them is an error. All pictures are then decoded once more.
      seed: of the part that is held out and of the subset.

    Raises:
      ValueError: a value out of range.
      DataError: there is no such folder, it holds no pictures in folders, or a class is held out
        but not trained on.
    """

    path: str
    test_fraction: float = 0.2
    subset: int = 0
    skip_unreadable: bool = False
    seed: int = 1

    def __post_init__(self) -> None:
        check_fraction(self.test_fraction)
        if self.subset < 0:
            raise ValueError(f"subset is a number of pictures, 0 for all, got {self.subset}")

    def load(self) -> Examples:
        root = locate(self.path)
        if root is None or not root.is_dir():
            raise DataError(f"there is no folder {self.path!r} here or in $FEDPEFT_DATA")
        train, test = _named(root, TRAIN), _named(root, (*TEST, *VALIDATION))
        files = self._readable(_pictures(root if train is None else train))
        classes = sorted({name for name, _ in files})
        label = _labels(files, classes)
        if test is not None and train is not None:
            held = self._readable(_pictures(test))
            held_label = _labels(held, classes)
        else:
            kept, out = hold_out(label, self.test_fraction, self.seed)
            held, held_label = [files[k] for k in out.tolist()], label[out]
            files, label = [files[k] for k in kept.tolist()], label[kept]
        chosen = some(torch.arange(len(files)), self.subset, self.seed)
        files, label = [files[k] for k in chosen.tolist()], label[chosen]
        return Examples(_table(files, label, root), _table(held, held_label, root), tuple(classes))

    def _readable(self, files: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
        if not self.skip_unreadable:
            return files
        good, reasons = [], []
        for name, file in files:
            try:
                Pictures([file], [0])[0]
                good.append((name, file))
            except DataError as error:
                reasons.append(str(error))
        if reasons:
            message = (
                f"{len(reasons)} of {len(files)} pictures are left out; the first: {reasons[0]}"
            )
            warnings.warn(message, stacklevel=2)
        return good


def _named(root: Path, names: tuple[str, ...]) -> Path | None:
    return next(
        (folder for folder in sorted(root.iterdir()) if folder.is_dir() and folder.name in names),
        None,
    )


def _pictures(root: Path) -> list[tuple[str, Path]]:
    """Class and file, in the order of the names.

    Raises:
      DataError: a folder of a class has no pictures, or there is none.
    """
    files: list[tuple[str, Path]] = []
    for folder in sorted(root.iterdir()):
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        found = sorted(
            file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file()
        )
        if not found:
            raise DataError(
                f"{folder} has no pictures ({', '.join(ENDINGS)}): put some there, or take it away"
            )
        files += [(folder.name, file) for file in found]
    if not files:
        raise DataError(
            f"{root} has no pictures with labels: each must lie in a folder called like its class"
        )
    return files


def _labels(files: list[tuple[str, Path]], classes: list[str]) -> Tensor:
    number = {name: k for k, name in enumerate(classes)}
    for name, file in files:
        if name not in number:
            raise DataError(
                f"{file} is held out, and nothing is trained on: " + unknown("class", name, classes)
            )
    return torch.tensor([number[name] for name, _ in files], dtype=torch.int64)


def _table(files: list[tuple[str, Path]], label: Tensor, root: Path) -> Table:
    paths = [file for _, file in files]
    names = [str(file.relative_to(root)) for file in paths]
    return Table({"label": label, "image": Pictures(paths, range(len(paths))), "file": names})
