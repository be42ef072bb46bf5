"""A study: a base plan, axes along which it is changed, and seeds; every combination is a cell, and
a cell is a run.

base = "../plans/mine.toml"          # beside the study's file, or an inline table; left out, the
                                     # package's own plan
set = ["rounds=20"]                  # for every cell
seeds = [1, 42, 3407]

[[axis]]                             # grid: one key, many values
key = "partition.alpha"
values = [0.1, 1.0]

[[axis]]                             # zipped: several keys that change together
keys = ["partition.clients", "cohort"]
rows = [[16, 16], [64, 8]]

[[axis]]                             # listed: a method comes with its own learning rate
name = "method"
[[axis.point]]
label = "bias"
set = ["method=bias", "local.lr=0.01"]

[[row]]                              # beside the product of the axes, with the seeds alone
label = "centralised"
set = ["partition={ name = \\"iid\\", clients = 1 }", "cohort=1"]
"""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

from fedpeft.errors import PlanError, unknown
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import read_plan
from fedpeft.registry import construct
from fedpeft.storage.text_files import read_text

ROW = "row"
"""What stands for an axis in the labels of a cell beside the product."""


@dataclass(frozen=True)
class Point:
    """One value of an axis: what it is called and what it sets."""

    label: str
    set: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AxisTable:
    """An `[[axis]]` as it is written."""

    name: str = ""
    key: str = ""
    values: tuple[Any, ...] = ()
    keys: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    point: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if sum(map(bool, (self.key or self.values, self.keys or self.rows, self.point))) != 1:
            raise ValueError(
                "takes `key` and `values`, or `keys` and `rows`, or tables `[[axis.point]]`"
            )
        if bool(self.key) != bool(self.values) or bool(self.keys) != bool(self.rows):
            raise ValueError("has a key without values, or values without a key")
        if self.point and not self.name:
            raise ValueError("of points needs a `name`")
        if wrong := [row for row in self.rows if len(row) != len(self.keys)]:
            raise ValueError(
                f"has {len(self.keys)} keys, but a row {list(wrong[0])} of {len(wrong[0])} values"
            )


@dataclass(frozen=True, kw_only=True)
class StudyTable:
    """A study's file as it is written."""

    name: str = ""
    base: str | Mapping[str, Any] = ""
    set: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (1,)
    axis: tuple[Mapping[str, Any], ...] = ()
    row: tuple[Mapping[str, Any], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Axis:
    """Points that exclude each other.

    Attributes:
      key: of the plan, where the axis is one key's values.
    """

    name: str
    key: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
      name: of its folder: the labels and the seed.
      labels: by axis, which point; of what stands beside the product, {"row": label}.
      settings: `key=value` beside the study's own `set`.
    """

    name: str
    labels: Mapping[str, str]
    seed: int
    settings: tuple[str, ...]
    plan: Plan


@dataclass(frozen=True)
class Study:
    """All cells of a study, those of the first seed first.

    Attributes:
      keys: by plan key the axis that varies it, of grid axes.
    """

    name: str
    note: str
    axes: tuple[str, ...]
    keys: Mapping[str, str] = field(repr=False)
    cells: tuple[Cell, ...] = field(repr=False)


def read_study(path: Path) -> Study:
    """The study in a file, with the plan of every cell.

    Raises:
      PlanError: it cannot be read, an axis names no key of the plan, a value is out of range, or
        two cells are alike.
    """
    try:
        return _study(path)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from None


def _study(path: Path) -> Study:
    table: StudyTable = construct(StudyTable, _values(path), "the study", "study")
    axes = [_axis(k, values) for k, values in enumerate(table.axis)]
    names = tuple(axis.name for axis in axes)
    variants = list(_combine(axes))
    variants += [({ROW: one.label}, one.set) for one in _points(table.row, "row")]
    _check_variants(len(variants), table.seeds, names)
    base = _base(table.base, path)
    cells = [
        _cell(base, table.set, labels, settings, seed)
        for seed in table.seeds
        for labels, settings in variants
    ]
    _refuse_twins(cells)
    keys = {axis.key: axis.name for axis in axes if axis.key}
    return Study(table.name or path.stem, table.note.strip(), names, keys, tuple(cells))


def _check_variants(count: int, seeds: Sequence[int], names: Sequence[str]) -> None:
    if not count:
        raise PlanError("the study is empty: give it an [[axis]] or a [[row]]")
    if not seeds:
        raise PlanError("the study is empty: seeds = []")
    if repeated := _find_repeated([*names, ROW, "seed"]):
        raise PlanError(
            f"two axes are called {repeated!r}, or it is a name that every study has: set `name`"
        )


def _values(path: Path, what: str = "the study") -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path))
    except OSError as error:
        raise PlanError(f"{what} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{what} is no TOML: {error}") from None


def _base(base: str | Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """Plain values of the base plan.

    Raises:
      PlanError: they cannot be read, or are no plan even before anything is changed.
    """
    if isinstance(base, str):
        own = files("fedpeft") / "assets" / "plans" / "digits.toml"
        base = (
            _values(path.parent / base, f"the base plan {base}")
            if base
            else tomllib.loads(own.read_text(encoding="utf-8"))
        )
    read_plan(base)
    return base


def _axis(place: int, values: Mapping[str, Any]) -> Axis:
    what = f"axis {values.get('name') or values.get('key') or place + 1!r}"
    table: AxisTable = construct(AxisTable, values, what, what)
    keys = table.keys or (table.key,)
    name = table.name or "-".join(key.rpartition(".")[2] for key in keys)
    if table.point:
        return Axis(name, "", _points(table.point, what))
    rows = table.rows or tuple((value,) for value in table.values)
    return Axis(name, table.key, _distinct(tuple(_point(keys, row) for row in rows), what))


def _point(keys: Sequence[str], row: Sequence[Any]) -> Point:
    """A row of values, one for each key."""
    settings = (f"{key}={_toml(value)}" for key, value in zip(keys, row, strict=True))
    return Point(" ".join(map(_label, row)), tuple(settings))


def _points(tables: Sequence[Mapping[str, Any]], what: str) -> tuple[Point, ...]:
    return _distinct(tuple(construct(Point, one, what, what) for one in tables), what)


def _distinct(points: tuple[Point, ...], what: str) -> tuple[Point, ...]:
    if repeated := _find_repeated([point.label for point in points]):
        raise PlanError(f"{what}: two points are called {repeated!r}")
    return points


def _find_repeated(names: Sequence[str]) -> str | None:
    return next((name for k, name in enumerate(names) if name in names[:k]), None)


def _label(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(_label(x) for x in value.values())
    return str(value).lower() if isinstance(value, bool) else str(value)


def _toml(value: Any) -> str:
    """A value as TOML on one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml(key)} = {_toml(x)}" for key, x in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _combine(axes: Sequence[Axis]) -> Iterator[tuple[dict[str, str], tuple[str, ...]]]:
    """Labels and settings of every combination; later axes are set after earlier ones. Nothing
    without axes."""
    for points in product(*(axis.points for axis in axes)) if axes else ():
        labels = {axis.name: point.label for axis, point in zip(axes, points, strict=True)}
        yield labels, tuple(setting for point in points for setting in point.set)


