"""The clients that attack in a simulation, and the data that they train on.

Experiments with robust aggregators need an adversary.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedpeft.core.interfaces import Attack
from fedpeft.core.seeds import generator
from fedpeft.core.types import ClientId, Tensors
from fedpeft.errors import PlanError


def choose_adversaries(attack: Attack, seed: int, clients: Sequence[ClientId]) -> list[ClientId]:
    """Its share of the clients; of a smaller share, some of those of a larger one."""
    order = torch.randperm(len(clients), generator=generator(seed, "attackers")).tolist()
    return [clients[k] for k in order[: round(attack.share * len(clients))]]


def poison_rows(
    attacks: Sequence[Attack],
    seed: int,
    rows: Tensors,
    parts: Mapping[ClientId, Tensor],
    classes: int,
) -> Tensors:
    """Training examples, with what the attackers hold as they want it.

    Raises:
      PlanError: an attack that these examples do not admit.
    """
    for attack in attacks:
        mine = torch.cat(
            [
                torch.zeros(0, dtype=torch.int64),
                *(parts[c] for c in choose_adversaries(attack, seed, list(parts))),
            ]
        )
        try:
            changed = attack.poison({name: x[mine] for name, x in rows.items()}, classes)
        except ValueError as error:
            raise PlanError(
                f"the attack {type(attack).__name__} cannot be made here: {error}"
            ) from None
        rows = {name: x.index_copy(0, mine, changed[name]) for name, x in rows.items()}
    return rows
