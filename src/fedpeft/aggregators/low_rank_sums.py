"""What the aggregators of LoRA's factors have in common: means of factors of any rank, and of their
products."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch

from fedpeft.aggregators.mean import Mean
from fedpeft.core.facts import Fact
from fedpeft.core.low_rank import Product, is_factor, pad_rank, pairs
from fedpeft.core.types import ClientId, State, Tensors, Update

FACTORS_FORBID: Mapping[Fact, str] = {
    Fact.CONTROL: "{one} has no rule for SCAFFOLD's control variates: leave SCAFFOLD out, or take "
    "another",
    Fact.ASYNCHRONOUS: "{one} makes factors for all of a round: with fedbuff take the mean",
}
PLAIN_FORBIDS: Mapping[Fact, str] = {
    Fact.SCALES_STEP: "{one} gives factors that hold only as they are, and {other} would change "
    'them: leave it out, or take aggregator = "mean" or "fedit"',
}
BASE_FORBIDS: Mapping[Fact, str] = {
    Fact.QUANTIZED: "{one} adds to frozen weights, and task.quantize rounds them: leave "
    "out one of both",
}
TURNS_FORBID: Mapping[Fact, str] = {
    Fact.REMEMBERS: "with {one} a client trains other tensors in each round, so that nothing can "
    "be remembered of the last, and {other} remembers: leave out error feedback, or "
    "restart_schedule = false",
    Fact.HANDS_OVER: "with {one} a client trains other tensors in each round, so that no momentum "
    "can be handed over: leave out as_published",
}


@dataclass
class Gathered:
    """A cohort, read once.

    Attributes:
      state: what the round began with.
      mean: of all tensors; factors of a lower rank count as if their missing rows were zero.
      products: by layer the mean of B·A, by the weights that the updates came with.
    """

    state: State
    mean: Update = field(default_factory=lambda: Update("", {}))
    products: dict[str, Product] = field(default_factory=dict)

    def factors(self, layer: str) -> tuple[str, str]:
        """The names of A and B."""
        return pairs(self.state.params)[layer]

    def change(self, to: Tensors, exact: Mapping[str, Product] | None = None) -> Update:
        """The mean with factors that become those in `to`, and products added to frozen weights;
        with its error, ‖mean(B·A) − merged‖ / ‖mean(B·A)‖ over all layers."""
        params = self.state.params
        still = {name: torch.zeros_like(x) for name, x in params.items() if is_factor(name)}
        delta = {
            **still,
            **self.mean.delta,
            **{name: x.to(params[name]) - params[name] for name, x in to.items()},
        }
        more: dict[str, torch.Tensor] = {}
        for layer, product in (exact or {}).items():
            like = params[self.factors(layer)[0]]
            more |= {
                f"{layer}.left": product.left.to(like),
                f"{layer}.right": product.right.to(like),
            }
        return replace(self.mean, delta=delta, exact=more, error=self._error(delta, more))

    def _error(self, delta: Tensors, more: Tensors) -> float | None:
        params, off, all_ = self.state.params, 0.0, 0.0
        for layer, product in self.products.items():
            a, b = (params[n] + delta[n] if n in delta else params[n] for n in self.factors(layer))
            rest = product.plus(b, a, -1.0)
            if f"{layer}.left" in more:
                rest = rest.plus(more[f"{layer}.left"], more[f"{layer}.right"], -1.0)
            off, all_ = off + rest.norm() ** 2, all_ + product.norm() ** 2
        return (off / all_) ** 0.5 if all_ else None


def gather_products(
    updates: Iterable[Update],
    state: State,
    received: Callable[[ClientId], Tensors],
    counting: Callable[[Update], float] = lambda update: update.weight,
) -> Gathered:
    """Read the updates once, holding of each layer one sum of products and one mean, in which an
    update's tensors count as much as `counting` says.

    Raises:
      ValueError: see `Mean`.
    """
    names, told = pairs(state.params), 0.0
    into = Gathered(state)
    into.products = {
        n: Product.zero(len(state.params[b]), state.params[a].shape[1])
        for n, (a, b) in names.items()
    }

    def passing() -> Iterator[Update]:
        nonlocal told
        for update in updates:
            told += update.weight
            for layer, (a, b) in names.items():
                into.products[layer] = into.products[layer].plus(
                    *product(update, received, a, b), update.weight
                )
            delta = pad_rank(update.delta, state.params)
            yield replace(update, delta=delta, weight=counting(update))

    into.mean = replace(Mean()(passing(), state, received), weight=told)
    into.products = {layer: each.times(1 / told) for layer, each in into.products.items()}
    return into


def product(
    update: Update, received: Callable[[ClientId], Tensors], a: str, b: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """A client's B and A, as it has them after training."""
    start = received(update.client)
    one, two = (start[n] + update.delta[n] if n in update.delta else start[n] for n in (b, a))
    return one, two
