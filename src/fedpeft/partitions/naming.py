"""Names for clients that have none."""

import torch
from torch import Tensor

from fedpeft.core.types import ClientId


def client_names(count: int) -> list[ClientId]:
    """c000, c001, ...: as wide as needed, so that the order of names is the order of numbers."""
    width = max(3, len(str(count - 1)))
    return [f"c{k:0{width}d}" for k in range(count)]


def by_owner(owner: Tensor, clients: int) -> dict[ClientId, Tensor]:
    """The indices of each client's examples, ascending, from the number of each example's owner
    (n,)."""
    order = owner.sort(stable=True).indices
    sizes: list[int] = torch.bincount(owner, minlength=clients).tolist()
    return dict(zip(client_names(clients), torch.split(order, sizes), strict=True))
