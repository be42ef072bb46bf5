"""Regression on tables and arrays: numbers by hand, scikit-learn as reference, and federations."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_absolute_error, r2_score

from fedpeft import DataError, InProcess, evaluate, federate, open_site, read_plan, start
from fedpeft.compute.scores import conclude
from fedpeft.core.types import Table
from fedpeft.data.arrays import Arrays
from fedpeft.data.in_memory import Memory
from fedpeft.tasks.regression import Regression


def test_errors_are_in_units_of_the_data() -> None:
    """y = 10, 14 and told 12, 12 with a deviation of 4: squares of a quarter, absolute errors 2."""
    task = Regression(1, hidden=(), target_mean=10.0, target_std=4.0)
    table = Table({"x": torch.zeros(2, 1), "target": [10, 14]})
    rows = task.prepare(table)
    assert rows["target"].tolist() == [0, 1]
    model = task.build(())
    told = {"head.weight": torch.zeros(1, 1), "head.bias": torch.tensor([0.5])}
    sums = evaluate(task, model, told, [{**task.batch(rows, None), "mask": torch.ones(2)}])
    found = conclude(task, sums)
    wanted = {"loss": 0.25, "mae": 2, "rmse": 2, "r2": 0}
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)


def diabetes(file: Path) -> tuple[dict[str, Any], float]:
    """scikit-learn's diabetes as an array, and the R² of its least squares on held-out rows."""
    x, y = load_diabetes(return_X_y=True)
    x = x / x.std(0)
    test = np.arange(len(y)) % 4 == 3
    np.savez(
        file, x_train=x[~test], x_test=x[test], progression_train=y[~test], progression_test=y[test]
    )
    best = LinearRegression().fit(x[~test], y[~test])
    plan = {
        "rounds": 15,
        "cohort": 3,
        "method": "full",
        "task": {
            "name": "regression",
            "features": 10,
            "target": "progression",
            "hidden": [],
            "target_mean": 152.0,
            "target_std": 77.0,
        },
        "data": {
            "name": "arrays",
            "path": str(file),
            "y_train": "none",
            "columns": ["progression"],
        },
        "partition": {"name": "iid", "clients": 3},
        "local": {"lr": 0.05, "batch_size": 32, "epochs": 2},
    }
    return plan, float(best.score(x[test], y[test]))


def test_a_federation_comes_to_least_squares(tmp_path: Path) -> None:
    plan, best = diabetes(tmp_path / "diabetes.npz")
    site = open_site(read_plan(plan))
    state = list(federate(site.plan, InProcess(site), start(site.plan, site.params())))[-1][0]
    batches = list(site.data.held_out())
    found = conclude(site.task, evaluate(site.task, site.model, state.params, batches))
    assert best > 0.3
    assert found["r2"] == pytest.approx(best, abs=0.03)
    [batch] = batches
    head = state.params["head.weight"], state.params["head.bias"]
    told = 152 + 77 * (batch["x"] @ head[0].T + head[1])[:, 0]
    truth = 152 + 77 * batch["target"]
    assert found["mae"] == pytest.approx(mean_absolute_error(truth, told), rel=1e-4)
    assert found["r2"] == pytest.approx(r2_score(truth, told), abs=1e-4)


def test_a_table_with_gaps_and_a_target_that_is_text(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    rows = [f"{k},{k % 7},{3 * k}" for k in range(40)]
    rows[3], rows[5], rows[6] = "3,,9", "5,?,", "6,6,NA"
    file.write_text("\n".join(["a,b,cost", *rows]))
    data = {"name": "table", "path": str(file), "label": "none"}
    task = {"name": "regression", "features": ["a", "b"], "target": "cost"}
    plan = read_plan({"task": task, "data": data, "method": "full", "local": {"lr": 0.1}})
    left_out = plan.examples().left_out
    assert left_out == {"rows without 'cost'": 2, "rows without 'b'": 1}
    file.write_text("\n".join(["a,b,cost", "1,2,cheap", "2,3,dear"] * 1 + rows[10:]))
    with pytest.raises(DataError, match="'cost' holds 'cheap' in example 1, which is no number"):
        plan.examples()


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"target": "a"}, "'a' is a feature and the target"),
        ({"target_std": 0.0}, "target_std positive"),
        ({"target_mean": float("nan")}, "target_mean must be finite"),
        ({"hidden": (-1,)}, "width of each hidden layer"),
    ],
)
def test_bad_keys(keys: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Regression(**{"features": ("a",), **keys})


def test_an_array_of_another_width() -> None:
    table = Table({"x": torch.zeros(2, 3), "target": [1.0, 2.0]})
    with pytest.raises(DataError, match=r"of shape \(n, 2\), .* is of shape \(2, 3\)"):
        Regression(2).prepare(table)


def test_arrays_and_memory_without_classes(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    late = np.array([2**24, 2**24 + 1.0] * 5)
    np.savez(file, x_train=np.ones((10, 2)), time=late, site=np.array(list("ab") * 5))
    got = Arrays(str(file), y_train="none", columns=("time", "site")).load()
    assert (len(got.train), len(got.test), got.classes) == (8, 2, ())
    assert set(got.train.columns["time"].tolist()) == {2**24, 2**24 + 1}
    assert set(got.train.columns["site"]) == {"a", "b"}
    with pytest.raises(DataError, match="no array called 'weight_train'"):
        Arrays(str(file), y_train="none", columns=("weight",)).load()
    with pytest.raises(ValueError, match="x has a key of its own"):
        Arrays(str(file), columns=("x",))
    x, y = torch.arange(10.0)[:, None], list(range(10))
    kept = Memory({"x": x, "y": y}, label="none").load()
    assert kept.train.columns["x"][:, 0].tolist() == kept.train.columns["y"]
    apart = Memory({"x": x, "y": y}, {"x": x[:3], "y": y[:3]}, label="none").load()
    assert (len(apart.train), len(apart.test)) == (10, 3)
    for columns, match in (
        ({"x": x, "y": y[:9]}, "column 'x' of the train data has 10 rows, and column 'y' has 9"),
        ({"x": x / 0}, "not finite"),
        ({}, "have no columns"),
    ):
        with pytest.raises(DataError, match=match):
            Memory(columns, label="none").load()
    with pytest.raises(ValueError, match='label must be "label" or "none"'):
        Memory({"x": x}, label="y")
