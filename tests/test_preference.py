"""Preference tuning: losses by hand, and the base as the reference."""

import json
import logging
from math import exp, log
from pathlib import Path
from typing import Any

import pytest
import torch
from chatting import (
    ASSISTANT,
    FIVE,
    FOUR,
    IM_END,
    IM_START,
    MARKED,
    ONE,
    PLAIN,
    THREE,
    TWO,
    USER,
    WORDS,
    save_chatter,
    turns,
)
from torch import Tensor

from fedpeft import Cohort, InProcess, PlanError, evaluate, federate, open_site, read_plan, start
from fedpeft.compute.objective import Objective
from fedpeft.core.facts import Fact, offered_by
from fedpeft.core.types import Table, Tensors
from fedpeft.registry import build, names
from fedpeft.rounds.site import Site
from fedpeft.tasks.preference import Preference


@pytest.fixture(scope="session")
def chatter(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_chatter(tmp_path_factory.mktemp("chatter"), PLAIN))


def _task(model: str, **settings: Any) -> Preference:
    return Preference(model, **{"template": "own", "max_length": 32, **settings})


def _loss(loss: str, policy: list[float], base: list[float], beta: float) -> tuple[float, Tensor]:
    """The loss of one pair, and its gradient by both log-likelihoods."""
    mine = torch.tensor([policy], requires_grad=True)
    task = Preference("x", loss=loss, beta=beta)
    [each] = task.losses({"likelihoods": mine}, {"base/likelihoods": torch.tensor([base])})
    [grad] = torch.autograd.grad(each, mine)
    return float(each.detach()), grad[0]


def test_dpo_by_hand() -> None:
    """h = (-3 + 4) - (-5 + 4) = 2, and with beta = 1/2 the loss is -log σ(1) = log(1 + 1/e)."""
    loss, grad = _loss("dpo", [-3.0, -5.0], [-4.0, -4.0], 0.5)
    assert loss == pytest.approx(log(1 + exp(-1)))
    # Eq. 7's gradient: -β·σ(-β·h) of the chosen one, and the opposite of the rejected one
    slope = 0.5 / (1 + exp(1))
    assert grad.tolist() == pytest.approx([-slope, slope])
    assert _loss("dpo", [-7.0, -2.0], [-7.0, -2.0], 0.1)[0] == pytest.approx(log(2))


def test_ipo_by_hand() -> None:
    """h = 2; with beta = 1/2 the aim is 1, and beyond it the gradient turns round."""
    loss, grad = _loss("ipo", [-3.0, -5.0], [-4.0, -4.0], 0.5)
    assert loss == pytest.approx(1.0)
    assert grad.tolist() == pytest.approx([2.0, -2.0])
    loss, grad = _loss("ipo", [-3.0, -5.0], [-4.0, -4.0], 0.1)
    assert loss == pytest.approx(9.0)
    assert grad.tolist() == pytest.approx([-6.0, 6.0])


def test_margin_and_accuracy_by_hand() -> None:
    task = Preference("x", beta=0.5)
    outputs = {"likelihoods": torch.tensor([[-3.0, -5.0], [-6.0, -5.0], [-4.0, -4.0]])}
    metrics = task.metrics(outputs, {"base/likelihoods": torch.full((3, 2), -4.0)})
    assert {name: list(map(float, x)) for name, x in metrics.items() if name != "loss"} == {
        "margin": [1.0, -0.5, 0.0],
        "accuracy": [1.0, 0.0, 0.5],
    }


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_what_counts_is_the_answer_after_what_both_have_in_common(
    template: str, tmp_path: Path
) -> None:
    task = _task(str(save_chatter(tmp_path, template)))
    common = turns("one", "two", "three")
    table = Table(
        {
            "chosen": [[*common, {"role": "assistant", "content": "four"}]],
            "rejected": [json.dumps([*common, {"role": "assistant", "content": "five five"}])],
        }
    )
    rows = task.prepare(table)
    before = [
        *(IM_START, USER, ONE, IM_END, IM_START, ASSISTANT, TWO, IM_END),
        *(IM_START, USER, THREE, IM_END, IM_START, ASSISTANT),
    ]
    assert rows["input_ids"].shape == (1, 2, 17)
    assert rows["input_ids"][0, 0, :16].tolist() == [*before, FOUR, IM_END]
    assert rows["labels"].tolist() == [
        [[-100] * 14 + [FOUR, IM_END, -100], [-100] * 14 + [FIVE, FIVE, IM_END]]
    ]
    assert task.openings(table, 2) == [(before, "four")]


