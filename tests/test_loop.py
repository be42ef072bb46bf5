"""Laws of a whole round: what goes in, what comes out, and what must not matter."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from method_models import losses_of
from rounds import (
    FEEDBACK,
    MEMORIES,
    SCAFFOLD,
    Recording,
    good,
    last,
    merged,
    on,
    plan_of,
    points_plan,
    run,
)

from fedpeft.compute.scores import evaluate
from fedpeft.core.seeds import fold, generator
from fedpeft.core.tensors import equal, layout, scale
from fedpeft.core.types import Job, Reply, State, Update
from fedpeft.local.descent import Descent
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.client import Worker
from fedpeft.rounds.loop import Ledger, federate, start
from fedpeft.rounds.post import encode_start
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Folder, Nowhere
from fedpeft.wire.payloads import unpack


def by_hand(site: Site, plan: Plan, client: str) -> dict[str, torch.Tensor]:
    """A plain loop with torch's own optimizer on a model of its own: the tensors after one round,
    buffers included."""
    model = deepcopy(site.model).train()
    trained, local = [p for p in model.parameters() if p.requires_grad], plan.local
    assert isinstance(local, Descent)
    optimizer = torch.optim.SGD(trained, lr=local.lr, momentum=0.9, nesterov=True)
    seed = fold(fold(plan.seed, "round", 0), "client", client)
    for batch in site.data.batches(
        client, local.batch_size, local.epochs, generator(seed, "batches")
    ):
        optimizer.zero_grad()
        losses_of(plan.task, model, batch).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {n: x.detach() for n, x in model.state_dict().items()}


@pytest.mark.parametrize("method", ["head", "lora", "full"])
def test_one_client_and_one_round_are_plain_local_training(method: str) -> None:
    plan = plan_of(
        method=method, rounds=1, cohort=1, local={"lr": 0.02, "batch_size": 16, "epochs": 2}
    )
    site = open_site(plan)
    pristine = {n: x.clone() for n, x in site.model.state_dict().items()}
    [(state, ledger)] = run(site, plan)
    [client] = ledger.weights
    want = by_hand(site, plan, client)
    for name, x in state.params.items():
        torch.testing.assert_close(x, want[name], rtol=0, atol=1e-6)
        assert not torch.equal(x, pristine[name]), f"{name} has not moved"
    assert equal(site.model.state_dict(), pristine), "the shared model was written to"


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(digits: Site) -> None:
    plan = plan_of()
    assert equal(last(run(digits, plan)), last(run(digits, plan)))
    other = run(digits, replace(plan, seed=4))
    assert not equal(last(run(digits, plan)), last(other))


@pytest.mark.parametrize(
    "method", ["head", {"name": "lora", "dropout": 0.5}], ids=["head", "dropout"]
)
def test_a_job_leaves_no_trace_in_the_next(method: object) -> None:
    plan = plan_of(method=method, local={"lr": 0.05, "optimizer": "adamw"})
    site = open_site(plan)
    payload = encode_start(plan, start(plan, site.params()))
    first, second = (
        Job("r", 0, client, "fit", 7, None, payload) for client in site.data.clients[:2]
    )
    used = Worker(site, Nowhere())
    assert isinstance(used(first), Reply)
    draws = torch.get_rng_state()
    assert used(second) == Worker(open_site(plan), Nowhere())(second)
    assert torch.equal(torch.get_rng_state(), draws), "the process's own random numbers moved on"


@MEMORIES
@pytest.mark.parametrize("split", [1, 3])
def test_a_resume_is_not_noticed(
    points: Site, tmp_path: Path, changes: dict[str, object], split: int
) -> None:
    plan = points_plan(**changes, cohort=12)
    whole = run(points, plan, Folder(tmp_path / "whole"))
    rounds = federate(
        plan, on(points, plan, Folder(tmp_path / "cut")), start(plan, points.params())
    )
    state = [next(rounds)[0] for _ in range(split)][-1]
    assert equal(state.flat, whole[split - 1][0].flat)
    rest = run(points, plan, Folder(tmp_path / "cut"), state)
    assert equal(last(rest), last(whole)) and rest[-1][0].accepted == whole[-1][0].accepted


@MEMORIES
def test_a_half_done_round_is_done_again_and_no_memory_advances_twice(
    points: Site, tmp_path: Path, changes: dict[str, object]
) -> None:
    plan = points_plan(**changes, cohort=16)  # most take part again and again
    whole = run(points, plan, Folder(tmp_path / "whole"))
    store = Folder(tmp_path / "cut")
    first = next(federate(plan, on(points, plan, store), start(plan, points.params())))[0]
    recording = Recording(on(points, plan, store))
    list(zip(range(1), federate(plan, recording, first), strict=False))
    half = recording.jobs[:10]
    fresh = Folder(tmp_path / "fresh")
    state = next(federate(plan, on(points, plan, fresh), start(plan, points.params())))[0]
    # And here everything stops: ten replies are stored, none counted.
    done = list(on(points, plan, fresh).run(half))
    assert done == recording.replies[:10]
    again = run(points, plan, fresh, state)
    assert equal(last(again), last(whole))


def test_asked_again_a_client_sends_what_it_has_and_does_not_train(
    points: Site, tmp_path: Path
) -> None:
    plan, store = points_plan(**FEEDBACK), Folder(tmp_path)
    payload = plan.downlink.encode(points.params())
    job = Job("run", 0, points.data.clients[0], "fit", 7, None, payload)
    first = Worker(replace(points, plan=plan), store)(job)
    assert isinstance(first, Reply)
    would_train_otherwise = replace(points, plan=points_plan(**FEEDBACK, local={"lr": 0.5}))
    assert Worker(would_train_otherwise, store)(job) == first
    assert Worker(would_train_otherwise, store)(replace(job, run="another")) != first


def test_the_server_holds_the_mean_of_what_its_clients_remember(
    points: Site, tmp_path: Path
) -> None:
    """The invariant of SCAFFOLD, round after round, with every client's memory read from its
    file."""
    plan, store = points_plan(**SCAFFOLD, cohort=24, weighting="uniform"), Folder(tmp_path)
    for state, ledger in run(points, plan, store):
        assert state.accepted == dict.fromkeys(points.data.clients, ledger.round)
    for name in points.params():
        every = [
            store.load(client, state.accepted[client])[f"local/{name}"]
            for client in points.data.clients
        ]
        assert all(bool(x.any()) for x in every)
        torch.testing.assert_close(
            state.shared["c"][name], torch.stack(every).mean(0), rtol=0, atol=1e-5
        )


def test_density_1_is_dense_and_feedback_then_changes_nothing(digits: Site, tmp_path: Path) -> None:
    dense = last(run(digits, plan_of()))
    whole = {"name": "topk", "density": 1.0}
    assert equal(last(run(digits, plan_of(uplink=whole))), dense)
    plan = plan_of(uplink=whole, stages=["error_feedback"])
    assert equal(last(run(digits, plan, Folder(tmp_path))), dense)


def test_mu_0_is_plain_averaging(digits: Site) -> None:
    prox = {"name": "prox", "mu": 0.0}
    local = {"lr": 0.05, "batch_size": 16}
    assert equal(
        last(run(digits, plan_of(local={**local, "correction": prox}))),
        last(run(digits, plan_of())),
    )
    pulled = {"name": "prox", "mu": 1.0}
    assert not equal(
        last(run(digits, plan_of(local={**local, "correction": pulled}))),
        last(run(digits, plan_of())),
    )


def test_the_first_round_of_scaffold_is_plain_averaging(digits: Site, tmp_path: Path) -> None:
    plan = plan_of(**SCAFFOLD, rounds=1)
    [(state, _)] = run(digits, plan, Folder(tmp_path))
    assert equal(state.params, last(run(digits, plan_of(rounds=1))))


def test_the_ledger_has_the_bytes_that_crossed(digits: Site) -> None:
    plan = plan_of(uplink="int8", downlink="bfloat16", rounds=2)
    engine = Recording(on(digits, plan))
    ledgers = [ledger for _, ledger in federate(plan, engine, start(plan, digits.params()))]
    assert sum(ledger.bytes_down for ledger in ledgers) == sum(
        len(job.payload) for job in engine.jobs
    )
    assert sum(ledger.bytes_up for ledger in ledgers) == sum(
        len(reply.payload) for reply in engine.replies if isinstance(reply, Reply)
    )
    entries = sum(x.numel() for x in digits.params().values())
    for ledger in ledgers:  # int8: an entry a byte, and a scale for weight and bias
        assert ledger.bytes_up - ledger.up_headers == 3 * (entries + 2 * 4)


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_what_a_client_counts(points: Site, weighting: str) -> None:
    plan = points_plan(rounds=1, weighting=weighting)
    recording = Recording(on(points, plan))
    [(state, ledger)] = federate(plan, recording, start(plan, points.params()))
    sizes = {client: float(points.data.size(client)) for client in ledger.weights}
    assert len(set(sizes.values())) > 1, "clients of one size would not tell the two apart"
    assert ledger.weights == (sizes if weighting == "examples" else dict.fromkeys(sizes, 1.0))
    updates = [
        unpack(r.client, r.payload, plan.uplink, layout(points.params()))
        for r in good(recording, recording.jobs)
    ]
    total = sum(ledger.weights.values())
    want = [scale(update.delta, ledger.weights[update.client] / total) for update in updates]
    for name, x in points.params().items():
        torch.testing.assert_close(
            state.params[name], x + sum(one[name] for one in want), rtol=0, atol=1e-6
        )
    loss = ledger.metrics["loss"]
    assert loss.weight == sum(sizes.values())
    assert loss.total == pytest.approx(sum(update.metrics["loss"].total for update in updates))


def test_a_state_is_not_changed_by_the_rounds_after_it(points: Site) -> None:
    plan = points_plan(server="adam")
    seen = []
    for state, _ in federate(plan, on(points, plan), start(plan, points.params())):
        seen.append((state, deepcopy(state)))
    assert len(seen) == 4
    for state, copy in seen:
        assert (
            equal(state.params, copy.params)
            and all(equal(own, copy.memory[owner]) for owner, own in state.memory.items())
            and state.round == copy.round
        )


CONVOLUTION = {
    "task": {"name": "parts:Points", "network": "convolution"},
    "data": {"name": "parts:Blobs"},
    "partition": {"name": "dirichlet", "clients": 3, "alpha": 100.0},
    "method": "full",
    "local": {"lr": 0.05, "batch_size": 8, "epochs": 2},
    "rounds": 1,
    "cohort": 1,
}


def test_the_statistics_of_batchnorm_travel_and_the_shared_model_keeps_its_own() -> None:
    plan = read_plan(CONVOLUTION)
    site = open_site(plan)
    pristine = {n: x.clone() for n, x in site.model.state_dict().items()}
    [(state, ledger)] = run(site, plan)
    [client] = ledger.weights
    want = by_hand(site, plan, client)
    assert {"norm.running_mean", "norm.running_var"} < state.params.keys()
    assert "norm.num_batches_tracked" not in state.params and want["norm.num_batches_tracked"] > 0
    for name, x in state.params.items():
        torch.testing.assert_close(x, want[name], rtol=0, atol=1e-6)
    assert not torch.equal(state.params["norm.running_var"], pristine["norm.running_var"])
    assert equal(site.model.state_dict(), pristine)


@pytest.mark.parametrize("server", ["momentum", "adam", "yogi", "adagrad"])
def test_the_statistics_of_batchnorm_go_past_the_server_optimizer(server: str) -> None:
    """Whatever the optimizer makes of the parameters, the statistics are the mean of the
    clients'."""
    plan = read_plan({**CONVOLUTION, "server": {"name": server, "lr": 1.0}})
    names = ("norm.running_mean", "norm.running_var")
    state = start(plan, {**dict.fromkeys(names, torch.ones(2)), "w": torch.ones(2)})
    for k, step in enumerate((-0.5, -0.4, -0.05)):  # a momentum of 0.9 ends at -0.555
        update = Update("x", dict.fromkeys(state.params, torch.full((2,), step)))
        before, ledger = state, Ledger(k)
        state = merged(plan, [update], state, ledger)
        for name in names:
            assert torch.equal(state.params[name], before.params[name] + step)
    assert not torch.allclose(state.params["w"], torch.tensor(0.05))


