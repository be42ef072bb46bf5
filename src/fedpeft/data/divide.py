"""The examples that each client trains on, and those of its own that it is measured on.

A client's own held-out examples are a share set apart from what the partition gave it
(`partition.held_out`), and those of the common held-out ones that a partition calls the client's:
natural clients know theirs by the column that names them.
"""

from collections.abc import Callable, Mapping
from logging import getLogger
from typing import Any

import torch
from torch import Tensor

from fedpeft.core.interfaces import Partition
from fedpeft.core.seeds import generator
from fedpeft.core.types import ClientId, Division, Examples
from fedpeft.data.report import check_division, labels_of

FEWEST = 3
"""With fewer examples a client trains on all of them."""


def divide(partition: Partition, examples: Examples, seed: int) -> Division:
    """Cut the training examples into clients, and find the held-out examples of each.

    Notes `own_held_out`, how many examples all clients hold out or call theirs, and
    `clients_without_own`, where the partition asks for such examples or knows some.

    Raises:
      DataError: no training can be done on the parts.
    """
    whole = partition.split(examples.train, generator(seed, "partition"))
    check_division(whole, examples.train, examples.classes)
    share: float | None = getattr(partition, "held_out", None)
    find_own: Callable[..., dict[ClientId, Tensor]] | None = getattr(partition, "find_own", None)
    tested = find_own(examples.test, list(whole.parts)) if find_own else {}
    parts, apart = hold_out_own(whole.parts, labels_of(examples.train), share or 0.0, seed)
    notes = {**whole.notes, **{f"left out: {why}": n for why, n in examples.left_out.items()}}
    if share or tested:
        have = {*apart, *tested}
        notes["own_held_out"] = sum(map(len, [*apart.values(), *tested.values()]))
        notes["clients_without_own"] = len(parts) - len(have)
    return Division(parts, notes, apart, tested)


def divide_one(client: ClientId, examples: Examples, share: float, seed: int) -> Division:
    """The examples of an owner that is alone with them: it is measured on those that lie there as a
    test split, or where there are none on a share set apart."""
    train, test = (torch.arange(len(side)) for side in (examples.train, examples.test))
    if len(test) or not share:
        return Division({client: train}, tested={client: test})
    parts, apart = hold_out_own({client: train}, labels_of(examples.train), share, seed)
    getLogger("fedpeft").warning(
        "%s of %s examples are held out, to be measured on: partition.held_out = %g",
        f"{sum(map(len, apart.values())):,}",
        f"{len(train):,}",
        share,
    )
    return Division(parts, apart=apart)


def hold_out_own(
    parts: Mapping[ClientId, Tensor], labels: Tensor | None, share: float, seed: int
) -> tuple[Mapping[ClientId, Tensor], dict[ClientId, Tensor]]:
    """What each client trains on, and what it holds out: max(1, ⌊share·n⌋) of its n examples.

    A client keeps its only example of a class, and holds out fewer if need be. One with fewer than
    `FEWEST` examples holds out none. Each client has a random stream of its own, so that its
    examples do not depend on the other clients.
    """
    if not share:
        return parts, {}
    kept: dict[ClientId, Tensor] = {}
    apart: dict[ClientId, Tensor] = {}
    for client, part in parts.items():
        order = torch.randperm(len(part), generator=generator(seed, "own held out", client))
        # without labels all examples are of one class
        own = torch.zeros(len(part), dtype=torch.int64) if labels is None else labels[part]
        out = _choose(order, own, share)
        kept[client] = part[~out]
        if out.any():
            apart[client] = part[out]
    return kept, apart


def _choose(order: Tensor, labels: Tensor, share: float) -> Tensor:
    """Which of a client's examples it holds out, bool (n,); `order` is the random order (n,)."""
    out = torch.zeros(len(order), dtype=torch.bool)
    if len(order) < FEWEST:
        return out
    wanted = max(1, int(share * len(order) + 1e-9))  # 0.29 * 100 is 28.999...
    left: dict[Any, int] = {}
    for label in labels.tolist():
        left[label] = left.get(label, 0) + 1
    for place in order.tolist():
        label = labels[place].item()
        if wanted and left[label] > 1:
            out[place] = True
            left[label] -= 1
            wanted -= 1
    return out
