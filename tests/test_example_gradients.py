"""The gradient of each example by itself, for every method and kind of model, against plain
`backward`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from method_models import KINDS, Classify, batch_of, injected, losses_of, random_like
from test_method_laws import every_fit
from torch import Tensor, nn

from fedpeft.compute.objective import Objective
from fedpeft.compute.trainable import read, write
from fedpeft.core.outputs import Outputs
from fedpeft.core.tensors import add_prefix, norm
from fedpeft.core.types import Batch, Tensors
from fedpeft.local.dp_sgd import Private


@dataclass(frozen=True)
class Counted(Classify):
    """How many examples each call of the losses has: a map over examples is one call, of one."""

    calls: list[int] = field(default_factory=list)

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        losses = Classify.losses(self, outputs, batch)
        self.calls.append(len(losses))
        return losses


def by_backward(model: nn.Module, params: Tensors, batch: Batch) -> dict[str, Tensor]:
    """What `backward` leaves in the model's own parameters, for one example after another."""
    write(model, params)
    every = dict(model.named_parameters())
    found: dict[str, list[Tensor]] = {n: [] for n in params}
    for k in range(len(batch["mask"])):
        model.zero_grad()
        losses_of(Classify(), model, {n: x[k : k + 1] for n, x in batch.items()}).sum().backward()  # type: ignore[no-untyped-call]
        for n in params:
            g = every[n].grad
            found[n].append(torch.zeros_like(params[n]) if g is None else g.clone())
    return {n: torch.stack(rows) for n, rows in found.items()}


@every_fit
def test_every_methods_gradients_are_those_of_its_examples(
    kind: str, spec: Mapping[str, Any]
) -> None:
    """Mapped over for images, and with a prefix, which brings a mask of its own. The mask code of
    other text models
    asks whether all tokens are seen, which cannot be mapped over: they are called for each example
      alone."""
    model, names = injected(spec, kind)
    params, batch, task = random_like(read(model, names)), batch_of(kind), Counted()
    mapped = kind == "vit" or (spec["name"] == "prefix" and kind != "bert")
    each = Objective(model, task).gradients(params, batch)  # type: ignore[arg-type]
    places = len(spec.get("exits", ["the end"]))  # each of which has losses of its own
    assert task.calls == [1] * places * (1 if mapped else 4)
    wanted = by_backward(model, params, batch)
    assert each.keys() == wanted.keys() == set(names)
    for n, g in each.items():
        torch.testing.assert_close(g, wanted[n], rtol=1e-3, atol=1e-5)
    assert all(norm({n: g[k] for n, g in each.items()}) > 0 for k in range(4))


@pytest.mark.parametrize("kind", KINDS)
def test_bounded_pulls_whatever_the_kind_of_model(kind: str) -> None:
    model, names = injected("lora", kind)
    params, batch = random_like(read(model, names)), batch_of(kind)
    objective = Objective(model, Classify())  # type: ignore[arg-type]
    still = add_prefix("noise", {n: torch.zeros_like(x) for n, x in params.items()})
    limit = 0.5 * min(
        float(norm({n: g[k] for n, g in objective.gradients(params, batch).items()}))
        for k in range(4)
    )
    for k in range(4):
        mask = torch.zeros(4)
        mask[k] = 1
        g, losses, buffers = Private(objective, limit, 1, 3).gradient(
            params, {**batch, "mask": mask, **still}
        )
        assert limit * (1 - 1e-5) < float(norm(g)) <= limit
        assert not losses.any() and buffers == {}