def test_a_variance_does_not_fall_below_zero_by_the_error_of_a_codec() -> None:
    plan = read_plan(CONVOLUTION)
    state = State(0, {n: torch.full((1,), 0.25) for n in ("norm.running_mean", "norm.running_var")})
    update = Update("x", dict.fromkeys(state.params, torch.tensor([-0.5])))
    after = merged(plan, [update], state, Ledger(0)).params
    assert after["norm.running_mean"].item() == -0.25 and after["norm.running_var"].item() == 0


@pytest.mark.parametrize("server", ["momentum", {"name": "adam", "lr": 0.1}])
def test_batchnorm_trains_with_any_server(server: object) -> None:
    plan = read_plan({**CONVOLUTION, "server": server, "cohort": 3, "rounds": 12})
    for state, ledger in run(open_site(plan), plan):
        assert not ledger.failed and bool((state.params["norm.running_var"] > 0).all())


def test_without_a_state_a_run_starts_from_the_model_that_the_engine_has(points: Site) -> None:
    plan = points_plan(rounds=1)
    other = replace(points, model=deepcopy(points.model))
    with torch.no_grad():
        other.model.get_parameter("head.bias").fill_(9.0)
    [(state, _)] = federate(plan, on(other, plan))
    assert equal(state.params, last(run(other, plan))) and bool(
        (state.params["head.bias"] > 8).all()
    )


