"""Which slices of medical files become examples, and which files are left out."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from logging import getLogger
from typing import Any

from fedpeft.core.types import Table
from fedpeft.data.fitting import choose_rows
from fedpeft.data.pictures import Pictures
from fedpeft.data.volumes import (
    EVERY,
    MIDDLE,
    Slice,
    UnreadableVolume,
    Volume,
    choose_slice,
    open_volume,
    volume_format,
)
from fedpeft.errors import PlanError, say_count


def check_slices_apart(chosen: Slice, plan: Any) -> None:
    """Raises PlanError where slices of one file could be trained on and held out."""
    if chosen != EVERY:
        return
    if getattr(plan.partition, "held_out", None):
        raise PlanError(
            f'partition.held_out draws examples at random, and with data.slice = "{EVERY}" slices '
            "of one file would be on both sides: leave it out, and hold out files with "
            "data.test_fraction or a folder `test`"
        )
    if plan.sets_apart:
        raise PlanError(
            f'an algorithm sets examples apart at random, and with data.slice = "{EVERY}" slices '
            "of one file would be on both sides: leave it out"
        )


def find_unfit(pictures: Pictures, where: Any) -> Mapping[str, list[int]]:
    """By reason the places of medical files of which no picture can be made; the log names the
    first of each reason, and says which slice is taken of files that have several.

    Their headers are read, and their pixels not decoded.

    Raises:
      PlanError: a library is missing.
    """
    found: dict[str, list[int]] = {}
    several = files = 0
    for at, name in _volumes(pictures):
        files += 1
        try:
            volume = _open_at(pictures, at, name)
            choose_slice(pictures.slice, volume.count)
            several += volume.count > 1
        except UnreadableVolume as error:
            found.setdefault(str(error), []).append(at)
    log = getLogger("fedpeft").warning
    for why, places in found.items():
        log("%s: left out: %s, first %s", where, say_count(len(places), why),
            _name_of(pictures.items[pictures.index[places[0]]]))  # fmt: skip
    if several:
        log("%s: %s of %s medical files have several slices: %s (data.slice)",
            where, f"{several:,}", f"{files:,}", _taken(pictures.slice))  # fmt: skip
    return found


def leave_out_unfit_volumes(table: Table, where: Any, left_out: Counter[str]) -> Table:
    """A table without the rows of such files, which are counted."""
    pictures = table.columns.get("image")
    if not isinstance(pictures, Pictures):
        return table
    found = find_unfit(pictures, where)
    left_out.update({why: len(places) for why, places in found.items()})
    gone = {at for places in found.values() for at in places}
    kept = [row for row in range(len(table)) if row not in gone]
    return choose_rows(table, kept) if gone else table


def spread_slices(table: Table) -> Table:
    """A table with a row for each slice of a file, in their order, where all are wanted."""
    pictures = table.columns.get("image")
    if not isinstance(pictures, Pictures) or pictures.slice != EVERY:
        return table
    counts = {at: _open_at(pictures, at, name).count for at, name in _volumes(pictures)}
    rows, items = [], []
    for row in range(len(pictures)):
        item = pictures.items[pictures.index[row]]
        plain = item.as_py() if hasattr(item, "as_py") else item
        held = plain if isinstance(plain, Mapping) else {"path": plain}
        for at in range(counts.get(row, 1)):
            rows.append(row)
            items.append({**held, "slice": at} if row in counts else plain)
    spread = choose_rows(table, rows)
    image = replace(pictures, items=items, index=range(len(items)))
    return Table({**spread.columns, "image": image})


def _volumes(pictures: Pictures) -> Iterator[tuple[int, str]]:
    """The places of medical files by their names, and these. What lies in a table without a name is
    known when it is decoded: to look at it here would read all pictures of the table."""
    for at, place in enumerate(pictures.index):
        name = _name_of(pictures.items[place])
        if volume_format(name):
            yield at, name


def _open_at(pictures: Pictures, at: int, name: str) -> Volume:
    return open_volume(volume_format(name), pictures.source_of(at))


def _name_of(item: Any) -> str:
    """The name of an item's file; "" of one without."""
    held: Any = item.get("path") if isinstance(item, Mapping) else item
    plain = held.as_py() if hasattr(held, "as_py") else held
    return "" if plain is None or isinstance(plain, bytes) else str(plain)


def _taken(chosen: Slice) -> str:
    """Which slices are taken, in words."""
    if chosen == EVERY:
        return "each slice is an example"
    return "the middle one is taken" if chosen == MIDDLE else f"slice {chosen} is taken"
