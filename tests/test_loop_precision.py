"""Laws of mixed precision: how much of a gradient is lost is stated here, and what travels stays in
float32."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
import torch
from method_models import Classify, batch_of, injected
from rounds import plan_of, run
from torch import Tensor, nn

from fedpeft.compute.objective import LOSS_SCALE, Objective
from fedpeft.compute.trainable import read
from fedpeft.core.outputs import Outputs
from fedpeft.core.types import Batch, Tensors
from fedpeft.rounds.site import Site

TOLERANCES = {"bfloat16": 0.03, "float16": 0.004}
"""Of the gradient as one vector, the error over the length: eight and eleven significant bits,
through three layers."""

narrow = pytest.mark.parametrize("precision", sorted(TOLERANCES))


@dataclass(frozen=True)
class Times:
    """A task whose losses are a constant times another's, as small as those of a model that has
    learned."""

    factor: float
    task: Classify = field(default_factory=Classify)

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        return self.task.forward(model, batch, head)

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        return self.factor * self.task.losses(outputs, batch)

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        return self.task.metrics(outputs, batch)


def gradient(
    model: nn.Module, params: Tensors, kind: str, precision: str, factor: float = 1.0
) -> Tensors:
    objective = Objective(model, Times(factor), precision)  # type: ignore[arg-type]  # as much of a task as it needs
    return objective.gradient(params, batch_of(kind))[0]


def error(got: Tensors, want: Tensors) -> float:
    """‖got − want‖ / ‖want‖."""
    assert got.keys() == want.keys()
    off = sum(float((got[n] - x).square().sum()) for n, x in want.items())
    return float((off / sum(float(x.square().sum()) for x in want.values())) ** 0.5)


@narrow
@pytest.mark.parametrize("kind", ["vit", "bert", "llama"])
@pytest.mark.parametrize("method", ["lora", "head", "full"])
def test_gradients_agree_with_those_of_float32(method: str, kind: str, precision: str) -> None:
    model, names = injected(method, kind)
    params = read(model, names)
    got = gradient(model, params, kind, precision)
    assert {x.dtype for x in got.values()} == {torch.float32}
    assert 0 < error(got, gradient(model, params, kind, "float32")) < TOLERANCES[precision]


@pytest.mark.parametrize("kind", ["vit", "llama"])
def test_small_gradients_are_not_lost_in_float16(kind: str) -> None:
    """Without the scale the error is three to four times the tolerance: numbers below 6e-8 on the
    way become 0."""
    model, names = injected("lora", kind)
    params = read(model, names)
    got = gradient(model, params, kind, "float16", 1 / LOSS_SCALE)
    assert (
        error(got, gradient(model, params, kind, "float32", 1 / LOSS_SCALE)) < TOLERANCES["float16"]
    )


@pytest.mark.slow
@narrow
def test_training_lowers_the_loss_and_what_travels_is_float32(digits: Site, precision: str) -> None:
    local = {"lr": 0.05, "batch_size": 16, "precision": precision}
    rounds = run(digits, plan_of(local=local, rounds=4, cohort=6))
    assert not any(ledger.failed for _, ledger in rounds)
    losses = [ledger.metrics["loss"].value for _, ledger in rounds]
    assert losses[-1] < 0.9 * losses[0]
    exact = run(digits, plan_of(local={**local, "precision": "float32"}, rounds=4, cohort=6))
    assert losses[-1] == pytest.approx(exact[-1][1].metrics["loss"].value, rel=0.02)
    for name, x in rounds[-1][0].params.items():
        assert x.dtype == torch.float32 and not torch.equal(x, exact[-1][0].params[name])