def test_without_a_state_and_a_site_a_run_starts_from_the_plan(points: Site) -> None:
    plan = points_plan(rounds=1)
    [(state, _)] = federate(plan, Recording(on(points, plan)))
    assert equal(state.params, last(run(points, plan)))


def test_a_state_can_be_evaluated_as_it_is(points: Site, tmp_path: Path) -> None:
    plan = points_plan(**SCAFFOLD, rounds=1)
    [(state, _)] = run(points, plan, Folder(tmp_path))
    assert "c/head.weight" in state.flat and "c/head.weight" not in state.params
    got, want = (
        evaluate(plan.task, points.model, x, points.data.held_out())
        for x in (state.flat, state.params)
    )
    assert got == want != evaluate(plan.task, points.model, {}, points.data.held_out())
    with pytest.raises(ValueError, match=r"none of the 2 tensors, first 'base\.head\.weight'"):
        evaluate(plan.task, points.model, {f"base.{n}": x for n, x in points.params().items()}, ())


def test_a_weight_under_two_names_is_one_weight() -> None:
    plan = read_plan({**CONVOLUTION, "task": {"name": "parts:Points", "network": "tied"}})
    site = open_site(plan)
    [(state, ledger)] = run(site, plan)
    [client] = ledger.weights
    want = by_hand(site, plan, client)
    assert "first.weight" in state.params and "second.weight" not in state.params
    for name, x in state.params.items():
        torch.testing.assert_close(x, want[name], rtol=0, atol=1e-6)


def test_scaffold_does_not_correct_the_statistics_of_batchnorm(tmp_path: Path) -> None:
    local = {"lr": 0.05, "batch_size": 8, "correction": "scaffold"}
    plan = read_plan({**CONVOLUTION, "local": local, "rounds": 3, "cohort": 3})
    control = run(open_site(plan), plan, Folder(tmp_path))[-1][0].shared["c"]
    assert not control["norm.running_mean"].any() and control["norm.weight"].any()
