"""A client's training by a trainer of the user's own."""

import random
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rounds import distance, last, run

from fedpeft import PlanError, open_site, read_plan
from fedpeft.core.facts import Fact
from fedpeft.core.tensors import equal
from fedpeft.core.types import Context
from fedpeft.engines.processes import Processes
from fedpeft.engines.vectorized.engine import Cohort, unfit
from fedpeft.local.trainer import ClientModel, OwnTrainer
from fedpeft.oneshot.trajectories import check_comparable
from fedpeft.plan.checks import Holder, check_holders, holder_of
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site
from fedpeft.storage.client_memory import Folder

PLAN: dict[str, Any] = {
    "task": {"name": "parts:Points"},
    "data": {"name": "parts:Blobs", "examples": 240},
    "partition": {"name": "dirichlet", "clients": 4, "alpha": 10.0},
    "method": "full",
    "rounds": 2,
    "cohort": 4,
}
PLAIN = {"name": "sgd", "momentum": 0.0, "nesterov": False}
WHOLE = {"lr": 0.1, "batch_size": 1000, "optimizer": PLAIN}
HUGGING: dict[str, Any] = {
    "learning_rate": 0.1,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 1000,
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
}


def by(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": "trainer", "trainer": f"own_trainers:{name}", "arguments": arguments}


def site_of(local: Mapping[str, Any], network: str = "linear", **changes: Any) -> Site:
    task = {"name": "parts:Points", "network": network}
    return open_site(read_plan({**PLAN, "task": task, "local": local, **changes}))


@pytest.mark.parametrize("network", ["convolution", "tied"])
def test_hugging_faces_trainer_takes_the_steps_of_descent(network: str) -> None:
    """Three steps on all examples, with running statistics and shared weights too."""
    site = site_of({**WHOLE, "epochs": 3}, network, rounds=1)
    own = site_of(by("make", **HUGGING), network, rounds=1)
    rounds, plain = run(own, own.plan), run(site, site.plan)
    assert distance(last(rounds), last(plain)) < 1e-6
    # the same bytes, but that the loss in the header may have a digit more
    for client, count in plain[0][1].up.items():
        assert abs(rounds[0][1].up[client] - count) <= 8
    # the mean loss of the three passes, as descent tells it
    ours, theirs = (one[0][1].metrics["loss"] for one in (rounds, plain))
    assert ours.value == pytest.approx(theirs.value, rel=1e-5) and ours.weight == theirs.weight


@pytest.mark.slow
def test_accumulated_batches_are_the_step_of_the_whole() -> None:
    """Two batches of 30, accumulated, are one of 60: the loss takes any factor of a trainer's."""
    even: dict[str, Any] = {"partition": {"name": "iid", "clients": 3}, "cohort": 3}
    ends = []
    for size, count in ((60, 1), (30, 2)):
        each = {"per_device_train_batch_size": size, "gradient_accumulation_steps": count}
        site = site_of(by("make", **{**HUGGING, **each, "num_train_epochs": 1}), **even)
        assert {site.data.size(client) for client in site.data.clients} == {60}
        ends.append(last(run(site, site.plan)))
    assert distance(ends[1], ends[0]) < 1e-6


class Bowl:
    """ℓ(w) = a/2·(w − x)², as `parts.Bowls`, with its gradient by hand."""

    def gradient(self, params: Any, batch: Any, added: Any = None) -> Any:
        apart = params["w"].detach() - batch["x"]
        slope = (batch["a"] * apart * batch["mask"]).sum() / batch["mask"].sum()
        return {"w": slope}, batch["a"] / 2 * apart**2, {}


def test_a_step_by_hand() -> None:
    """At w = 1, a = (2, 4) and x = (0, 2): slopes 2 and −4, mean −1; losses 1 and 2, mean 1.5."""
    batch = {
        "x": torch.tensor([0.0, 2.0, 9.0]),
        "a": torch.tensor([2.0, 4.0, 1.0]),
        "mask": torch.tensor([1.0, 1.0, 0.0]),
    }
    model = ClientModel({"w": torch.tensor(1.0)}, batch, Bowl())  # type: ignore[arg-type]
    told = model(torch.arange(3))["loss"]
    (told * 10).backward()  # a scaler's factor reaches the gradient
    assert float(told.detach()) == 1.5 and float(model.weights.w.grad) == -10.0  # type: ignore[arg-type]
    assert (model.total, model.seen) == (3.0, 2.0)
    local: Any = OwnTrainer(trainer="own_trainers:loop", arguments={"lr": 0.5})
    start = {"w": torch.tensor(1.0)}
    carry = local.step(local.begin(start, {}, Context("r", 0, 2, "a", 3, 1, 7)), batch, Bowl())
    delta, memory, totals = local.finish(carry, start, {})
    assert float(delta["w"]) == 0.5 and memory == {} and float(start["w"]) == 1.0
    assert float(totals["loss"]) == 3.0 and float(totals["examples"]) == 2.0


def test_a_loss_asked_for_without_gradients_is_not_counted() -> None:
    batch = {"x": torch.zeros(2), "a": torch.ones(2), "mask": torch.ones(2)}
    model = ClientModel({"w": torch.tensor(1.0)}, batch, Bowl()).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        assert float(model(torch.arange(2))["loss"]) == 0.5
    assert model.seen == 0


def _sizes() -> dict[str, int]:
    data = site_of(by("loop")).data
    return {client: data.size(client) for client in data.clients}


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("nothing", "returned NoneType: return an object with a method train()"),
        ("still", "changed no tensor"),
        ("drops", "left 'head.weight' with another shape or type, or none"),
        ("reshapes", "left 'head.weight' with another shape or type, or none"),
        ("raises", "the trainer's own words"),
        ("leaves", "left with exit(3): raise an error instead"),
    ],
)
def test_a_trainer_that_goes_wrong_costs_its_client_alone(how: str, words: str) -> None:
    sizes = {name: size for name, size in _sizes().items() if [*_sizes().values()].count(size) == 1}
    victim = next(iter(sizes))
    site = site_of(by("broken", size=sizes[victim], how=how), "linear", rounds=1)
    base = {name: x.clone() for name, x in site.model.state_dict().items()}
    [(_, ledger)] = run(site, site.plan)
    assert list(ledger.failed) == [victim] and words in ledger.failed[victim]
    assert "\n" not in ledger.failed[victim] and len(ledger.up) == 3
    assert equal(base, dict(site.model.state_dict()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TRL's own, of what it will take away
@pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed")
def test_a_trainer_of_trls_asks_for_a_model_of_transformers() -> None:
    """The guide says so: it fails alone, and not in silence."""
    sizes = _sizes()
    victim = next(name for name, size in sizes.items() if [*sizes.values()].count(size) == 1)
    site = site_of(by("supervised", size=sizes[victim]), "linear", rounds=1)
    [(_, ledger)] = run(site, site.plan)
    assert list(ledger.failed) == [victim]
    assert "'ClientModel' object has no attribute 'config'" in ledger.failed[victim]


def _streams() -> tuple[Any, ...]:
    """Where the global streams of chance are."""
    numbers: Any = np.random.get_state()  # noqa: NPY002
    return random.getstate(), numbers[1].tolist(), torch.get_rng_state().tolist()


def test_it_leaves_no_trace_and_comes_out_again(capsys: pytest.CaptureFixture[str]) -> None:
    """The streams of chance are as before, nothing is on standard output, and a run that goes on
    from its first round ends in the same bits."""
    site = site_of(by("noisy"))
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    want = _streams()
    rounds = run(site, site.plan)
    assert _streams() == want
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("a line of a trainer's log") == 8
    seeds = {line.split()[-3] for line in printed.err.splitlines() if "log" in line}
    assert len(seeds) == 8  # one of each client and round
    again = run(site, site.plan, state=rounds[0][0])
    assert equal(last(again), last(rounds))


def test_together_it_trains_one_after_another() -> None:
    site = site_of(by("noisy"))
    assert "one client at a time" in unfit(site)
    engine = Cohort(site)
    got = list(federate(site.plan, engine, start(site.plan, site.params())))
    assert engine.alone and equal(last(got), last(run(site, site.plan)))


@pytest.mark.slow
def test_processes_give_the_same_bits() -> None:
    site = site_of(by("noisy"))
    engine = Processes(site, workers=1)
    try:
        got = list(federate(site.plan, engine, start(site.plan, site.params())))
    finally:
        engine.close()
    assert equal(last(got), last(run(site, site.plan)))


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"method": {"name": "head"}, "task": {"name": "parts:Points", "network": "hidden"}}, ""),
        ({"personal": ["*.bias"]}, "bias"),
    ],
    ids=["head", "personal"],
)
def test_what_is_trained_is_what_the_plan_says(
    changes: Mapping[str, Any], kept: str, tmp_path: Path
) -> None:
    ends = []
    for name, local in (("descent", WHOLE), ("trainer", by("loop"))):
        site = open_site(read_plan({**PLAN, "local": local, **changes}))
        ends.append(last(run(site, site.plan, Folder(tmp_path / name))))
    assert distance(ends[1], ends[0]) < 1e-6


def test_no_noise_hides_an_example_of_it() -> None:
    noise = Holder("DpSgd", frozenset({Fact.EXAMPLE_NOISE}), {}, {})
    own = holder_of(OwnTrainer(trainer="own_trainers:loop"))
    with pytest.raises(PlanError, match=r"^DpSgd hides each example by noise, and a trainer of"):
        check_holders([own, noise])


def test_a_diagnosis_cannot_count_its_epochs() -> None:
    with pytest.raises(PlanError, match=r"^OwnTrainer decides by itself how long a round is"):
        check_comparable(read_plan({**PLAN, "local": by("loop")}))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module:make", "cannot be imported: No module"),
        ("own_trainers:no_such_function", "cannot be imported: module 'own_trainers' has no"),
        ("own_trainers:NO_FUNCTION", "is of type int: name a function"),
    ],
)
def test_a_name_that_makes_no_trainer_is_told_before_anybody_trains(name: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        OwnTrainer(trainer=name).check_run()


@pytest.mark.parametrize("name", ["", "make", "own_trainers:", ":make"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(PlanError, match="name the function that makes your trainer"):
        read_plan({"local": {"name": "trainer", "trainer": name}})
