"""The task of a module of one's own."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from method_models import losses_of
from own_modules import Net, Summed, linear

from fedpeft import (
    DataError,
    InProcess,
    Plan,
    PlanError,
    Processes,
    evaluate,
    federate,
    open_site,
    read_plan,
    start,
)
from fedpeft.core.tensors import equal
from fedpeft.core.types import Table
from fedpeft.data.in_memory import Memory
from fedpeft.local.descent import Descent
from fedpeft.methods.full import Full
from fedpeft.methods.head import Head
from fedpeft.partitions.iid import IID
from fedpeft.tasks.module import ModuleTask

LABEL = torch.tensor([0, 1, 2])


def own(task: ModuleTask, **settings: Any) -> Plan:
    return Plan(
        task=task,
        method=Full(),
        partition=IID(4),
        local=Descent(lr=0.1),
        rounds=2,
        cohort=2,
        **settings,
    )


def test_an_own_module_by_name_and_by_itself_is_the_same_experiment() -> None:
    by_name, by_class = own(ModuleTask("own_modules:Net")), own(ModuleTask(Net))
    assert by_class.task.module == "own_modules:Net"  # type: ignore[attr-defined]
    assert by_name.fingerprint == by_class.fingerprint
    assert read_plan(by_class.toml()).fingerprint == by_name.fingerprint
    assert equal(open_site(by_name).params(), open_site(by_class).params())


def test_an_own_module_learns_the_digits_and_takes_its_classes_and_arguments() -> None:
    plan = replace(own(ModuleTask(Net, {"width": 32})), rounds=12, cohort=4)
    site = open_site(plan)
    assert site.model.body[1].weight.shape == (32, 64)  # type: ignore[index, union-attr]
    assert site.model.head.weight.shape == (10, 32)  # type: ignore[union-attr]
    *_, (state, _) = federate(plan, InProcess(site), start(plan, site.params()))
    assert (
        evaluate(plan.task, site.model, state.params, site.data.held_out())["accuracy"].value > 0.85
    )


def test_a_module_made_already_is_copied_with_its_weights() -> None:
    made = Net(10)
    task = ModuleTask(made)
    built = task.build([str(k) for k in range(10)])
    assert built is not made
    assert equal(built.state_dict(), made.state_dict())
    with pytest.raises(PlanError, match="cannot start from scratch"):
        task.build(["a"], pretrained=False)
    plan = replace(own(task), method=Head())
    before = {name: x.clone() for name, x in made.state_dict().items()}
    for _ in federate(plan, InProcess(open_site(plan))):
        pass
    assert equal(made.state_dict(), before)


def test_own_data_and_an_own_module_in_worker_processes() -> None:
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(1))
    data = Memory({"x": x, "label": (x[:, 0] > 0).long()}, classes=("no", "yes"))
    plan = own(ModuleTask(Net), data=data)
    site = open_site(plan)
    one = [state.params for state, _ in federate(plan, InProcess(site), start(plan, site.params()))]
    several = Processes(site, workers=1)
    try:
        other = [state.params for state, _ in federate(plan, several, start(plan, site.params()))]
    finally:
        several.close()
    assert [equal(a, b) for a, b in zip(one, other, strict=True)] == [True, True]


def test_a_closure_runs_here_and_says_why_not_elsewhere() -> None:
    width = 8
    task = ModuleTask(lambda classes: Net(classes, width))
    plan = own(task)
    site = open_site(plan)
    assert [ledger.failed for _, ledger in federate(plan, InProcess(site))] == [{}, {}]
    with pytest.raises(PlanError, match="lives in this process only: to train in several, move it"):
        for _ in federate(plan, Processes(site, workers=1)):
            pass
    with pytest.raises(PlanError, match="cannot be written to a file"):
        plan.toml()


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("own_modules:Nett", "cannot be imported: .*Nett"),
        ("no_such_module:Net", "cannot be imported: No module named"),
        ("own_modules:NOT_A_MODULE", "cannot be called"),
        ("own_modules:Summed", "must give logits"),
        (linear, "cannot be called with {'width': 3}"),
    ],
)
def test_bad_modules(spec: Any, match: str) -> None:
    task = ModuleTask(spec, {"width": 3} if spec is linear else {})
    with pytest.raises(PlanError, match=match):
        model = task.build(["a", "b"])
        losses_of(task, model, {"x": torch.ones(3, 2), "label": LABEL})


def test_bad_settings_of_a_module() -> None:
    with pytest.raises(PlanError, match=r"a name like package\.module:Class"):
        read_plan({"task": {"name": "module", "module": "Net"}})
    with pytest.raises(PlanError, match="loss must be one of cross_entropy"):
        read_plan({"task": {"name": "module", "module": "own_modules:Net", "loss": "hinge"}})
    with pytest.raises(DataError, match="learns from a column 'y'; the data have label, x"):
        ModuleTask(Net, column="y").prepare(Table({"x": torch.ones(3, 1), "label": LABEL}))
    with pytest.raises(DataError, match="learns from a tensor; the column 'text' holds list"):
        ModuleTask(Net, column="text").prepare(Table({"text": list("abc"), "label": LABEL}))
    assert Summed()(torch.ones(2)) == 2


def test_bytes_go_in_as_shares_and_other_numbers_as_they_are() -> None:
    task = ModuleTask(Net)
    rows = task.prepare(
        Table({"image": torch.tensor([[0, 255]] * 3, dtype=torch.uint8), "label": LABEL})
    )
    assert task.batch(rows, None)["x"].tolist() == [[0.0, 1.0]] * 3
    tokens = torch.ones(3, 2, dtype=torch.int64)
    assert task.batch({"x": tokens, "label": LABEL}, None)["x"] is tokens
