"""Examples on which descent moves a model as it moved elsewhere: trajectories are matched
(Cazenavette et al., 2022, arXiv:2203.11932) by single ways, as Fed-TREND does (Yuan et al., 2024,
arXiv:2411.15716)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fedpeft.core.types import Batch, Tensors

Losses: TypeAlias = Callable[[Tensors, Batch], Tensor]
"""The losses (batch,) of a model, by its tensors."""
MASK = "mask"


@dataclass(frozen=True)
class Leg:
    """A way that a model went.

    Attributes:
      end: its tensors, of which those in `counts` are compared.
      counts: by name 1 for entries whose way is looked at, and else 0.
    """

    start: Tensors
    end: Tensors
    counts: Tensors

    def distance(self, reached: Tensors) -> Tensor:
        """Σ counts·(end − reached)², ()."""
        parts = [((self.end[n] - reached[n]).square() * m).sum() for n, m in self.counts.items()]
        return torch.stack(parts).sum()


@dataclass(frozen=True)
class Matching:
    """How examples are fitted.

    Attributes:
      steps, lr: of Adam, which moves the examples.
      rate: of the plain descent on them, which moves the model.
      inner_steps: of that descent, each on all examples.
    """

    steps: int
    lr: float
    rate: float
    inner_steps: int

    def descend(
        self, losses: Losses, start: Tensors, moving: Sequence[str], batch: Batch
    ) -> dict[str, Tensor]:
        """The tensors after the descent, with the graph by which the examples made them."""
        params = {n: x.detach().requires_grad_(n in moving) for n, x in start.items()}
        for _ in range(self.inner_steps):
            leaves = [params[name] for name in moving]
            slopes = torch.autograd.grad(
                losses(params, batch).mean(), leaves, create_graph=True, allow_unused=True
            )
            moved = zip(moving, leaves, slopes, strict=True)
            params |= {n: x if g is None else x - self.rate * g for n, x, g in moved}
        return params

    def fit(
        self, losses: Losses, legs: Sequence[Leg], begun: Batch, draws: torch.Generator
    ) -> tuple[dict[str, Tensor], float]:
        """Examples that begin as `begun`, of which all columns but the mask are moved; in each step
        towards one leg, drawn at random.

        Returns:
          The examples, and Σ distance / Σ distance of who stays, over all legs: 1 for examples that
          move nothing, 0 for those that make each leg.
        """
        columns = {n: x.clone().requires_grad_() for n, x in begun.items() if n != MASK}
        adam = torch.optim.Adam(list(columns.values()), lr=self.lr)
        for _ in range(self.steps):
            leg = legs[int(torch.randint(len(legs), (1,), generator=draws))]
            adam.zero_grad()
            reached = self.descend(losses, leg.start, list(leg.counts), {**begun, **columns})
            leg.distance(reached).backward()  # type: ignore[no-untyped-call]
            adam.step()
        found = {**begun, **{name: x.detach() for name, x in columns.items()}}
        ends = [self.descend(losses, leg.start, list(leg.counts), found) for leg in legs]
        left = sum(float(leg.distance(x).detach()) for leg, x in zip(legs, ends, strict=True))
        return found, left / sum(float(leg.distance(leg.start)) for leg in legs)
