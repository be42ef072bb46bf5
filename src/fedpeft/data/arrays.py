"""Arrays in one file, .npz or HDF5."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedpeft.core.types import Examples
from fedpeft.data.array_files import read_arrays
from fedpeft.data.in_memory import LABEL, NONE, Memory
from fedpeft.data.splits import check_fraction
from fedpeft.errors import DataError, unknown
from fedpeft.registry import unwritten
from fedpeft.storage.locate import locate

CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Arrays:
    """Arrays by name. Gives `image`, uint8 (n, channels, height, width), where they are pictures,
    else `x`.

    Pictures are uint8 arrays of shape (n, h, w), (n, h, w, c) or (n, c, h, w) for 1, 3 or 4
    channels. Other arrays are `x`: floats as float32, integers as int64. Labels (n,) or (n, 1) are
    integers or text. Nothing is unpickled.

    Further arrays (n, ...), such as a time and an event, are named by `columns`: the column `time`
    is `time_train` and `time_test` in the file, or `time` where nothing but `x_train` is there.

    Attributes:
      path: the file: .npz, or HDF5 (.h5, .hdf5), whose arrays in groups are `group/name`.
      x_train, y_train, x_test, y_test: names of the arrays. Without `x_test` in the file a part is
        held out. `y_train = "none"` is for data without classes.
      classes: names for the labels 0, 1, ...; empty for the distinct labels in order.
      test_fraction: how large that part is; 0 for none.
      seed: of that part.
      columns: further arrays that a task reads, by the names of their columns.

    Raises:
      ValueError: a value out of range.
      DataError: the file or an array cannot be read, or arrays do not fit together.
    """

    path: str
    x_train: str = "x_train"
    y_train: str = "y_train"
    x_test: str = "x_test"
    y_test: str = "y_test"
    classes: tuple[str, ...] = ()
    test_fraction: float = 0.2
    seed: int = 1
    columns: tuple[str, ...] = unwritten(())

    def __post_init__(self) -> None:
        check_fraction(self.test_fraction)
        if taken := {"x", "image", "label"} & set(self.columns):
            raise ValueError(
                f"columns are further arrays, and {', '.join(sorted(taken))} has a key of its own"
            )

    def load(self) -> Examples:
        path = locate(self.path)
        if path is None:
            raise DataError(f"there is no file {self.path!r} here or in $FEDPEFT_DATA")
        every = read_arrays(path)
        names = ["train", "test"] if self.x_test in every else ["train"]
        sides = [self._inputs_of(side, every, path) for side in names]
        classes: tuple[str, ...] = ()
        if self.y_train != NONE:
            labels, classes = self._labels(names, every, path)
            sides = [{**one, "label": ids} for one, ids in zip(sides, labels, strict=True)]
        test = sides[1] if len(sides) == 2 else None
        label = NONE if self.y_train == NONE else LABEL
        return Memory(sides[0], test, classes, self.test_fraction, self.seed, label).load()

    def _inputs_of(self, side: str, every: Mapping[str, Any], path: Path) -> dict[str, Any]:
        """The inputs of one side, and the further columns."""
        key = self.x_train if side == "train" else self.x_test
        found = _inputs(_array(every, key, path), key, path)
        for name in self.columns:
            own = f"{name}_{side}"
            plain = own not in every and name in every and self.x_test not in every
            array = _array(every, name if plain else own, path)
            if array.dtype.kind in "US":
                found[name] = array.tolist()
            else:
                found[name] = _numbers_of(array, own, path, np.float64)  # times stay apart
        return found

    def _labels(
        self, sides: Sequence[str], every: Mapping[str, Any], path: Path
    ) -> tuple[list[torch.Tensor], tuple[str, ...]]:
        """Class ids of each side, and the classes."""
        keys = {"train": self.y_train, "test": self.y_test}
        found = [_array(every, keys[side], path) for side in sides]
        plain = [x.reshape(-1) if x.shape[1:] in ((), (1,)) else x for x in found]
        return self._numbered(plain, path)

    def _numbered(
        self, labels: list[Any], path: Path
    ) -> tuple[list[torch.Tensor], tuple[str, ...]]:
        for label in labels:
            if label.ndim != 1 or label.dtype.kind not in "iubUS":
                raise DataError(
                    f"{path}: labels must be integers or text of shape (n,), got {label.dtype} "
                    f"{label.shape}"
                )
        if self.classes:
            if any(label.dtype.kind not in "iub" for label in labels):
                raise DataError(
                    f"{path}: data.classes gives names to the labels 0, 1, ..., but the labels are "
                    "text"
                )
            return [torch.from_numpy(label.astype(np.int64)) for label in labels], self.classes
        distinct = np.unique(np.concatenate(labels))
        ids = [torch.from_numpy(np.searchsorted(distinct, label)) for label in labels]
        return ids, tuple(
            value.decode() if isinstance(value, bytes) else str(value)
            for value in distinct.tolist()
        )


def _array(every: Mapping[str, Any], key: str, path: Path) -> Any:
    if key not in every:
        raise DataError(
            f"{path}: {unknown('array', key, every)} Set data.x_train, data.y_train and so on"
        )
    found = every[key]
    if not found.ndim:
        raise DataError(f"{path}: array {key!r} is a single value, and examples are its rows")
    return found


def _numbers_of(x: Any, name: str, path: Path, floats: Any = np.float32) -> torch.Tensor:
    """Numbers as they are, integers as int64.

    Args:
      floats: the type of floats.

    Raises:
      DataError: it holds something else.
    """
    if x.dtype.kind not in "iufb":
        raise DataError(f"{path}: array {name!r} holds {x.dtype}, which is no number")
    return torch.from_numpy(x.astype(floats if x.dtype.kind == "f" else np.int64))


def _inputs(x: Any, name: str, path: Path) -> dict[str, torch.Tensor]:
    if x.dtype != np.uint8 or x.ndim < 3:
        return {"x": _numbers_of(x, name, path)}
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[1] not in CHANNELS and x.shape[3] in CHANNELS:
        x = x.transpose(0, 3, 1, 2)
    if x.ndim != 4 or x.shape[1] not in CHANNELS:
        raise DataError(
            f"{path}: array {name!r} has the shape {x.shape}; pictures are (n, h, w) or have 1, 3, "
            "4 channels"
        )
    return {"image": torch.from_numpy(np.ascontiguousarray(x))}
