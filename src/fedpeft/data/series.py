"""Time series: columns of a table as windows of a past and a future."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from logging import getLogger
from typing import Any

import torch
from torch import Tensor

from fedpeft.core.numbers import read_numbers
from fedpeft.core.types import Examples, Table
from fedpeft.data.dataset_columns import PLAIN, Rows
from fedpeft.data.reading import CsvForm, read_splits
from fedpeft.data.splits import check_fraction
from fedpeft.data.time_steps import Times, find_gaps, holds_numbers, read_times
from fedpeft.errors import DataError, PlanError, say_count, unknown

TIMES = ("time", "date", "datetime", "timestamp", "ds")
"""What columns of times are usually called, the likelier names first."""
PERIODS = ("", "month")
REMEDY = "name other columns in data.columns, or write it as 3.5, or as NA where nobody measured"


@dataclass(frozen=True)
class Course:
    """One series of one client.

    Attributes:
      values: (steps,) by rising time, standardised, float32; not a number where one is missing.
      gaps: (steps,) whether a gap lies before a step.
      cut: the number of steps of its training part.
    """

    client: str
    channel: str
    values: Tensor
    gaps: Tensor
    cut: int


@dataclass(frozen=True)
class Series:
    """Windows over the series of a CSV, parquet or other table. Gives `past` (n, context), `future`
    (n, horizon), both float32, `client` and `channel`.

    A series is one column of one client. The last part of its time is held out: the futures of
    held-out windows lie in it wholly, and their pasts may reach back before it. Training windows
    lie wholly before it. Each series is standardised by the mean and the standard deviation of its
    own training part. No window has a missing value or goes over a gap in time; what that leaves
    out is counted.

    Attributes:
      path: a file, a folder, or a dataset of the hub. All its splits must be one.
      time: the column of times; empty for the usual names.
      columns: the measured values; empty for all columns of numbers.
      client: the column that names the clients; empty for one client a column.
      period: "month" makes a client of each month of each of these; empty for none.
      context, horizon: the steps of past and future.
      stride: a training window begins every so many steps; held-out ones begin at each.
      test_fraction: the share of each series that is held out; 0 for none.
      separator, encoding: of CSV files; left out: what is found in them.

    Raises:
      ValueError: a value out of range.
      DataError: the data cannot be read, or no window is left.
    """

    path: str
    time: str = ""
    columns: tuple[str, ...] = ()
    client: str = ""
    period: str = ""
    context: int = 96
    horizon: int = 24
    stride: int = 1
    test_fraction: float = 0.2
    separator: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        check_fraction(self.test_fraction)
        if self.period not in PERIODS:
            raise ValueError(f'period is "month" or left out, got {self.period!r}')
        if min(self.context, self.horizon, self.stride) < 1:
            raise ValueError(
                "context, horizon and stride are numbers of steps, at least 1, got "
                f"{self.context}, {self.horizon}, {self.stride}"
            )

    def check_plan(self, plan: Any) -> None:
        """Raises PlanError where examples would be held out at random: windows overlap, so that
        those held out would be among those trained on."""
        if getattr(plan.partition, "held_out", None):
            raise PlanError(
                "partition.held_out draws windows at random, and they overlap those trained on: "
                "leave it out; data.test_fraction holds out the end of each client's series"
            )
        if plan.sets_apart:
            raise PlanError(
                "an algorithm sets examples apart at random, and windows of series overlap those "
                "trained on: leave it out"
            )

    def load(self) -> Examples:
        splits, folder = read_splits(self.path, form=CsvForm(self.separator, self.encoding))
        if len(splits) != 1:
            raise DataError(
                f"{self.path} has the splits {', '.join(splits)}: series are divided by time, so "
                "name one file"
            )
        rows = Rows(next(iter(splits.values())), folder, self.path)
        left_out: Counter[str] = Counter()
        found = [(one, *self._starts(one, left_out)) for one in self._courses(rows, left_out)]
        kept = [(one, train, test) for one, train, test in found if len(train)]
        self._tell_short([one for one, train, _ in found if not len(train)], left_out)
        if not kept:
            raise DataError(
                f"{self.path}: no series has {self.context} + {self.horizon} steps without a gap "
                "and a missing value in its training part: lower data.context or data.horizon"
                f"{_told(left_out)}"
            )
        if told := _told(left_out):
            getLogger("fedpeft").warning("%s%s", self.path, told)
        trained = self._table([(one, train) for one, train, _ in kept])
        tested = self._table([(one, test) for one, _, test in kept if len(test)])
        return Examples(trained, tested, (), {why: n for why, n in left_out.items() if n})

    def _tell_short(self, short: Sequence[Course], left_out: Counter[str]) -> None:
        """A series that nobody trains on is not measured either."""
        left_out["series without a window to train on"] += len(short)
        if short:
            first = f"{short[0].channel} of {short[0].client}"
            getLogger("fedpeft").warning(
                "%s: %s series have no window of %s + %s steps to train on, first %s",
                self.path, len(short), self.context, self.horizon, first,
            )  # fmt: skip

    def _courses(self, rows: Rows, left_out: Counter[str]) -> Iterator[Course]:
        """The series, each in order of time."""
        time = rows.named("time", self.time, TIMES, [*PLAIN, "value"])
        if not time:
            raise DataError(
                f"{self.path} has no column of times: none of {', '.join(rows.columns)} is called "
                f"{', '.join(TIMES)}. Set data.time"
            )
        times = read_times(rows.values(time), f"{self.path}: column {time!r}")
        if self.period and not times.months:
            raise DataError(
                f"{self.path}: data.period needs dates, and column {time!r} holds numbers"
            )
        left_out["rows without a time"] += int(times.at.isnan().sum())
        owners = self._owners(rows)
        for name in self._columns(rows, time):
            numbers = read_numbers(rows.values(name), f"{self.path}: column {name!r}", REMEDY)
            for client, places in self._members(name, owners, times).items():
                yield self._course(client, name, numbers, times, places, left_out)

    def _owners(self, rows: Rows) -> list[Any]:
        """By row the client that the table names; empty where it names none."""
        if not self.client:
            return []
        if self.client not in rows.columns:
            raise DataError(
                f"{self.path}: data.client: " + unknown("column", self.client, rows.columns)
            )
        values = rows.values(self.client)
        if missing := sum(value is None for value in values):
            raise DataError(
                f"{self.path}: {missing} of {len(values)} rows have no client in column "
                f"{self.client!r}: name one in each row, or leave these rows out of the file"
            )
        return values

    def _columns(self, rows: Rows, time: str) -> Sequence[str]:
        """The columns of measured values."""
        for name in self.columns:
            if name not in rows.columns:
                raise DataError(
                    f"{self.path}: data.columns: " + unknown("column", name, rows.columns)
                )
        others = [name for name in rows.columns if name not in (time, self.client)]
        plain = [name for name in others if rows.kind(name) in PLAIN]
        found = self.columns or [name for name in plain if holds_numbers(rows.values(name))]
        if not found:
            raise DataError(
                f"{self.path}: none of the columns {', '.join(others)} holds numbers alone: set "
                "data.columns"
            )
        return found

    def _members(self, name: str, owners: Sequence[Any], times: Times) -> dict[str, list[int]]:
        """By client the rows that have a time."""
        members: dict[str, list[int]] = {}
        for row in (~times.at.isnan()).nonzero()[:, 0].tolist():
            client = str(owners[row]) if owners else name
            whole = f"{client}-{times.months[row]}" if self.period else client
            members.setdefault(whole, []).append(row)
        return members

    def _course(
        self,
        client: str,
        channel: str,
        numbers: Tensor,
        times: Times,
        places: Sequence[int],
        left_out: Counter[str],
    ) -> Course:
        rows = torch.tensor(places)
        rows = rows[times.at[rows].argsort(stable=True)]
        # of two rows of one time the first one counts, as in the hour that daylight saving repeats
        new = torch.ones(len(rows), dtype=torch.bool)
        new[1:] = times.at[rows].diff() > 0
        left_out["values of a time that was there before"] += int((~new).sum())
        rows = rows[new]
        values, at = numbers[rows], times.at[rows]
        left_out["missing values"] += int(values.isnan().sum())
        cut = len(values) - int(self.test_fraction * len(values) + 1e-9)  # 0.29 * 100 is 28.999...
        scaled = _standardise(values, cut, f"{self.path}: series {channel!r} of {client!r}")
        return Course(client, channel, scaled, find_gaps(at), cut)

    def _starts(self, course: Course, left_out: Counter[str]) -> tuple[Tensor, Tensor]:
        """Where training and held-out windows begin."""
        width = self.context + self.horizon
        none = torch.zeros(0, dtype=torch.int64)
        if len(course.values) < width:
            return none, none
        missing = course.values.isnan().unfold(0, width, 1).any(1)
        over_gap = course.gaps.unfold(0, width, 1)[:, 1:].any(1)
        left_out["windows with a missing value"] += int((missing & ~over_gap).sum())
        left_out["windows over a gap in time"] += int(over_gap.sum())
        start, whole = torch.arange(len(missing)), ~missing & ~over_gap
        train = whole & (start + width <= course.cut)
        test = whole & (start + self.context >= course.cut)
        left_out["windows whose future is trained on and held out"] += int(
            (whole & ~train & ~test).sum()
        )
        return (train & (start % self.stride == 0)).nonzero()[:, 0], test.nonzero()[:, 0]

    def _table(self, found: Sequence[tuple[Course, Tensor]]) -> Table:
        width = self.context + self.horizon
        # short series have no windows, and a held-out side may have none at all
        some = [_windows(one.values, starts, width) for one, starts in found]
        # of one series without gaps the windows stay views of its values
        rows = some[0] if len(some) == 1 else torch.cat([torch.zeros(0, width), *some])
        clients = [one.client for one, starts in found for _ in range(len(starts))]
        channels = [one.channel for one, starts in found for _ in range(len(starts))]
        past, future = rows[:, : self.context], rows[:, self.context :]
        return Table({"past": past, "future": future, "client": clients, "channel": channels})


def _standardise(values: Tensor, cut: int, name: str) -> Tensor:
    """(x − mean) / std of the training part, std = √(Σ(x − mean)² / n), in float32."""
    known = values[:cut][~values[:cut].isnan()]
    if not len(known):
        return torch.full_like(values, float("nan"), dtype=torch.float32)
    std = known.std(correction=0)
    # a mean of equal numbers may be off by rounding, and that is no spread
    if float(std) <= 1e-9 * float(known.abs().max()):
        getLogger("fedpeft").warning("%s is constant where it is trained on", name)
        std = torch.ones_like(std)
    return ((values - known.mean()) / std).float()


def _windows(values: Tensor, starts: Tensor, width: int) -> Tensor:
    """The windows (n, width) that begin there; a view where they follow each other."""
    every = values.unfold(0, width, 1)
    first, last = int(starts[0]), int(starts[-1])
    return every[first : last + 1] if last - first + 1 == len(starts) else every[starts]


def _told(left_out: Counter[str]) -> str:
    told = [say_count(n, why) for why, n in left_out.items() if n]
    return f"; left out: {', '.join(told)}" if told else ""