def test_every_way_to_write_a_pair_has_the_same_rows(chatter: str) -> None:
    answers = [[{"role": "assistant", "content": word}] for word in ("two", "three")]
    ways: list[dict[str, Any]] = [
        {"prompt": ["one"], "chosen": ["two"], "rejected": ["three"]},
        {"prompt": [turns("one")], "chosen": [answers[0]], "rejected": [answers[1]]},
        {"prompt": ["one"], "chosen": [turns("one", "two")], "rejected": [turns("one", "three")]},
        {"chosen": [turns("one", "two")], "rejected": [turns("one", "three")]},
        {"prompt": ["one"], "chosen": [answers[0][0]], "rejected": [answers[1][0]]},
    ]
    made = [_task(chatter).prepare(Table(way)) for way in ways]
    for rows in made:
        assert {n: x.tolist() for n, x in rows.items()} == {
            n: x.tolist() for n, x in made[0].items()
        }


def test_pairs_that_tell_nothing_are_counted_by_reason(chatter: str) -> None:
    task = _task(chatter, max_length=9)
    long = "one two three four five six one"
    table = Table(
        {
            "prompt": ["one", "one", "", None, long, "one"],
            "chosen": ["two", "two", "two", "two", "two", ""],
            "rejected": ["three", "two", "three", "three", "three", "three"],
        }
    )
    assert task.unfit(table) == {
        "pairs of answers that are the same, or one goes on from the other": [1],
        "pairs of answers that lack a prompt or an answer": [2, 3, 5],
        "pairs of answers that have an answer beyond max_length = 9": [4],
    }


PAIRS = 48


