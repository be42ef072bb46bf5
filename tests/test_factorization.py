"""Factorization machines: numbers by hand, rows that are mixed, and users with factors of their
own."""

from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from text_runs import check_stacked

from fedpeft import DataError, InProcess, PlanError, federate, open_site, read_plan, start
from fedpeft.augments.mixup import Mixup
from fedpeft.compute.objective import Objective
from fedpeft.core.types import Table
from fedpeft.evaluation.own_held_out import own_held_out
from fedpeft.storage.client_memory import Folder
from fedpeft.tasks.factorization import Factorization, FactorizationMachine


def machine(own: bool = False) -> FactorizationMachine:
    """w = (1, 2, 0), and v = 1 for each of three features."""
    model = FactorizationMachine(3, 1, 1.0, own).requires_grad_(False)
    model.linear.copy_(torch.tensor([1.0, 2.0, 0.0]))
    model.factors.fill_(1.0)
    return model


@pytest.mark.parametrize(
    ("x", "wanted"), [((1, 0, 0), 1), ((0, 1, 1), 3), ((0.5, 0.5, 0.5), 2.25), ((0, 0, 0), 0)]
)
def test_pairs_by_hand(x: tuple[float, ...], wanted: float) -> None:
    assert machine()(torch.tensor([x], dtype=torch.float32)).tolist() == [wanted]


def test_it_is_the_sum_over_all_pairs() -> None:
    model = FactorizationMachine(5, 3, 1.0, own=True).requires_grad_(False)
    x = torch.randn(4, 5)
    v, w = model.factors, model.linear
    assert model.own_bias is not None and model.own_factors is not None
    model.own_bias.fill_(0.5)
    wanted = x @ w + 0.5
    for i in range(5):
        wanted += x[:, i] * (v[i] @ model.own_factors)  # the client's own feature is always 1
        for j in range(i):
            wanted += x[:, i] * x[:, j] * (v[i] @ v[j])
    torch.testing.assert_close(model(x), wanted)


def test_a_row_mixed_with_itself_is_itself() -> None:
    """Two shares of one category are no pair: parents side by side would give 1.25."""
    task = Factorization(("film",), (3,), factors=1)
    table = Table({"film": [0, 0], "label": torch.tensor([1, 1])})
    batch = {**task.batch(task.prepare(table), None), "mask": torch.ones(2)}
    mixed = Mixup(alpha=0.5).change(batch, torch.Generator().manual_seed(0))
    assert machine()(mixed["x"]).tolist() == pytest.approx([1, 1])


def test_folded_shares_are_at_least_a_half() -> None:
    batch = {"x": torch.eye(2), "label": torch.tensor([0, 1]), "mask": torch.ones(2)}
    pairs = [
        [
            float(
                Mixup(0.5, fold).change(batch, torch.Generator().manual_seed(k))["mixed/share"][0]
            )
            for k in range(20)
        ]
        for fold in (False, True)
    ]
    assert [max(a, 1 - a) for a in pairs[0]] == pytest.approx(pairs[1])
    assert min(pairs[0]) < 0.5


def test_columns_become_places_and_numbers() -> None:
    task = Factorization(("user", "age", "film"), (2, 1, 3))
    table = Table({"user": [1, 0], "age": [0.5, 7], "film": [2, 0], "label": torch.tensor([1, 0])})
    assert task.unfit(table) == {}
    x = task.batch(task.prepare(table), None)["x"]
    assert x.tolist() == [[0, 1, 0.5, 0, 0, 1], [1, 0, 7, 1, 0, 0]]


def test_the_loss_is_the_log_loss() -> None:
    task = Factorization(("film",), (3,), factors=1)
    batch = {"x": torch.tensor([[0.0, 1, 1]] * 2), "label": torch.tensor([1, 0])}
    losses = task.losses(task.forward(machine(), batch), batch).tolist()
    assert losses == pytest.approx([log(1 + np.exp(-3)), log(1 + np.exp(3))])


