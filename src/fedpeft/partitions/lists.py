"""A partition that is written down: the examples of each client, by number."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedpeft.core.types import ClientId, Division, Table
from fedpeft.errors import DataError
from fedpeft.partitions.shares import check_share
from fedpeft.storage.locate import locate
from fedpeft.storage.text_files import read_text


@dataclass(frozen=True)
class Lists:
    """Numbers of training examples, from 0, by client; examples may be left over.

    Attributes:
      clients: the lists themselves; or
      file: a JSON file that holds them, as `{"north": [0, 2, 5], "south": [1, 3]}`.
      held_out: the share of its examples that each client holds out, to be measured on; left out:
        none.

    Raises:
      ValueError: neither or both of the two are given.
      DataError: the file cannot be read, or an example is named twice, or is none of the data.
    """

    clients: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    file: str = ""
    held_out: float | None = None

    def __post_init__(self) -> None:
        check_share(self.held_out)
        if bool(self.clients) == bool(self.file):
            raise ValueError(
                "give either `clients`, the lists themselves, or `file`, a JSON file with them"
            )

    def split(self, table: Table, generator: torch.Generator) -> Division:
        lists = _read(self.file) if self.file else self.clients
        n = len(table)
        owner: dict[int, ClientId] = {}
        for client, places in lists.items():
            for place in places:
                if not 0 <= place < n:
                    raise DataError(
                        f"client {client!r} lists example {place}; there are {n}, counted from 0"
                    )
                if place in owner:
                    raise DataError(
                        f"example {place} is listed twice, for {owner[place]!r} and for {client!r}"
                    )
                owner[place] = client
        return Division({client: _index(lists[client]) for client in sorted(lists)})


def _index(places: Any) -> Tensor:
    return torch.tensor(sorted(places), dtype=torch.int64)


def _read(file: str) -> Mapping[str, list[int]]:
    path = locate(file)
    if path is None:
        raise DataError(f"there is no file {file!r} here or in $FEDPEFT_DATA")
    try:
        lists = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(lists, dict) or not all(
        isinstance(places, list) and all(type(place) is int for place in places)
        for places in lists.values()
    ):
        raise DataError(
            f'{path} must map names of clients to lists of numbers, as {{"north": [0, 2]}}'
        )
    return lists