def save_pairs(folder: Path) -> Path:
    """The number after the asked one, against another one."""
    file = folder / "pairs.jsonl"
    rows = [
        {
            "prompt": WORDS[k % 6],
            "chosen": WORDS[(k + 1) % 6],
            "rejected": WORDS[(k + 2 + k // 6 % 4) % 6],
            "who": ("ann", "bob")[k // 6 % 2],
        }
        for k in range(PAIRS)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def _plan(chatter: str, folder: Path, **changes: Any) -> Any:
    lora = {"name": "lora", "target": ["q_proj", "v_proj"]}
    task = {"name": "preference", "model": chatter, "template": "own", "max_length": 16}
    return read_plan(
        {
            "task": {**task, **changes.pop("task", {})},
            "data": {"name": "table", "path": str(save_pairs(folder)), "label": "none"},
            "partition": {"name": "column", "column": "who"},
            "method": changes.pop("method", lora),
            "local": {
                "lr": 0.02,
                "batch_size": 8,
                "optimizer": "adamw",
                **changes.pop("local", {}),
            },
            "cohort": 2,
            **changes,
        }
    )


def _likelihoods(site: Site, params: Tensors) -> Tensor:
    """Of the held-out pairs, by a model that holds these tensors."""
    model = site.plan.model(site.classes).eval()
    model.load_state_dict({**model.state_dict(), **params})
    [batch] = site.data.held_out()
    logits = [
        model(input_ids=batch["input_ids"][:, k], attention_mask=batch["attention_mask"][:, k])
        for k in (0, 1)
    ]
    chances = torch.stack([one.logits.log_softmax(-1) for one in logits], 1)
    told, ids = batch["labels"][:, :, 1:], batch["input_ids"][:, :, 1:]
    each = chances[:, :, :-1].gather(-1, ids[..., None])[..., 0]
    return (each * (told != -100)).sum(-1).detach()


@pytest.mark.parametrize("method", ["lora", "full", "head"])
def test_the_reference_is_the_base_in_every_round(
    method: str, chatter: str, tmp_path: Path
) -> None:
    """Held-out margins after two rounds are those that whole models of both have."""
    spec: Any = {
        "lora": {"name": "lora", "target": ["q_proj", "v_proj"]},
        "full": "full",
        "head": {"name": "head", "head": "lm_head"},
    }[method]
    plan = _plan(chatter, tmp_path, method=spec, rounds=2, task={"beta": 0.5}, local={"epochs": 3})
    site = open_site(plan)
    begun = start(plan, site.params())
    first = evaluate(site.task, site.model, begun.params, site.data.held_out())
    assert first["loss"].value == pytest.approx(log(2), abs=1e-5)
    assert first["margin"].value == pytest.approx(0, abs=1e-5)
    found = list(federate(plan, InProcess(site), begun))
    last = found[-1][0].params
    ratio = _likelihoods(site, last) - _likelihoods(site, begun.params)
    gain = ratio[:, 0] - ratio[:, 1]
    measured = evaluate(site.task, site.model, last, site.data.held_out())
    assert abs(float(gain.mean())) > 1e-3
    assert measured["margin"].value == pytest.approx(0.5 * float(gain.mean()), rel=1e-3)
    assert measured["accuracy"].value == pytest.approx(float((gain > 0).float().mean()))
    [batch] = site.data.held_out()
    objective = Objective(site.model, site.task)
    assert torch.allclose(
        objective(last, batch), -torch.nn.functional.logsigmoid(0.5 * gain), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_a_federation_learns_which_answer_is_better(
    loss: str, chatter: str, tmp_path: Path
) -> None:
    plan = _plan(chatter, tmp_path, task={"loss": loss, "beta": 0.5}, rounds=3, local={"epochs": 3})
    site = open_site(plan)
    found = list(federate(plan, InProcess(site), start(plan, site.params())))
    assert [ledger.failed for _, ledger in found] == [{}, {}, {}]
    after = evaluate(site.task, site.model, found[-1][0].params, site.data.held_out())
    assert after["margin"].value > 0.1
    assert after["accuracy"].value > 0.6


def test_other_engines_and_gradients_of_each_pair_agree(chatter: str, tmp_path: Path) -> None:
    plan = _plan(chatter, tmp_path, rounds=1)
    site = open_site(plan)
    begun = start(plan, site.params())
    alone, _ = next(federate(plan, InProcess(site), begun))
    together, _ = next(federate(plan, Cohort(site), begun))
    for name, x in alone.params.items():
        torch.testing.assert_close(together.params[name], x, rtol=1e-3, atol=1e-5)
    batch = next(iter(site.data.training("ann")))
    objective = Objective(site.model, site.task)
    whole, _, _ = objective.gradient(alone.params, batch)
    each = objective.gradients(alone.params, batch)
    for name, x in whole.items():
        torch.testing.assert_close(each[name].mean(0), x, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(names("method")) - {"early_exits"}))  # has classes
def test_a_method_says_so_if_it_does_not_start_from_the_base(name: str, chatter: str) -> None:
    """And preference tuning refuses it then."""
    every: dict[str, dict[str, Any]] = {
        "lora_xs": {"rank": 2},
        "head": {"head": "lm_head"},
    }
    settings = every.get(name, {})
    moves = Fact.MOVES_START in offered_by(build("method", {"name": name, **settings}))
    plan: dict[str, Any] = {
        "task": {"name": "preference", "model": chatter, "template": "own", "max_length": 16},
        "method": {"name": name, **settings},
    }
    if moves:
        with pytest.raises(PlanError, match="preference tuning compares with the base"):
            read_plan(plan)
        return
    # this model has no bias, and no new head to make exits of; both start as the base
    if name in ("bias", "early_exits"):
        return
    ids = {"input_ids": torch.tensor([[ONE, TWO, THREE]])}
    made = read_plan(plan).model(()).eval()
    base = read_plan({**plan, "method": "full"}).model(()).eval()
    torch.testing.assert_close(made(**ids).logits, base(**ids).logits, rtol=1e-4, atol=1e-5)


def test_bad_settings(chatter: str) -> None:
    for settings, match in (
        ({"loss": "kto"}, "no loss called 'kto'"),
        ({"beta": 0.0}, "beta must be positive and finite"),
        ({"beta": float("inf")}, "beta must be positive and finite"),
        ({"template": "none"}, "no template called 'none'"),
        ({"max_length": 1}, "at least 2, got 1"),
    ):
        with pytest.raises(PlanError, match=match):
            read_plan({"task": {"name": "preference", "model": chatter, **settings}})
    with pytest.raises(PlanError, match="distillation compares logits"):
        read_plan(
            {
                "task": {"name": "preference", "model": chatter},
                "local": {"terms": ["distillation"]},
            }
        )


def test_what_is_cut_off_is_told(chatter: str, caplog: pytest.LogCaptureFixture) -> None:
    table = Table({"prompt": ["one"], "chosen": ["two three"], "rejected": ["four"]})
    with caplog.at_level(logging.WARNING, "fedpeft"):
        rows = _task(chatter, max_length=8).prepare(table)
    assert (rows["labels"] != -100).sum(-1).tolist() == [[2, 2]]
    assert caplog.messages == [
        "1 of 2 answers with their prompts are longer than max_length = 8 tokens: 1 tokens are cut "
        "off their ends, 1 of which the assistant says"
    ]
