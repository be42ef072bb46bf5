"""Survival: what is read of tables, what is refused, and federations of small clinics."""

from itertools import count
from logging import WARNING
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rounds import Tampering
from text_runs import check_stacked
from torch import Tensor

from fedpeft import (
    DataError,
    InProcess,
    PlanError,
    evaluate,
    federate,
    open_site,
    read_plan,
    start,
)
from fedpeft.compute.objective import Objective
from fedpeft.compute.scores import conclude
from fedpeft.compute.tally import EXAMPLES
from fedpeft.core.conversation import Message
from fedpeft.core.types import Reply, Table, Weighted
from fedpeft.evaluation.own_held_out import own_held_out
from fedpeft.evaluators.owners import PHASE
from fedpeft.forecasts.stand_in import find_holdings
from fedpeft.plan.coding import answer_codec
from fedpeft.storage.client_memory import Nowhere
from fedpeft.tasks.survival import Survival
from fedpeft.tasks.survival_times import concordance
from fedpeft.wire.payloads import encode_answer


def table_of(**columns: Any) -> Table:
    return Table({"a": [1.0, 2.0, 3.0], "time": [1, 2, 3], "event": [1, 0, 1], **columns})


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"time": [1, -2, -3]}, "2 of 3 times in the column 'time' are negative"),
        ({"event": [1, 2, 0]}, "1 of 3 values in the column 'event' are neither 0 nor 1"),
        ({"event": ["dead", "alive", "dead"]}, "'event' holds 'dead' in example 1, which is no n"),
        ({"a": [1, None, 3]}, "1 of 3 examples lack a number in 'x'"),  # nobody left them out
        ({"time": torch.tensor([0, 1, 2]), "label": torch.tensor([0, 1, 2])}, None),
    ],
)
def test_bad_columns(columns: dict[str, Any], match: str | None) -> None:
    task = Survival(("a",))
    if match is None:
        assert task.prepare(table_of(**columns))["time"].tolist() == [0, 1, 2]
        return
    with pytest.raises(DataError, match=match):
        task.prepare(table_of(**columns))


def test_where_nobody_has_an_event_cox_learns_nothing_and_that_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    censored = table_of(event=[0, 0, 0])
    discrete = Survival(("a",), loss="discrete", cuts=(1.0, 2.0))
    with caplog.at_level(WARNING, "fedpeft"):
        Survival(("a",)).prepare(table_of())
        discrete.prepare(censored)  # who was seen for long without one says something here
        assert not caplog.messages
        Survival(("a",)).prepare(censored)
    assert caplog.messages == [
        "survival: none of 3 examples has an event, so that Cox's loss learns nothing of them"
    ]


