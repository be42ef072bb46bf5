"""Changes of the batches that clients train on, and mixup."""

from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import Points
from rounds import distance, last, points_plan, run
from torch import Tensor, nn

from fedpeft import Cohort, PlanError, federate, start
from fedpeft.augments.mixup import Mixup, partners
from fedpeft.compute.objective import Objective
from fedpeft.core.seeds import seed_torch
from fedpeft.core.tensors import equal
from fedpeft.core.types import Batch
from fedpeft.local.descent import Descent
from fedpeft.registry import build, names
from fedpeft.rounds.site import Site, open_site

every = pytest.mark.parametrize("name", sorted(names("augment")))
RAGGED = {
    "partition": {"name": "dirichlet", "clients": 4, "alpha": 1.0},
    "data": {"name": "parts:Blobs", "examples": 160},
    "method": "full",
    "rounds": 2,
    "cohort": 4,
}


def local_with(augment: Any) -> dict[str, Any]:
    return {"lr": 0.05, "batch_size": 16, "augments": [augment]}


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(rows: int = 6, counted: int = 6) -> Batch:
    return {
        "point": torch.randn(rows, 4, generator=draws(1)),
        "label": torch.arange(rows) % 3,
        "mask": (torch.arange(rows) < counted).float(),
    }


@pytest.fixture(scope="module")
def ragged() -> Site:
    return open_site(points_plan(**RAGGED))


@every
def test_the_same_stream_gives_the_same_batch_and_nothing_is_written_to(name: str) -> None:
    augment, batch = build("augment", name), batch_of()
    before = {n: x.clone() for n, x in batch.items()}
    one, again = (augment.change(batch, draws(3)) for _ in range(2))
    assert equal(one, again) and equal(batch, before)
    assert not torch.equal(one["point"], batch["point"])
    assert torch.equal(one["mask"], batch["mask"])


@every
def test_an_augment_says_whether_it_couples_examples(name: str) -> None:
    """If it does, DP-SGD refuses it."""
    local = {"name": "dp_sgd", "noise_multiplier": 1.0, "augments": [name]}
    private = {"local": local, "weighting": "uniform", "delta": 1e-3}
    if build("augment", name).couples_examples:
        with pytest.raises(PlanError, match="lets the examples of a batch change each other's"):
            points_plan(**private)
    else:
        points_plan(**private)


@every
def test_engines_agree_and_training_changes(name: str, ragged: Site) -> None:
    """Clients differ in size, so that short batches of a stack are filled up."""
    plan, plain = points_plan(**RAGGED, local=local_with(name)), points_plan(**RAGGED)
    plain = replace(plain, local=Descent(lr=0.05, batch_size=16))
    begun = start(plan, ragged.params())
    alone = last(run(ragged, plan))
    engine = Cohort(replace(ragged, plan=plan))
    together = last(list(federate(plan, engine, begun)))
    assert not engine.alone and distance(together, alone) <= 1e-4
    assert distance(alone, last(run(ragged, plain))) > 1e-4


def test_what_is_not_written_is_no_key() -> None:
    """So that plans of before keep their names."""
    assert "augments" not in points_plan().toml()
    assert "mixup" in points_plan(local=local_with("mixup")).toml()


