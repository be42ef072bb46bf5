"""Exits that teach each other, by hand and in rounds."""

from dataclasses import replace
from itertools import islice
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from method_models import Classify
from rounds import Recording, distance, on
from test_early_exits import blocks_plan

from fedpeft import PlanError, federate, open_site, start
from fedpeft.compute.further import losses_of
from fedpeft.compute.objective import Objective
from fedpeft.core.types import Context
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.local.descent import Descent
from fedpeft.plan.plan import Plan
from fedpeft.terms.exits import ExitDistillation

TWO = {"logits": torch.tensor([[3.0, 1.0]]).log(), "logits/block 1": torch.zeros(1, 2)}
FIRST = {"label": torch.tensor([0]), "mask": torch.ones(1)}


def test_exits_teach_each_other_by_hand() -> None:
    """The logits (0, 0) and (ln 3, 0) with the label 0: the second is better, and
    KL((¾, ¼) ‖ (½, ½)) is 0.130812; the other way round it is ln(2/√3) = 0.143841."""
    held = {"round": torch.tensor(300.0)}
    values = {
        teacher: float(ExitDistillation(teacher=teacher).loss(TWO, FIRST, held))
        for teacher in ("best", "last", "all")
    }
    assert values == pytest.approx({"best": 0.130812, "last": 0.130812, "all": 0.274653}, abs=1e-6)
    whole = float(losses_of(Classify(), TWO, FIRST)) + values["best"]  # type: ignore[arg-type]
    assert whole == pytest.approx(1.111641, abs=1e-6)
    # For the other label the first exit is the better one.
    other = {**FIRST, "label": torch.tensor([1])}
    assert float(ExitDistillation(ramp=0).loss(TWO, other, {})) == pytest.approx(0.143841, abs=1e-6)
    alone = {"logits": TWO["logits"]}
    for teacher in values:
        assert float(ExitDistillation(teacher=teacher).loss(alone, FIRST, held)) == 0.0


@pytest.mark.parametrize(
    ("round", "counts"), [(0, 0.0067379), (150, 0.2865048), (300, 1), (999, 1)]
)
def test_distillation_comes_slowly(round: int, counts: float) -> None:
    term, held = ExitDistillation(), {"round": torch.tensor(float(round))}
    got = float(term.loss(TWO, FIRST, held)) / 0.13081204
    assert got == pytest.approx(counts, abs=1e-6)


def test_no_gradient_goes_through_the_teacher() -> None:
    """That of a student's logits is T·(p_e − p_t) at temperature T, and a teacher has none."""
    student, teacher = (x.clone().requires_grad_() for x in (TWO["logits/block 1"], TWO["logits"]))
    outputs = {"logits": teacher, "logits/block 1": student}
    loss = ExitDistillation(teacher="last", ramp=0, temperature=2.0).loss(outputs, FIRST, {})
    loss.sum().backward()  # type: ignore[no-untyped-call]
    wanted = 2 * ((student / 2).softmax(-1) - (teacher / 2).softmax(-1)).detach()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, wanted)
    assert teacher.grad is None or not teacher.grad.any()


def test_the_best_exit_is_that_of_a_moving_average() -> None:
    """At 0.8 what was learned goes before the batch: losses of 0.1 and 0.5 before, and of ln 2 and
    0.2877 now, make 0.2186 and 0.4575, so that the first exit teaches; at 0 it is the second."""
    places = torch.zeros(64)
    places[:2] = torch.tensor([0.1, 0.5])
    held = {"round": torch.tensor(300.0), "carried/exits/quality": places}
    by_average = float(ExitDistillation(decay=0.8).loss(TWO, FIRST, held))
    assert by_average == pytest.approx(0.143841, abs=1e-6)  # KL((½, ½) ‖ (¾, ¼))
    assert float(ExitDistillation().loss(TWO, FIRST, held)) == pytest.approx(0.130812, abs=1e-6)


def test_what_is_noted_moves_the_average_and_no_loss() -> None:
    """Two examples of three count, with losses of the first exit of 1 and 3 times ln 2."""
    term, at = ExitDistillation(decay=0.8, weight=0.5, ramp=0), torch.zeros(64, requires_grad=True)
    outputs = {"logits": torch.zeros(3, 2), "logits/block 1": torch.zeros(3, 2)}
    outputs["logits/block 1"][1] = torch.tensor([0.0, log(7)])  # of label 0: ln 8
    batch = {"label": torch.zeros(3, dtype=torch.int64), "mask": torch.tensor([1.0, 1.0, 0.0])}
    losses = term.weight * term.loss(outputs, batch, {"carried/exits/quality": at})
    (noted,) = torch.autograd.grad((losses * batch["mask"]).sum() / 2, [at])
    assert noted[:2].tolist() == pytest.approx([0.5 * 2 * log(2), 0.5 * log(2)])
    first = term.first_carried()["exits/quality"]
    after = term.carry({"exits/quality": first}, {"exits/quality": noted})["exits/quality"]
    assert after[:2].tolist() == pytest.approx([0.2 * 2 * log(2), 0.2 * log(2)])
    again = term.carry({"exits/quality": after}, {"exits/quality": noted})["exits/quality"]
    assert again[:2].tolist() == pytest.approx([0.36 * 2 * log(2), 0.36 * log(2)])
    assert not after[2:].any()


