"""Digits whose labels one client lacks, which look different there: what aligned heads come to.

    python -m tools.shifted_digits FILE

Two sources train, with digits as they are and with blurred ones; the target's have less contrast,
have noise, or are inverted. Each has a third of the training examples. The target's fifth of them
that is set apart is measured, for which its labels are used, and for nothing else. FILE gets the
accuracy by shift, γ of the alignment and seed. It may be there with fewer rows; only those that it
lacks are run.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fedpeft.core.types import Division, Examples, Table
from fedpeft.data.digits import Digits
from fedpeft.engines.inprocess import InProcess
from fedpeft.evaluation.own_held_out import own_held_out
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, site_of
from fedpeft.storage.client_memory import Nowhere
from tools.cell_tables import read_table, write_table

SEEDS, TARGET = (1, 42, 3407), "target"
GAMMAS = {"none": 1e9, "10, as published": 10.0, "0.001": 1e-3}
"""At 10⁹ the difference of the means counts for nothing: principal components, not aligned."""
PLAN: Mapping[str, Any] = {
    "method": {"name": "random_features", "pairs": 256, "components": 64},
    "engine": "inprocess",
    "cohort": 3,
    "rounds": 15,
    "weighting": "uniform",
    "local": {"epochs": 2, "batch_size": 32, "lr": 0.05, "optimizer": "adamw"},
}
COLUMNS = ("target", "gamma", "seed", "accuracy", "source accuracy")


def blur(image: Tensor) -> Tensor:
    """The mean of each pixel and its neighbours."""
    return avg_pool2d(image.float(), 3, stride=1, padding=1, count_include_pad=False)


def add_noise(image: Tensor) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    return image.float() + 60 * torch.randn(image.shape, generator=draws)


SHIFTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "less contrast": lambda image: 90 + image.float() * 0.3,
    "noise": add_noise,
    "inverted": lambda image: 255 - image.float(),
}


def divide(seed: int, shift: str) -> tuple[Examples, Division]:
    """A third of the digits for each client at random, a fifth of them set apart."""
    examples = Digits().load()
    image, label = (examples.train.columns[name].clone() for name in ("image", "label"))
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(seed))
    looks = {"plain": Tensor.float, "blurred": blur, TARGET: SHIFTS[shift]}
    parts, apart = {}, {}
    for (name, change), places in zip(looks.items(), order.chunk(3), strict=True):
        image[places] = change(image[places]).round().clamp(0, 255).to(torch.uint8)
        held = len(places) // 5
        apart[name], parts[name] = places[:held].sort().values, places[held:].sort().values
    table = Table({"image": image, "label": label})
    return replace(examples, train=table), Division(parts, apart=apart)


def run_cell(site: Site, gamma: float) -> dict[str, Any]:
    """The numbers of one run.

    Raises:
      RuntimeError: an answer was not counted.
    """
    aligned = [{"name": "transfer_components", "targets": [TARGET], "gamma": gamma}]
    here = replace(site, plan=read_plan({**PLAN, "algorithms": aligned, "seed": site.plan.seed}))
    begin = start(here.plan, here.params())
    ends = list(federate(here.plan, InProcess(here), begin))
    found = own_held_out(here, ends[-1][0], Nowhere())
    if found is None or any(ledger.failed or ledger.note for _, ledger in ends):
        raise RuntimeError(f"{ends[-1][1].failed} {ends[-1][1].note}")
    each = found["metrics"]["accuracy"]["each"]
    source = (each["plain"] + each["blurred"]) / 2
    return {"accuracy": round(100 * each[TARGET], 2), "source accuracy": round(100 * source, 2)}


def main() -> None:
    file = Path(sys.argv[1])
    rows = read_table(file)
    known = {(row["target"], row["gamma"], row["seed"]) for row in rows}
    for shift, seed in ((shift, seed) for shift in SHIFTS for seed in SEEDS):
        left = [name for name in GAMMAS if (shift, name, str(seed)) not in known]
        site = site_of(read_plan({**PLAN, "seed": seed}), *divide(seed, shift)) if left else None
        for name in left:
            assert site is not None
            row = {"target": shift, "gamma": name, "seed": seed, **run_cell(site, GAMMAS[name])}
            print(row, flush=True)
            rows.append(row)
            write_table(file, COLUMNS, rows)


if __name__ == "__main__":
    main()