class Fixed(nn.Module):
    """Logits (ln 3, 0) for everything."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([log(3), 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias.expand(len(x), 2)


def test_the_loss_of_two_labels_by_hand() -> None:
    """−ln of 3/4 and of 1/4: 0.75·0.287682 + 0.25·1.386294 = 0.562335."""
    batch = {
        "point": torch.zeros(3, 8),
        "label": torch.tensor([0, 0, 1]),
        "mask": torch.ones(3),
        "mixed/label": torch.tensor([1, 0, 0]),
        "mixed/share": torch.tensor([0.75, 0.75, 0.25]),
    }
    model = Fixed()
    params = {n: x.detach() for n, x in model.named_parameters()}
    found = Objective(model, Points())(params, batch)
    assert found.tolist() == pytest.approx([0.562335, 0.287682, 0.562335], abs=1e-6)


def test_all_of_an_example_is_mixed_with_the_same_other_one() -> None:
    batch = batch_of()
    got = Mixup(1.0).change(batch, draws(5))
    share = float(got["mixed/share"][0])
    assert 0 < share < 1 and (got["mixed/share"] == share).all()
    for k in range(6):
        rest = (got["point"][k] - share * batch["point"][k]) / (1 - share)
        [other] = [j for j in range(6) if torch.allclose(rest, batch["point"][j], atol=1e-4)]
        assert got["mixed/label"][k] == batch["label"][other]
    assert torch.equal(got["label"], batch["label"])


def test_shares_are_of_the_beta_distribution() -> None:
    """Beta(α, α) has the mean 1/2 and the variance 1 / (4·(2α + 1))."""
    stream, batch = draws(7), batch_of(2, 2)
    for alpha in (0.2, 1.0, 4.0):
        many = [Mixup(alpha).change(batch, stream)["mixed/share"][0] for _ in range(1000)]
        shares = torch.stack(many)
        assert float(shares.mean()) == pytest.approx(0.5, abs=0.05)
        assert float(shares.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)


@pytest.mark.parametrize("counted", [1, 2, 5])
def test_what_fills_up_a_batch_is_mixed_into_nothing(counted: int) -> None:
    batch = batch_of(8, counted)
    for seed in range(5):
        order = partners(batch["mask"], draws(seed))
        assert sorted(order[:counted].tolist()) == list(range(counted))
        assert order[counted:].tolist() == list(range(counted, 8))


def test_alpha_of_0_and_a_batch_of_one_are_no_mixup(ragged: Site) -> None:
    plan = points_plan(**RAGGED, local=local_with({"name": "mixup", "alpha": 0.0}))
    plain = replace(plan, local=Descent(lr=0.05, batch_size=16))
    assert equal(last(run(ragged, plan)), last(run(ragged, plain)))
    one = batch_of(1, 1)
    mixed = Mixup(1.0).change(one, draws())
    with seed_torch(0):
        model = Points(features=4).build(["a", "b", "c"])
    objective, params = Objective(model, Points(features=4)), dict(model.named_parameters())
    torch.testing.assert_close(objective(params, mixed), objective(params, one))


def test_the_loss_of_a_mixed_batch_is_the_sum_of_both_labels() -> None:
    """Where the model is linear and both labels are one, mixing inputs is mixing logits."""
    batch = {**batch_of(), "label": torch.zeros(6, dtype=torch.int64)}
    mixed = Mixup(1.0).change(batch, draws(2))
    hard = {n: x for n, x in mixed.items() if not n.startswith("mixed/")}
    with seed_torch(0):
        model = Points(features=4).build(["a", "b", "c"])
    objective, params = Objective(model, Points(features=4)), dict(model.named_parameters())
    torch.testing.assert_close(objective(params, mixed), objective(params, hard))


@pytest.mark.parametrize("gone", ["label", "point"])
def test_what_has_no_label_or_no_floats_is_refused_by_name(gone: str) -> None:
    batch = {name: x for name, x in batch_of().items() if name != gone}
    with pytest.raises(PlanError, match=r"leave it out of local\.augments"):
        Mixup().change(batch, draws())


@pytest.mark.parametrize("alpha", [-1.0, float("nan"), float("inf")])
def test_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be at least 0"):
        Mixup(alpha)


def test_features_of_what_is_not_mixed_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path))
    head = {**RAGGED, "method": "head", "task": {"name": "parts:Points", "network": "hidden"}}
    assert open_site(points_plan(**head)).kept.cut is not None
    assert open_site(points_plan(**head, local=local_with("mixup"))).kept.cut is None