def test_a_column_that_became_classes_is_told() -> None:
    label = torch.tensor([0, 1, 2])
    table = Table({"a": [1, 2, 3], "time": [1, 2, 3], "label": label})
    with pytest.raises(DataError, match=r"`label`: set data\.label = \"none\""):
        Survival(("a",)).prepare(table)
    with pytest.raises(DataError, match="number its values as classes"):
        Survival(("a",), status="label").prepare(table)


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"features": ()}, "features names the columns"),
        ({"features": 0}, "features names the columns"),
        ({"features": ("a", "a")}, "differ"),
        ({"features": ("a", "time")}, "must be different columns"),
        ({"mean": (1.0, 2.0)}, "mean has 2 numbers and there are 1 features"),
        ({"std": (0.0,)}, "std must be positive"),
        ({"missing": "mean"}, "the plan has no mean"),
        ({"missing": "zero"}, 'missing must be "leave_out" or "mean"'),
        ({"loss": "weibull"}, "no loss called 'weibull'"),
        ({"loss": "discrete"}, "needs cuts"),
        ({"loss": "discrete", "cuts": (5.0, 5.0)}, r"rising .* got \[5\.0, 5\.0\]"),
        ({"loss": "discrete", "cuts": (0.0, 5.0)}, "from above 0"),
        ({"cuts": (5.0,)}, 'cuts are for loss = "discrete"'),
        ({"hidden": (0,)}, "width of each hidden layer"),
    ],
)
def test_bad_keys(keys: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Survival(**{"features": ("a",), **keys})


def write_patients(file: Path, rows: int = 120, gaps: int = 0) -> Path:
    """Three clinics; the hazard of a patient is exp(x) / 10, and a third are censored."""
    draw = np.random.default_rng(7)
    x, noise = draw.normal(size=(2, rows))
    time = draw.exponential(10 * np.exp(-x))
    end = draw.exponential(20, size=rows)
    lines = ["clinic,risk,noise,time,event"]
    for k in range(rows):
        risk = "NA" if k < gaps else f"{x[k]:.4f}"
        seen, event = min(time[k], end[k]), int(time[k] <= end[k])
        lines.append(f"{'abc'[k % 3]},{risk},{noise[k]:.4f},{seen:.3f},{event}")
    file.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_patients(tmp_path_factory.mktemp("survival") / "patients.csv")


DISCRETE = {"loss": "discrete", "cuts": [2.0, 5.0, 10.0, 20.0]}


def run_of(file: Path, task: dict[str, Any], **other: Any) -> dict[str, Any]:
    return {
        "rounds": 4,
        "cohort": 3,
        "method": "full",
        "task": {"name": "survival", "features": ["risk", "noise"], "hidden": [4], **task},
        "data": {"name": "table", "path": str(file), "label": "none", "test_fraction": 0},
        "partition": {"name": "column", "column": "clinic", "held_out": 0.25},
        "local": {"lr": 0.1, "batch_size": 16, "epochs": 2, "optimizer": "adamw"},
        **other,
    }


@pytest.mark.parametrize(
    "task", [{}, DISCRETE, {"hidden": []}], ids=["cox", "discrete", "linear cox"]
)
def test_federations_learn_who_is_at_risk(patients: Path, task: dict[str, Any]) -> None:
    plan = read_plan(run_of(patients, task, evaluate_at=["owners"]))
    site = open_site(plan)
    begin = start(plan, site.params())
    runs = list(federate(plan, InProcess(site), begin))
    last, ledger = runs[-1]
    own = own_held_out(site, last, Nowhere())
    assert own is not None and own["examples"] == dict.fromkeys("abc", 10)
    first = own_held_out(site, begin, Nowhere())
    assert first is not None
    assert own["metrics"]["loss"]["weighted"] < first["metrics"]["loss"]["weighted"]
    assert own["metrics"]["c_index"]["weighted"] > 0.6
    # what owners tell of themselves is what a simulation measures, pairs within each of them alone
    told = ledger.reports["owners"]["metrics"]
    assert told["c_index"]["each"] == pytest.approx(own["metrics"]["c_index"]["each"])
    assert told["c_index"]["pooled"] == pytest.approx(own["metrics"]["c_index"]["weighted"])


@pytest.mark.parametrize("name", ["survival-cox", "survival-discrete"])
def test_the_repositorys_plans_run_on_a_table_like_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Five clinics learn who is at risk, and the command that plans reads the table too."""
    monkeypatch.setenv("FEDPEFT_DATA", str(tmp_path))
    draw = np.random.default_rng(3)
    lines = ["clinic,age,size,nodes,days,died"]
    for k in range(200):
        nodes = draw.integers(0, 9)
        days = int(draw.exponential(2500 * np.exp(-0.4 * nodes)))
        lines.append(f"{k % 5},{draw.integers(40, 80)},{draw.integers(5, 50)},{nodes},{days},1")
    (tmp_path / "patients.csv").write_text("\n".join(lines))
    plan = read_plan(Path(__file__).parents[1] / "plans" / f"{name}.toml", ["rounds=12"])
    site = open_site(plan)
    runs = list(federate(plan, InProcess(site), start(plan, site.params())))
    told = [ledger.reports["owners"]["metrics"]["c_index"]["pooled"] for _, ledger in runs]
    assert told[-1] > max(0.6, told[0])
    planned = find_holdings(plan, None).data
    assert [planned.size(client) for client in planned.clients] == [32] * 5


def test_a_stack_of_clients_ends_where_one_after_another_does(patients: Path) -> None:
    # A unit that is active on all examples shifts all risks alike, so that its bias has no gradient
    # but rounding errors, and AdamW makes whole steps of these.
    local = {"lr": 0.1, "batch_size": 16, "epochs": 2, "optimizer": "sgd"}
    check_stacked(run_of(patients, {}, local=local))


def test_a_partial_likelihood_has_no_intercept(patients: Path) -> None:
    sites = [open_site(read_plan(run_of(patients, task))) for task in ({}, DISCRETE)]
    assert ["head.bias" in site.params() for site in sites] == [False, True]


def test_held_out_examples_are_compared_across_batches(
    patients: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = open_site(read_plan(run_of(patients, {})))
    metrics = []
    for size in (256, 7):
        monkeypatch.setattr("fedpeft.data.client_data.EVALUATION_BATCH", size)
        batches = list(site.data.training("a"))
        assert len(batches) == (1 if size == 256 else 5)
        sums = evaluate(site.task, site.model, site.params(), batches)
        metrics.append(conclude(site.task, sums))
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-6)
    assert evaluate(site.task, site.model, site.params(), []) == {}


@pytest.mark.parametrize(
    ("told", "fits"),
    [((3, 6), True), ((0, 0), True), ((6.5, 6), False), ((-1, 6), False), ((3, 7), False),
     ((float("nan"), 6), False)],
)  # fmt: skip
def test_an_owner_cannot_claim_more_pairs_than_its_examples_make(
    told: tuple[float, float], fits: bool
) -> None:
    sums = {"loss": Weighted(1, 4), "c_index": Weighted(*told)}
    if fits:
        Survival(1).check_sums(sums, 4)
        return
    with pytest.raises(ValueError, match="4 examples make at most 6"):
        Survival(1).check_sums(sums, 4)


def test_an_owner_that_claims_too_much_is_refused_by_name(patients: Path) -> None:
    plan = read_plan(run_of(patients, {}, evaluate_at=["owners"], rounds=1))
    site = open_site(plan)
    fit = count()

    def claim(reply: Any) -> Any:
        if next(fit) == 0:  # the update itself
            return reply
        body = {EXAMPLES: torch.tensor(10)}
        totals = {"loss": Weighted(1, 10), "c_index": Weighted(1e9, 1)}
        message = Message({PHASE: body}, {"metrics": totals})
        return Reply("a", encode_answer(message, answer_codec(plan, PHASE)))

    engine = Tampering(InProcess(site), {"a": claim})
    [(_, ledger)] = federate(plan, engine, start(plan, site.params()))
    told = ledger.reports["owners"]
    assert "1e+09 pairs in order of 1, and 10 examples" in told["failed"]["a"]
    assert told["metrics"]["c_index"]["each"].keys() == {"b", "c"}


def test_kept_features_change_no_concordance(patients: Path) -> None:
    """Where the frozen body's outputs are kept, held-out examples are still measured together."""
    found = []
    for kept in (True, False):
        changes = {"method": "head", "compute": {"features": kept}}
        site = open_site(read_plan(run_of(patients, {}, **changes)))
        assert bool(site.notes) is kept
        own = own_held_out(site, start(site.plan, site.params()), Nowhere())
        assert own is not None
        found.append(own["metrics"]["c_index"]["each"])
    assert found[0] == found[1]


def test_a_client_without_a_pair_has_no_concordance() -> None:
    """A number that is not one, and not 0 or 1."""
    task = Survival(1)
    batch = {"time": torch.tensor([1.0, 2]), "event": torch.zeros(2), "mask": torch.ones(2)}
    found = task.metrics({"prediction": torch.zeros(2, 1)}, batch)["c_index"]
    assert not isinstance(found, Tensor) and isnan(float(found.totals.sum() / found.weights.sum()))


def test_dp_sgd_takes_the_hazards_and_refuses_the_partial_likelihood(patients: Path) -> None:
    private = {
        "weighting": "uniform",
        "privacy": {"delta": 0.01},
        "local": {
            **{"name": "dp_sgd", "steps": 2, "rate": 0.5, "batch_size": 15, "lr": 0.1},
            "noise_multiplier": 1.0,
        },
        "rounds": 1,
    }
    with pytest.raises(PlanError, match="lets the examples of a batch change each other's loss"):
        read_plan(run_of(patients, {}, **private))
    assert read_plan(run_of(patients, DISCRETE, **private)).rounds == 1
    site = open_site(read_plan(run_of(patients, DISCRETE)))
    batch = {**next(iter(site.data.training("a")))}
    objective = Objective(site.model, site.task)
    each = objective.gradients(site.params(), batch)
    together, _, _ = objective.gradient(site.params(), batch)
    for name, mean in together.items():
        torch.testing.assert_close(each[name].mean(0), mean)


@pytest.mark.parametrize("method", ["lora", "bias"])
def test_a_linear_model_is_one_layer(patients: Path, method: str) -> None:
    with pytest.raises(PlanError, match=r"task\.hidden = \[\] is one layer"):
        read_plan(run_of(patients, {"hidden": []}, method=method))


@pytest.mark.parametrize(
    "method",
    [
        "bias",
        "head",
        pytest.param({"name": "lora", "rank": 1, "target": ["0"]}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_other_methods_train_a_perceptron(patients: Path, method: Any) -> None:
    site = open_site(read_plan(run_of(patients, {}, method=method, rounds=1)))
    begin = start(site.plan, site.params())
    [(state, _)] = federate(site.plan, InProcess(site), begin)
    assert 0 < sum(x.numel() for x in state.params.values()) < 17, "not the whole model"
    assert not any(torch.equal(x, begin.params[name]) for name, x in state.params.items())


def test_rows_without_a_number_are_left_out_once_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_patients(tmp_path / "patients.csv", gaps=5)
    text = file.read_text(encoding="utf-8-sig").splitlines()
    text[1] = "a,NA,0.1,,1"  # a gap in the time too
    text[9] = "b,0.2,0.1,4.5,"
    file.write_text("\n".join(text), encoding="utf-8")
    with caplog.at_level(WARNING, "fedpeft"):
        examples = read_plan(run_of(file, {})).examples()
    assert len(examples.train) == 114
    left_out = {"rows without 'time'": 1, "rows without 'event'": 1, "rows without 'risk'": 4}
    assert examples.left_out == left_out
    assert "left out: 1 row without 'time'; 1 row" in caplog.text
    filled = {"missing": "mean", "mean": [0.0, 0.0], "std": [1.0, 1.0]}
    caplog.clear()
    with caplog.at_level(WARNING, "fedpeft"):
        plan = read_plan(run_of(file, filled))
        rows = plan.task.prepare(plan.examples().train)
    assert len(rows["x"]) == 118 and int((rows["x"][:, 0] == 0).sum()) == 4
    assert "in the place of 4 missing numbers of 236, in 4 of 118 rows" in caplog.text


def test_features_are_scaled_by_the_plan_and_far_ones_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scaled = Survival(("a",), mean=(2.0,), std=(0.5,)).prepare(table_of())
    assert scaled["x"].tolist() == [[-2], [0], [2]]
    assert not caplog.messages
    Survival(("a",)).prepare(table_of(a=[1, 2, 54321]))
    assert "1 of 1 features have numbers beyond 100, first 'a'" in caplog.text
    assert "54321" not in caplog.text


def test_times_that_float32_takes_for_one_stay_apart() -> None:
    late = [2.0**24, 2.0**24 + 1, 2.0**24 + 1]
    rows = Survival(("a",)).prepare(table_of(time=late, event=[1, 1, 0]))
    found = concordance(torch.tensor([2.0, 1, 0]), rows["time"], rows["event"], torch.ones(3))
    assert float(found.weights.sum()) == 3
