"""Every client is as likely as every other."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedpeft.core.types import ClientId


@dataclass(frozen=True)
class Uniform:
    """Draw `cohort` clients without replacement (McMahan et al., 2017, arXiv:1602.05629, Algorithm
    1)."""

    def choose(
        self, clients: Sequence[ClientId], cohort: int, generator: torch.Generator, round: int
    ) -> list[ClientId]:
        order = torch.randperm(len(clients), generator=generator).tolist()
        return [clients[i] for i in order[:cohort]]
