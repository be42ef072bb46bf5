"""Natural clients: one for each value of a column, such as the speaker, the hospital or the
domain."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedpeft.core.types import ClientId, Division, Table
from fedpeft.errors import DataError, unknown
from fedpeft.partitions.shares import check_share


@dataclass(frozen=True)
class Column:
    """Clients are called as the values of `column`. Notes `clients_left_out`, and
    `examples_left_out` with them.

    Attributes:
      column: of the training table; its values are the clients' names.
      min_per_client: a client with fewer examples is left out.
      clients: at most so many, drawn from those with enough examples; 0 for all.
      held_out: the share of its examples that each client holds out, to be measured on; left out:
        none.

    Raises:
      ValueError: a value out of range.
      DataError: there is no such column, an example has no value there, or no client has enough
        examples.
    """

    column: str
    min_per_client: int = 1
    clients: int = 0
    held_out: float | None = None

    def __post_init__(self) -> None:
        check_share(self.held_out)
        if self.min_per_client < 1 or self.clients < 0:
            raise ValueError(
                "min_per_client must be at least 1 and clients at least 0, got "
                f"{self.min_per_client}, {self.clients}"
            )

    def split(self, table: Table, generator: torch.Generator) -> Division:
        if self.column not in table.columns:
            raise DataError(unknown("column", self.column, table.columns))
        members: dict[str, list[int]] = {}
        for place, value in enumerate(_values(table.columns[self.column], self.column)):
            members.setdefault(value, []).append(place)
        chosen = sorted(
            name for name, places in members.items() if len(places) >= self.min_per_client
        )
        if not chosen:
            most = max(map(len, members.values()), default=0)
            raise DataError(
                f"no value of column {self.column!r} has {self.min_per_client} examples "
                f"(min_per_client); the commonest has {most}"
            )
        if self.clients and self.clients < len(chosen):
            kept = torch.randperm(len(chosen), generator=generator)[: self.clients].sort().values
            chosen = [chosen[k] for k in kept.tolist()]
        parts = {name: torch.tensor(members[name]) for name in chosen}
        left_out = sum(map(len, members.values())) - sum(map(len, parts.values()))
        return Division(
            parts, {"clients_left_out": len(members) - len(parts), "examples_left_out": left_out}
        )

    def find_own(self, test: Table, clients: Sequence[ClientId]) -> dict[ClientId, Tensor]:
        """By client the indices of the held-out examples that have its name in the column; of
        those clients that have some."""
        found: dict[ClientId, list[int]] = {}
        column = test.columns.get(self.column, ())
        values = column.tolist() if isinstance(column, Tensor) else column
        for place, value in enumerate(values):
            for name in _names(value):
                if name in clients:
                    found.setdefault(name, []).append(place)
                    break
        return {name: torch.tensor(found[name]) for name in clients if name in found}


def _names(value: Any) -> list[str]:
    """How a client of this value may be called: a column of whole numbers with a gap arrives as 1.0
    where one without arrives as 1."""
    whole = isinstance(value, int | float) and float(value).is_integer()
    return [str(value), *([str(int(value)), str(float(value))] if whole else [])]


def _values(values: Sequence[Any] | Tensor, column: str) -> list[str]:
    plain = values.tolist() if isinstance(values, Tensor) else list(values)
    if missing := sum(value is None for value in plain):
        raise DataError(
            f"{missing} of {len(plain)} training examples have no value in column {column!r}, "
            f"so no client: leave them out with data.where = \"{column} != ''\""
        )
    if any(not isinstance(value, str | int | float) for value in plain):
        raise DataError(f"the column {column!r} does not hold plain values that could name clients")
    return [str(value) for value in plain]
