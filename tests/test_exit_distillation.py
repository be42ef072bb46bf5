"""Exits that teach each other, by hand and in rounds."""

import pytest
import torch
from method_models import Classify
from rounds import Recording, on
from test_early_exits import blocks_plan

from fedpeft import PlanError, federate, open_site, start
from fedpeft.compute.further import losses_of
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
