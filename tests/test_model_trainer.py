"""A client's training by a trainer that asks for the whole model."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rounds import distance, last, run

from fedpeft import PlanError, open_site, read_plan
from fedpeft.compute.model_copy import checksums, copy_model
from fedpeft.core.tensors import equal
from fedpeft.rounds.site import Site

TEXTS = [f"Tom and {name} saw a {what}." for name in ("Lily", "Ben") for what in ("cat", "dog")]
TEXTS += ["The sun was up.", "She had a red ball in her bag.", "Ben ran."]
PLAN: dict[str, Any] = {
    "task": {"name": "causal-lm", "max_length": 64},
    "data": {
        "name": "memory",
        "train": {"text": TEXTS},
        "test": {"text": TEXTS[:2]},
        "label": "none",
    },
    "partition": {"name": "lists", "clients": {"a": [0, 1], "b": [2, 3, 4], "c": [5, 6]}},
    "method": {"name": "lora", "rank": 2},
    "rounds": 1,
    "cohort": 3,
}
SGD = {"name": "sgd", "momentum": 0.0, "nesterov": False}
WHOLE = {"lr": 0.05, "batch_size": 100, "epochs": 2, "optimizer": SGD}
TRL = pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed")
SFT: dict[str, Any] = {
    "learning_rate": 0.05,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
}


@pytest.fixture
def stories(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model that a plan of this task has by default."""
    monkeypatch.setenv("FEDPEFT_DATA", str(real_data))


def by(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": "model_trainer", "trainer": f"own_trainers:{name}", "arguments": arguments}


def site_of(local: Mapping[str, Any], **changes: Any) -> Site:
    return open_site(read_plan({**PLAN, "local": local, **changes}))


@pytest.mark.usefixtures("stories")
@pytest.mark.parametrize(
    "method",
    [
        {"name": "lora", "rank": 2},
        *(
            pytest.param(one, marks=pytest.mark.slow)
            for one in (
                {"name": "rslora", "rank": 2},
                {"name": "dora", "rank": 2},
                {"name": "head", "head": "lm_head"},
                {"name": "full"},
                {"name": "ia3"},
                {"name": "adapter"},
            )
        ),
    ],
    ids=lambda method: method["name"],
)
def test_the_models_own_loss_takes_the_steps_of_descent(method: dict[str, Any]) -> None:
    """The mean loss of each text, two steps on all of them, two rounds."""
    changes: dict[str, Any] = {"method": method}
    own, plain = site_of(by("plain", steps=2), **changes), site_of(WHOLE, **changes)
    base = {name: x.clone() for name, x in own.model.state_dict().items()}
    theirs, ours = run(own, own.plan), run(plain, plain.plan)
    moved = distance(last(ours), {n: x for n, x in own.params().items()})
    assert distance(last(theirs), last(ours)) < 1e-5 < 1e-3 < moved
    assert not theirs[0][1].failed and equal(base, dict(own.model.state_dict()))
    assert [*theirs[0][1].up] == ["a", "b", "c"]
    assert theirs[0][1].metrics["loss"].weight == 7.0


@pytest.mark.usefixtures("stories")
def test_who_writes_to_the_base_fails_alone_and_the_base_is_made_anew() -> None:
    """It writes through `.data`, after which the other clients of both rounds train as before."""
    wrong, right = (
        site_of(by("plain", writes_in=writes_in, size=3), rounds=2) for writes_in in (0, -1)
    )
    base = checksums(wrong.model, {})
    rounds = run(wrong, wrong.plan)  # of two rounds
    assert list(rounds[0][1].failed) == ["b"] and not rounds[1][1].failed
    assert "frozen weights, such as" in rounds[0][1].failed["b"]
    assert checksums(wrong.model, {}) == base
    # the second round goes on as if nobody had written
    assert equal(last(run(right, right.plan, state=rounds[0][0])), rounds[-1][0].params)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"task": {"name": "causal-lm", "packing": True}},
            "leave task.packing out",
        ),
        ({"compute": {"micro_batch": 1}}, "compute.micro_batch has no effect"),
        ({"attacks": ["sign_flip"]}, "reads the records themselves: leave attacks out"),
        ({"task": {"name": "parts:Points"}, "method": "full"}, "needs a model of transformers"),
    ],
    ids=["packing", "micro_batch", "attacks", "task"],
)
def test_what_would_have_no_effect_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        read_plan({**PLAN, "local": by("plain"), **changes})


@pytest.mark.usefixtures("stories")
def test_a_copy_shares_what_is_frozen_and_nothing_else() -> None:
    site = site_of(by("plain"))
    copy = copy_model(site.model, site.params(), {})
    own = dict(copy.named_parameters())
    for name, x in site.model.named_parameters():
        trained = name in site.params()
        assert (own[name].data_ptr() == x.data_ptr()) is not trained
        assert own[name] is not x and own[name].requires_grad is trained
    copy.config.use_cache = not site.model.config.use_cache  # type: ignore[union-attr]
    assert copy.config.use_cache is not site.model.config.use_cache  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TRL's own
@TRL
@pytest.mark.usefixtures("stories")
def test_trls_trainer_takes_the_steps_of_descent() -> None:
    """One text a batch in the order of the records, whose mean loss is the plan's too."""
    one: dict[str, Any] = {"partition": {"name": "lists", "clients": {"a": [0], "b": [3]}}}
    own = site_of(by("sft", **SFT), **one)
    plain = site_of({**WHOLE, "batch_size": 1}, **one)
    theirs, ours = run(own, own.plan), run(plain, plain.plan)
    assert not theirs[0][1].failed
    assert distance(last(theirs), last(ours)) < 1e-5 < 1e-3 < distance(last(ours), own.params())
    told = theirs[0][1].metrics["loss"].value
    assert told == pytest.approx(ours[0][1].metrics["loss"].value, rel=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TRL's own
@TRL
@pytest.mark.usefixtures("stories")
def test_trls_trainer_of_preferences_compares_with_the_start() -> None:
    """Its loss begins at log 2 in each round only if the reference is the received model; here it
    is the start, so that the second round's is below."""
    pairs = {
        "prompt": ["Tom saw", "Ben saw", "Lily saw"],
        "chosen": [" a cat.", " a dog.", " the sun."],
        "rejected": [" x y z.", " z z z.", " q q."],
    }
    data = {"name": "memory", "train": pairs, "test": pairs, "label": "none"}
    site = site_of(
        by(
            "dpo", learning_rate=0.05, num_train_epochs=1, optim="sgd", lr_scheduler_type="constant"
        ),
        data=data,
        task={"name": "preference", "model": "stories260k"},
        partition={"name": "lists", "clients": {"a": [0, 1, 2]}},
        cohort=1,
        rounds=2,
    )
    losses = [ledger.metrics["loss"].value for _, ledger in run(site, site.plan)]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3) and losses[1] < losses[0] - 1e-3