def _cell(
    base: Mapping[str, Any],
    common: Sequence[str],
    labels: Mapping[str, str],
    settings: Sequence[str],
    seed: int,
) -> Cell:
    told = (label if label[:1].isalpha() else f"{axis} {label}" for axis, label in labels.items())
    words = re.sub(r"[^\w.]+", "-", " ".join(told)).strip("-.").lower()
    name = f"{words}-seed{seed}"
    try:
        plan = read_plan(base, [*common, *settings, f"seed={seed}"])
    except PlanError as error:
        raise PlanError(f"cell {name}: {error}") from None
    return Cell(name, labels, seed, tuple(settings), plan)


def _refuse_twins(cells: Sequence[Cell]) -> None:
    plans: dict[str, Cell] = {}
    names: dict[str, Cell] = {}
    for cell in cells:
        if twin := plans.get(cell.plan.fingerprint):
            raise PlanError(f"two cells alike: {twin.name} and {cell.name} are the same plan")
        if twin := names.get(cell.name):
            raise PlanError(
                f"{dict(twin.labels)} and {dict(cell.labels)} would both be called {cell.name}: "
                "change a label"
            )
        plans[cell.plan.fingerprint] = names[cell.name] = cell


def select_cells(study: Study, only: Sequence[str]) -> tuple[Cell, ...]:
    """The cells that fit every `key=value`: an axis by name or plan key, `row` or `seed`; of one
    key, any value.

    A value may have the wildcards of file names.

    Raises:
      PlanError: no such key, or nothing fits.
    """
    wanted: dict[str, list[str]] = {}
    for pair in only:
        key, equals, value = pair.partition("=")
        if not equals:
            raise PlanError(f"--only {pair!r} is not of the form KEY=VALUE, e.g. seed=1")
        known = (*study.axes, *study.keys, ROW, "seed")
        if key not in known:
            raise PlanError(f"--only {pair!r}: {unknown('axis', key, known)}")
        wanted.setdefault(study.keys.get(key, key), []).append(value)
    cells = tuple(
        cell for cell in study.cells if all(_fits(cell, key, any_) for key, any_ in wanted.items())
    )
    if not cells:
        there = {key: sorted({_value(cell, key) for cell in study.cells} - {""}) for key in wanted}
        raise PlanError(f"--only {' '.join(only)} leaves no cell; there are {there}")
    return cells


def _value(cell: Cell, key: str) -> str:
    return str(cell.seed) if key == "seed" else cell.labels.get(key, "")


def _fits(cell: Cell, key: str, values: Sequence[str]) -> bool:
    return any(fnmatchcase(_value(cell, key).lower(), value.lower()) for value in values)
