"""Tables: parquet, arrow, JSON-lines and CSV files, folders of them, and datasets of the hub."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from logging import getLogger
from typing import Any

import torch
from torch import Tensor

from fedpeft.core.types import Examples, Table
from fedpeft.data.dataset_columns import LISTS, PLAIN, Rows, tell_mixed
from fedpeft.data.depth import Window, check_window
from fedpeft.data.pictures import Pictures, pair_tables
from fedpeft.data.reading import CsvForm, read_splits
from fedpeft.data.slices import check_slices_apart, leave_out_unfit_volumes, spread_slices
from fedpeft.data.splits import check_fraction, check_subset, hold_out, some
from fedpeft.data.volumes import MIDDLE, Slice, check_slice
from fedpeft.errors import DataError, unknown
from fedpeft.registry import unwritten

IMAGE = ("image", "img", "picture", "photo")
TEXT = ("text", "sentence", "utterance", "question", "content", "review")
LABEL = ("label", "labels", "fine_label", "intent", "category", "class", "target", "answer")
"""What columns are usually called, the likelier names first."""
PICTURES = ("image", "binary", "string", "struct", "dict")
"""Kinds of columns that pictures may be read from."""
NONE = "none"
MANY = 20
"""With so many examples, labels that are mostly different look like numbers of examples."""
MISSING = ("na", "n/a", "nan", "null", "none", "?", "-")
"""Labels that mostly stand for a missing value."""

_CONDITION = re.compile(r"\s*([^\s!=]+)\s*(!=|==?)\s*(.*?)\s*")
_AND = re.compile(r"\s+and\s+(?=[^\s!=]+\s*!?=)")


@dataclass(frozen=True)
class HubTable:
    """Rows of pictures, text or recordings. Gives `image`, `text`, `audio` and `label`; every other
    plain column keeps its name and values.

    Attributes:
      path: a file, a folder whose files are called train, validation and test, or a dataset of the
        hub.
      config: which configuration of a hub dataset, e.g. "sst2" of "nyu-mll/glue".
      image, text, label: the columns' names; empty for the usual ones. label = "none" is for data
        without labels, such as texts that a language model learns from.
      mask: the column of pictures whose pixels number classes, for segmentation; empty for "mask"
        where that is a column of pictures by its type.
      where: which rows, as `column = value` or `column != value`, joined by ` and `; '' stands for
        a missing value.
      subset: at most so many training examples, drawn once, whatever the partition; 0 for all.
      test_split: the split held out; empty for "test", or else "validation", or else a part of the
        training data.
      test_fraction: how large that part is; 0 for none.
      seed: of the subset and of that part.
      separator, encoding: of CSV files; left out: what is found in them, which the log says where
        it is not a comma and UTF-8.
      window: which values of pictures with more than 8 bits become black and white; see `Images`.
      slice: which slices of medical files, which are known by their paths; see `Images`.
      audio: the column of recordings, for speech; empty for one of that type, or for "audio" where
        that has paths of recordings.

    Raises:
      ValueError: a value out of range, or a condition that is none.
      DataError: the data cannot be read, has no labels, or nothing is left of it.
    """

    path: str
    config: str = ""
    image: str = ""
    text: str = ""
    label: str = ""
    where: str = ""
    subset: int = 0
    test_split: str = ""
    test_fraction: float = 0.2
    seed: int = 1
    separator: str | None = None
    encoding: str | None = None
    window: Window = None
    mask: str = unwritten("")
    slice: Slice = unwritten(MIDDLE)
    audio: str = unwritten("")

    def __post_init__(self) -> None:
        check_window(self.window)
        check_slice(self.slice)
        if self.separator is not None and len(self.separator) != 1:
            raise ValueError(f"separator is one character, got {self.separator!r}")
        check_fraction(self.test_fraction)
        check_subset(self.subset, "examples")
        self._conditions()

    def check_plan(self, plan: Any) -> None:
        """Raises PlanError where slices of one file could be trained on and held out."""
        check_slices_apart(self.slice, plan)

    def load(self) -> Examples:
        form = CsvForm(self.separator, self.encoding)
        splits, folder = read_splits(self.path, self.config, form)
        found = {name: Rows(dataset, folder, self.path) for name, dataset in splits.items()}
        tell_mixed(found.values())
        train = self._train(found)
        names = self._names(train)
        test = self._test(found, train, names["label"])
        sides = [train] if test is None else [train, test]
        rows = [self._chosen(side) for side in sides]
        ids, classes = self._ids(sides, rows, names["label"])
        if test is None:
            halves = hold_out(ids[0], self.test_fraction, self.seed)
            sides, rows, ids = (
                [train, train],
                [rows[0][half] for half in halves],
                [ids[0][half] for half in halves],
            )
        kept = some(torch.arange(len(ids[0])), self.subset, self.seed)
        rows, ids = [rows[0][kept], rows[1]], [ids[0][kept], ids[1]]
        tables = [
            side.table(names, index, label if classes else None)
            for side, index, label in zip(sides, rows, ids, strict=True)
        ]
        if names["label"]:
            _tell(self.path, names["label"], ids[0], classes)
        return self._examples(tables[0], tables[1], classes)

    def _examples(self, train: Table, test: Table, classes: tuple[str, ...]) -> Examples:
        left_out = Counter[str]()
        first, second = (self._of_slices(side, left_out) for side in (train, test))
        return Examples(*pair_tables(first, second, self.window), classes, dict(left_out))

    def _of_slices(self, table: Table, left_out: Counter[str]) -> Table:
        """One side, with the wanted slices of medical files as its pictures."""
        pictures = table.columns.get("image")
        if not isinstance(pictures, Pictures):
            return table
        chosen = replace(pictures, slice=self.slice)
        fit = leave_out_unfit_volumes(
            Table({**table.columns, "image": chosen}), self.path, left_out
        )
        return spread_slices(fit)

    def _ids(
        self, sides: Sequence[Rows], rows: Sequence[Tensor], label: str
    ) -> tuple[list[Tensor], tuple[str, ...]]:
        """Class ids of each side, and the classes; without labels zeros, and no classes."""
        if not label:
            return [torch.zeros(len(index), dtype=torch.int64) for index in rows], ()
        labels = [_labels(side, label, index) for side, index in zip(sides, rows, strict=True)]
        return _number_labels(labels, sides[0].class_names(label), drop=bool(self._conditions()))

    def _train(self, found: Mapping[str, Rows]) -> Rows:
        if "train" in found:
            return found["train"]
        if len(found) == 1:
            return next(iter(found.values()))
        raise DataError(f"{self.path} has no split called train among {', '.join(found)}")

    def _test(self, found: Mapping[str, Rows], train: Rows, label: str) -> Rows | None:
        """The split held out; those whose labels are hidden, as benchmarks have them, are passed
        over."""
        if self.test_split:
            if self.test_split not in found:
                raise DataError(f"{self.path}: " + unknown("split", self.test_split, found))
            if found[self.test_split] is train:
                raise DataError(
                    f"{self.path}: data.test_split = {self.test_split!r} is what is trained on"
                )
            return found[self.test_split]
        for rows in (found[name] for name in ("test", "validation") if name in found):
            if rows is train:
                continue
            if not label or (
                label in rows.columns and any(v is not None for v in rows.values(label))
            ):
                return rows
        return None

    def _names(self, rows: Rows) -> dict[str, str]:
        """The columns that are the picture, the text and the label."""
        mask, audio = self._mask(rows), rows.sound(self.audio)
        declared = _declared(rows, mask)
        names = {
            "image": rows.named(
                "image",
                self.image,
                [*(n for n in IMAGE if n in declared), *declared, *IMAGE],
                # a column of lists is one of pictures where the plan says so
                (*PICTURES, *LISTS) if self.image else PICTURES,
            ),
            "mask": mask,
            "audio": audio,
            "text": rows.named("text", self.text, TEXT, ["string"]),
            "label": "" if self.label == NONE else rows.named("label", self.label, LABEL, PLAIN),
        }
        if self.label == NONE:
            return names
        columns = ", ".join(rows.columns)
        if not names["label"]:
            raise DataError(
                f"{self.path} has no labels: none of its columns ({columns}) is called "
                f"{', '.join(LABEL)}. "
                'Set data.label to the column to be learned, or to "none" where the task needs no '
                "labels"
            )
        if not (names["image"] or names["text"] or self.label):
            raise DataError(
                f"{self.path}: set data.image or data.text to one of the columns {columns}"
            )
        return names

    def _mask(self, rows: Rows) -> str:
        """The column of masks, or ""."""
        if self.mask:
            return rows.named("mask", self.mask, (), PICTURES)
        # a column of texts may be called so too: it is one of paths where the plan names it
        return "" if self.image == "mask" else rows.named("mask", "", ["mask"], ["image"])

    def _conditions(self) -> list[tuple[str, bool, str]]:
        """Column, whether it must equal, and the value."""
        conditions = []
        for text in _AND.split(self.where) if self.where.strip() else []:
            match = _CONDITION.fullmatch(text)
            if match is None:
                raise ValueError(
                    f"where = {self.where!r}: {text!r} is not of the form column = value, column "
                    "!= value"
                )
            column, operator, value = match.groups()
            conditions.append((column, operator != "!=", value.strip("'\"")))
        return conditions

    def _chosen(self, rows: Rows) -> Tensor:
        keep = torch.ones(len(rows), dtype=torch.bool)
        for column, equal, wanted in self._conditions():
            if column not in rows.columns:
                raise DataError(
                    f"{self.path}: data.where: " + unknown("column", column, rows.columns)
                )
            values = ["" if value is None else str(value) for value in rows.values(column)]
            keep &= torch.tensor([(value == wanted) == equal for value in values], dtype=torch.bool)
            if not keep.any():
                seen = ", ".join(sorted(set(values))[:20])
                raise DataError(
                    f"data.where = {self.where!r} leaves nothing of {self.path}; {column} is any "
                    f"of: {seen}"
                )
        return keep.nonzero()[:, 0]


def _declared(rows: Rows, mask: str) -> list[str]:
    """The columns of pictures by their type, but for that of masks."""
    return [name for name in rows.columns if name != mask and rows.kind(name) == "image"]


def _tell(path: str, column: str, label: Tensor, classes: Sequence[str]) -> None:
    """Say what looks wrong with the labels that are trained on."""
    log, count = getLogger("fedpeft").warning, len(torch.unique(label))
    if count == 1:
        log("%s: all examples have one label, so that there is nothing to tell apart", path)
    if len(label) >= MANY and count > len(label) / 2:
        log(
            "%s: the column %r has %s labels in %s examples, which looks like numbers of examples "
            "rather than classes: set data.label",
            path, column, f"{count:,}", f"{len(label):,}",
        )  # fmt: skip
    missing = [name for name in classes if name.strip().lower() in MISSING]
    if missing:
        log(
            "%s: labels of the column %r that mostly stand for a missing value: %s. To leave such "
            'examples out, set data.where = "%s"',
            path, column, ", ".join(map(repr, missing)),
            " and ".join(f"{column} != {name}" for name in missing),
        )  # fmt: skip
    _tell_alike(path, column, classes)


def _tell_alike(path: str, column: str, classes: Sequence[str]) -> None:
    """Name labels that a person would read as one."""
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(" ".join(name.split()).casefold(), []).append(name)
    if same := [names for names in alike.values() if len(names) > 1]:
        getLogger("fedpeft").warning(
            "%s: labels of the column %r that differ only in blanks or in case, and count as "
            "different classes: %s. Write each class in one way where they should be one",
            path, column, "; ".join(", ".join(map(repr, names)) for names in same[:MANY]),
        )  # fmt: skip


def _labels(rows: Rows, column: str, index: Tensor) -> list[str | int]:
    """The labels as plain values.

    Raises:
      DataError: some are missing, or they are no classes.
    """
    if column not in rows.columns:
        raise DataError(
            f"{rows.path}: the held-out examples have no labels: "
            + unknown("column", column, rows.columns)
        )
    values = rows.values(column)
    chosen = [values[place] for place in index.tolist()]
    if missing := sum(value is None for value in chosen):
        many = "all" if missing == len(chosen) else str(missing)
        raise DataError(
            f"{many} of {len(chosen)} examples of {rows.path} have no label in column {column!r}: "
            "set data.label to another column, or "
            f"leave them out with data.where = \"{column} != ''\""
        )
    for value in chosen:
        if not isinstance(value, str | int) and not (
            isinstance(value, float) and value.is_integer()
        ):
            raise DataError(
                f"{rows.path}: the column {column!r} holds {value!r}, which is no class; set "
                'data.label to another column, or to "none" where the task reads this one itself'
            )
    # a column of integers with a gap arrives as 1.0, 2.0
    return [int(value) if isinstance(value, float) else value for value in chosen]


def _number_labels(
    labels: Sequence[Sequence[str | int]], declared: Sequence[str], drop: bool
) -> tuple[list[Tensor], tuple[str, ...]]:
    """Class ids, and the classes: those declared, less the absent ones if `drop`, or the distinct
    values in order."""
    values: list[list[Any]] = [list(side) for side in labels]
    if any(isinstance(value, str) for side in values for value in side):
        values = [[str(value) for value in side] for side in values]
    seen = {value for side in values for value in side}
    classes = [name for name in declared if name in seen or not drop] if declared else sorted(seen)
    if unheard := sorted(map(str, seen.difference(classes))):
        raise DataError(
            "the held-out examples have classes that the training data do not declare: "
            f"{unheard[:5]}"
        )
    number = {value: k for k, value in enumerate(classes)}
    return [torch.tensor([number[value] for value in side]) for side in values], tuple(
        map(str, classes)
    )