def test_rows_with_gaps_and_unknown_categories_are_left_out() -> None:
    task = Factorization(("film",), (3,))
    label = torch.zeros(5, dtype=torch.int64)
    table = Table({"film": [0, None, 3, -1, 1.5], "label": label})
    assert task.unfit(table) == {
        "rows without 'film'": [1],
        "rows with a 'film' that is none of 0 to 2": [2, 3, 4],
    }
    with pytest.raises(DataError, match="1 of 5 examples lack a number"):
        task.prepare(table)
    with pytest.raises(DataError, match=r"beyond task\.sizes"):
        task.prepare(Table({"film": [0, 3], "label": label[:2]}))
    with pytest.raises(DataError, match=r"learns from two classes: set data\.label"):
        task.prepare(Table({"film": [0, 1]}))
    with pytest.raises(PlanError, match="the data have 3"):
        task.build(("a", "b", "c"))


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"columns": ()}, "columns must be names that differ"),
        ({"columns": ("a", "a")}, "columns must be names that differ"),
        ({"sizes": (3, 4)}, "sizes holds for each column"),
        ({"sizes": (0,)}, "sizes holds for each column"),
        ({"factors": 0}, "factors must be at least 1"),
        ({"spread": 0.0}, "spread positive"),
    ],
)
def test_bad_keys(keys: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Factorization(**{"columns": ("a",), "sizes": (3,), **keys})


def test_methods_of_layers_are_refused() -> None:
    task = {"name": "factorization", "columns": ["a"], "sizes": [3]}
    with pytest.raises(PlanError, match="a factorization machine has none"):
        read_plan({"task": task, "method": "lora"})


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four users like films by a number of each film's, and by its opposite: what a user likes is
    told by no film alone."""
    file, draws = tmp_path_factory.mktemp("films") / "seen.csv", np.random.default_rng(5)
    lines = ["user,film,liked"]
    for _ in range(320):
        user, film = draws.integers(4), draws.integers(10)
        liked = (film % 2 == user % 2) != (draws.random() < 0.05)
        lines.append(f"u{user},{film},{'yes' if liked else 'no'}")
    file.write_text("\n".join(lines))
    return file


def plan_of(films: Path, **other: Any) -> dict[str, Any]:
    return {
        "rounds": 4,
        "cohort": 4,
        "method": "full",
        "task": {"name": "factorization", "columns": ["film"], "sizes": [10], "own": True},
        "data": {"name": "table", "path": str(films), "label": "liked", "test_fraction": 0},
        "partition": {"name": "column", "column": "user", "held_out": 0.2},
        "local": {"lr": 0.2, "batch_size": 32, "epochs": 4, "optimizer": "adamw"},
        **other,
    }


def accuracy(plan: dict[str, Any], root: Path) -> float:
    site, store = open_site(read_plan(plan)), Folder(root)
    runs = federate(site.plan, InProcess(site, store), start(site.plan, site.params()))
    *_, (state, ledger) = runs
    assert not ledger.failed
    own = own_held_out(site, state, store)
    assert own is not None
    return float(own["metrics"]["accuracy"]["weighted"])


def test_users_who_differ_need_factors_of_their_own(films: Path, tmp_path: Path) -> None:
    """And these never leave them."""
    personal = [{"name": "personal", "patterns": ["own_*"]}]
    assert accuracy(plan_of(films, routing=personal), tmp_path / "own") > 0.85
    assert accuracy(plan_of(films), tmp_path / "shared") < 0.7
    plan = read_plan(plan_of(films, routing=personal))
    sent = start(plan, open_site(plan).params()).params
    assert sorted(sent) == ["bias", "factors", "linear"]


def test_mixed_rows_train_and_stack(films: Path) -> None:
    local = {"lr": 0.05, "batch_size": 16, "augments": [{"name": "mixup", "fold": True}]}
    check_stacked(plan_of(films, rounds=2, local=local))


def test_a_row_has_a_gradient_of_its_own() -> None:
    task = Factorization(("film",), (3,))
    model = task.build(("no", "yes"))
    params = {name: x.detach() for name, x in model.named_parameters()}
    found = Objective(model, task).gradients(params, task.example())
    assert found["factors"].shape == (1, 3, 8) and found["bias"].any()