def quality_of(local: Descent, plan: Plan, steps: int) -> torch.Tensor:
    """What the term remembers after some steps of a client."""
    site = open_site(plan)
    client = site.data.clients[0]
    context = Context("run", 0, 1, client, site.data.size(client), steps, seed=5)
    carry, objective = local.begin(site.params(), {}, context), Objective(site.model, site.task)
    objective = replace(objective, given={"round": torch.tensor(0.0)})
    for batch in islice(local.batches(site.data, site.params(), context), steps):
        carry = local.step(carry, batch, objective)
    return carry["carried"]["exits/quality"]


def test_the_average_goes_from_step_to_step_and_not_on_to_the_server(tmp_path: Path) -> None:
    term = {"name": "exits", "decay": 0.8, "ramp": 0}
    plan = blocks_plan(local={"lr": 0.05, "batch_size": 16, "terms": [term]}, rounds=2)
    assert isinstance(plan.local, Descent)
    one, two = (quality_of(plan.local, plan, steps) for steps in (1, 2))
    assert one[:3].min() > 0 and two[:3].min() > one[:3].max() and not two[8:].any()
    site = open_site(plan)
    engine, stacked = Recording(on(site, plan)), Cohort(site)
    alone = [state for state, _ in federate(plan, engine, start(plan, site.params()))][-1]
    assert not any("carried" in name for name in alone.params)
    together = [state for state, _ in federate(plan, stacked, start(plan, site.params()))][-1]
    assert not stacked.alone and distance(together.params, alone.params) < 1e-4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"decay": 1.0}, "decay must be at least 0 and below 1"),
        ({"decay": -0.1}, "decay must be at least 0 and below 1"),
        ({"decay": 0.8, "teacher": "last"}, "leave decay out"),
    ],
)
def test_a_moving_average_of_nothing_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ExitDistillation(**settings)
    with pytest.raises(ValueError, match="two terms remember exits/quality"):
        Descent(terms=(ExitDistillation(decay=0.8), ExitDistillation(decay=0.5)))


def test_moon_compares_one_row_of_features() -> None:
    """Exits of their own give the head a row for each exit; the recurrent layer has one."""
    local = {"lr": 0.05, "terms": ["moon"]}
    with pytest.raises(
        PlanError, match=r'of several exits as rows of a batch: set method.heads = "recurrent"'
    ):
        blocks_plan(local=local)


def test_a_batch_chooses_its_teacher_without_its_padding() -> None:
    """The row that counts is better at the first exit, and the padding, which is worse by more, is
    better at the last."""
    outputs = {"logits": torch.tensor([[0.0, 0.0], [9.0, 0.0]])}
    outputs["logits/block 1"] = torch.tensor([[1.0, 0.0], [-9.0, 0.0]])
    batch = {"label": torch.tensor([0, 0]), "mask": torch.tensor([1.0, 0.0])}
    term = ExitDistillation(ramp=0)
    wanted = term.loss({name: x[:1] for name, x in outputs.items()}, FIRST, {})
    assert float(term.loss(outputs, batch, {})[0]) == pytest.approx(float(wanted))
    assert float(ExitDistillation(ramp=0, teacher="last").loss(outputs, batch, {})[0]) != float(
        wanted
    )


def test_rounds_reach_a_term() -> None:
    """With a ramp of two rounds the second round's distillation counts e^(−5/4)."""
    with_term = {"lr": 0.05, "batch_size": 16, "terms": [{"name": "exits", "ramp": 2}]}
    plan = blocks_plan(rounds=2, cohort=1, local=with_term)
    site = open_site(plan)
    engine = Recording(on(site, plan))
    list(federate(plan, engine, start(plan, site.params())))
    worker = engine.inner.worker  # type: ignore[attr-defined]
    seen = [worker.open(job).objective.given["round"] for job in engine.jobs]
    assert [float(x) for x in seen] == [0.0, 1.0]
    with pytest.raises(PlanError, match="exits teach each other, and this model has one"):
        blocks_plan("head", local=with_term)
    with pytest.raises(PlanError, match="ramp is a number of rounds"):
        blocks_plan(local={"terms": [{"name": "exits", "ramp": -1}]})
    with pytest.raises(PlanError, match="teacher"):
        blocks_plan(local={"terms": [{"name": "exits", "teacher": "first"}]})
    with pytest.raises(PlanError, match="one class each"):
        ExitDistillation().loss({"logits": torch.zeros(2, 3, 4)}, FIRST, {})
