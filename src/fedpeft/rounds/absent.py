"""A site where nobody's training examples lie: of a server whose clients are elsewhere."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fedpeft.core.interfaces import Data
from fedpeft.core.types import Batch, ClientId
from fedpeft.data.class_order import in_order
from fedpeft.data.client_data import Partitioned
from fedpeft.errors import DataError
from fedpeft.plan.plan import Plan
from fedpeft.rounds.prepare import prepare_compute
from fedpeft.rounds.site import Site


@dataclass(frozen=True)
class Contributors:
    """The clients that take part; nobody's training examples are here.

    Attributes:
      sizes: 0 where nobody tells.
      test: the server's own held-out examples, if it has some.
    """

    sizes: Mapping[ClientId, int]
    test: Data | None = None

    @property
    def clients(self) -> Sequence[ClientId]:
        return sorted(self.sizes)

    def size(self, client: ClientId) -> int:
        return self.sizes[client]

    def batches(self, *_: Any) -> Iterator[Batch]:
        raise DataError("the examples of contributors lie with them")

    def chosen(self, *_: Any) -> Batch:
        raise DataError("the examples of contributors lie with them")

    def training(self, *_: Any) -> Iterator[Batch]:
        raise DataError("the examples of contributors lie with them")

    def held_out(self, client: ClientId | None = None) -> Any:
        return () if self.test is None or client is not None else self.test.held_out()


def held_out_of(plan: Plan, device: str = "cpu") -> Data:
    """What the plan's data hold out, as a server's own examples.

    Raises:
      DataError: the data cannot be read, hold out nothing, or have a class that the plan does not
        name.
    """
    examples = plan.examples()
    if not len(examples.test):
        raise DataError(
            "the plan's data hold out no examples, so that nothing can be measured on them here: "
            "leave out --evaluate, or set data.test_fraction above 0"
        )
    examples = in_order(examples, plan.classes, "the plan's data")
    return Partitioned(plan.task, {}, plan.task.prepare(examples.test), {}, device=device)


def absent_site(
    plan: Plan,
    model: nn.Module,
    sizes: Mapping[ClientId, int],
    test: Data | None,
    device: str = "cpu",
) -> Site:
    """A site with the plan's model, which is prepared in place, and clients of whom nothing is
    here.

    Args:
      sizes: how many examples each of them has, 0 for unknown.
      test: the server's own held-out examples, if it has some.
    """
    model = model.to(device)
    prepare_compute(plan, model, plan.method.names(model))
    return Site(plan, model, Contributors(sizes, test), plan.classes, device)
