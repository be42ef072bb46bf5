"""What an exact merge of LoRA's factors adds, and what of it harms, after one round.

    python -m tools.merge_shape PLAN [--set KEY=VALUE] --seeds 1 42 3407

The clients of a plan of LoRA train once. Then their products are merged in several ways, with one
head, the plain mean of theirs, and each is measured on the held-out examples.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fedpeft import InProcess, Site, federate, open_site, read_plan, start
from fedpeft.aggregators.mean import Mean
from fedpeft.core.low_rank import EXACT, pairs
from fedpeft.core.tensors import add_prefix
from fedpeft.core.types import ClientId, State, Tensors, Update
from fedpeft.evaluation.measure import measure

Products = list[dict[str, Tensor]]
"""Of each client B·A by layer."""


@dataclass(frozen=True)
class Keeping:
    """The plain mean, which keeps what it was given."""

    kept: list[Update] = field(default_factory=list)

    def __call__(
        self, updates: Iterable[Update], state: State, received: Callable[[ClientId], Tensors]
    ) -> Update:
        self.kept.extend(updates)
        return Mean()(self.kept, state, received)


def length(products: Mapping[str, Tensor]) -> float:
    """Over all layers."""
    return float(sum(float(x.square().sum()) for x in products.values()) ** 0.5)


def mean_of(products: Products, shares: list[float]) -> dict[str, Tensor]:
    return {
        layer: sum(
            (p * one[layer] for p, one in zip(shares, products, strict=True)), torch.zeros(())
        )
        for layer in products[0]
    }


def scaled(products: Mapping[str, Tensor], by: float) -> dict[str, Tensor]:
    return {layer: by * x for layer, x in products.items()}


def merges(begun: Tensors, kept: list[Update]) -> tuple[dict[str, dict[str, Tensor]], list[float]]:
    """The merged products by the name of the merge, and the clients' lengths."""
    names = pairs(begun)
    shares = [update.weight / sum(u.weight for u in kept) for update in kept]
    ended = [{n: begun[n] + x for n, x in u.delta.items()} for u in kept]
    each = [{layer: end[b] @ end[a] for layer, (a, b) in names.items()} for end in ended]
    mean = mean_of(ended, shares)
    averaged = {layer: mean[b] @ mean[a] for layer, (a, b) in names.items()}
    exact, lengths = mean_of(each, shares), [length(one) for one in each]
    usual = median(lengths)
    short = [scaled(x, min(1.0, usual / size)) for x, size in zip(each, lengths, strict=True)]
    return {
        "means of factors": averaged,
        "mean product": exact,
        "mean product, as long as the means'": scaled(exact, length(averaged) / length(exact)),
        "mean product, none longer than the median": mean_of(short, shares),
        "no product": scaled(exact, 0.0),
    }, lengths


def measured(site: Site, params: Tensors, products: Mapping[str, Tensor]) -> dict[str, float]:
    """Of a model whose frozen weights have these products in them."""
    flat = {n: torch.zeros_like(x) if ".lora_B." in n else x for n, x in params.items()}
    whole = {f"{layer}.whole": x for layer, x in products.items()}
    return measure(site, {**flat, **add_prefix(EXACT, whole)})


def look(plan_file: Path, settings: list[str], seed: int) -> dict[str, Any]:
    """One round with a seed."""
    plan = read_plan(plan_file, [*settings, f"seed={seed}", "rounds=1"])
    keeping = Keeping()
    plan = replace(plan, aggregator=keeping)
    site = open_site(plan)
    begun = start(plan, site.params())
    [(state, _)] = federate(plan, InProcess(site), begun)
    found, lengths = merges(begun.params, keeping.kept)
    return {
        "seed": seed,
        "longest by median": round(max(lengths) / median(lengths), 2),
        "merges": {
            name: {
                "length": round(length(products), 3),
                **{k: round(x, 4) for k, x in measured(site, state.params, products).items()},
            }
            for name, products in found.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    told = parser.parse_args()
    for seed in told.seeds:
        print(json.dumps(look(told.plan, told.settings, seed), indent=1), flush=True)


if __name__ == "__main__":
    main()
