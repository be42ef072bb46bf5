"""Laws of a whole round: what goes in, what comes out, and what must not matter."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from fedpeft.client import Site, Worker, open_site
from fedpeft.core.seeds import fold, generator
from fedpeft.core.stores import Folder, Nowhere
from fedpeft.core.tensors import beside, equal, layout, scale
from fedpeft.core.types import Engine, Failure, Job, Reply, State, Store, Tensors, Update, Weighted
from fedpeft.core.wire import pack, unpack
from fedpeft.engines.inprocess import InProcess
from fedpeft.loop import Ledger, federate, start
from fedpeft.plan import Plan, read_plan

PLAIN = {"name": "sgd", "momentum": 0.0, "nesterov": False}
DIGITS = {
    "method": "head",
    "partition": {"name": "dirichlet", "clients": 90, "alpha": 10.0},
    "local": {"lr": 0.05, "batch_size": 16},
    "rounds": 3,
    "cohort": 3,
    "seed": 3,
}
POINTS = {
    **DIGITS,
    "task": {"name": "parts:Points"},
    "data": {"name": "parts:Blobs", "examples": 600},
    "partition": {"name": "dirichlet", "clients": 24, "alpha": 10.0},
    "rounds": 4,
    "cohort": 4,
}
SCAFFOLD = {"local": {**DIGITS["local"], "correction": "scaffold"}, "server": "scaffold"}  # type: ignore[dict-item]
FEEDBACK = {"uplink": {"name": "topk", "density": 0.1}, "stages": ["error_feedback"]}
MEMORIES = pytest.mark.parametrize("changes", [SCAFFOLD, FEEDBACK, SCAFFOLD | FEEDBACK], ids=["scaffold", "ef", "both"])


def plan_of(**changes: object) -> Plan:
    return read_plan({**DIGITS, **changes})


def points_plan(**changes: object) -> Plan:
    return read_plan({**POINTS, **changes})


@pytest.fixture(scope="module")
def digits() -> Site:
    """Real digits and the real model, opened once: all plans here differ only in what comes after that."""
    return open_site(plan_of())


@pytest.fixture(scope="module")
def points() -> Site:
    """A linear model on points, for what takes many rounds."""
    return open_site(points_plan())


def on(site: Site, plan: Plan, store: Store | None = None) -> InProcess:
    return InProcess(replace(site, plan=plan), store or Nowhere())


def run(site: Site, plan: Plan, store: Store | None = None, state: State | None = None) -> list[tuple[State, Ledger]]:
    return list(federate(plan, on(site, plan, store), state or start(plan, site.params())))


def last(rounds: list[tuple[State, Ledger]]) -> Tensors:
    assert not any(ledger.failed for _, ledger in rounds)
    return rounds[-1][0].params


@dataclass(frozen=True)
class Recording:
    """An engine that keeps what crosses it."""

    inner: Engine
    jobs: list[Job] = field(default_factory=list)
    replies: list[Reply | Failure] = field(default_factory=list)

    @property
    def clients(self) -> Sequence[str]:
        return self.inner.clients

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        jobs = list(jobs)
        self.jobs.extend(jobs)
        for reply in self.inner.run(jobs):
            self.replies.append(reply)
            yield reply


@dataclass(frozen=True)
class Tampering:
    """An engine on whose way the replies of some clients come to harm."""

    inner: Engine
    harm: Mapping[str, Callable[[Reply | Failure], Reply | Failure]]

    @property
    def clients(self) -> Sequence[str]:
        return self.inner.clients

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        for reply in self.inner.run(jobs):
            yield self.harm[reply.client](reply) if reply.client in self.harm else reply


def by_hand(site: Site, plan: Plan, client: str) -> dict[str, torch.Tensor]:
    """A plain loop with torch's own optimizer on a model of its own: the tensors after one round, buffers included."""
    model = deepcopy(site.model).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=plan.local.lr, momentum=0.9, nesterov=True)  # type: ignore[attr-defined]
    seed = fold(fold(plan.seed, "round", 0), "client", client)
    for batch in site.data.batches(client, plan.local.batch_size, plan.local.epochs, generator(seed, "batches")):
        optimizer.zero_grad()
        plan.task.losses(model, batch).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {n: x.detach() for n, x in model.state_dict().items()}


@pytest.mark.parametrize("method", ["head", "lora", "full"])
def test_one_client_and_one_round_are_plain_local_training(method: str) -> None:
    plan = plan_of(method=method, rounds=1, cohort=1, local={"lr": 0.02, "batch_size": 16, "epochs": 2})
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


@pytest.mark.parametrize("method", ["head", {"name": "lora", "dropout": 0.5}], ids=["head", "dropout"])
def test_a_job_leaves_no_trace_in_the_next(method: object) -> None:
    plan = plan_of(method=method, local={"lr": 0.05, "optimizer": "adamw"})
    site = open_site(plan)
    payload = plan.downlink.encode(start(plan, site.params()).params)
    first, second = (Job("r", 0, client, "fit", 7, None, payload) for client in site.data.clients[:2])
    used = Worker(site, Nowhere())
    assert isinstance(used(first), Reply)
    draws = torch.get_rng_state()
    assert used(second) == Worker(open_site(plan), Nowhere())(second)
    assert torch.equal(torch.get_rng_state(), draws), "the process's own random numbers moved on"


@MEMORIES
@pytest.mark.parametrize("split", [1, 3])
def test_a_resume_is_not_noticed(points: Site, tmp_path: Path, changes: dict[str, object], split: int) -> None:
    plan = points_plan(**changes, cohort=12)
    whole = run(points, plan, Folder(tmp_path / "whole"))
    rounds = federate(plan, on(points, plan, Folder(tmp_path / "cut")), start(plan, points.params()))
    state = [next(rounds)[0] for _ in range(split)][-1]
    assert equal(state.params, whole[split - 1][0].params)
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
    done = list(on(points, plan, fresh).run(half))  # and here everything stops: ten replies are stored, none counted
    assert done == recording.replies[:10]
    again = run(points, plan, fresh, state)
    assert equal(last(again), last(whole))


def test_a_reply_that_was_not_counted_leaves_no_memory(points: Site, tmp_path: Path) -> None:
    """With too few replies the round counts for nothing, so what the clients kept of it counts for nothing either."""
    plan = points_plan(**FEEDBACK, cohort=24, rounds=2, min_replies=24)
    victim = points.data.clients[5]
    lost: Callable[[Reply | Failure], Failure] = lambda reply: Failure(reply.client, "lost on the way")
    engine = on(points, plan, Folder(tmp_path / "a"))
    state, ledger = next(federate(plan, Tampering(engine, {victim: lost}), start(plan, points.params())))
    assert state.accepted == {} and equal(state.params, points.params()) and state.round == 1
    assert ledger.note == "23 good replies, 24 needed: nothing changes" and len(ledger.weights) == 23
    resumed = run(points, plan, Folder(tmp_path / "a"), state)
    unspoilt = run(points, plan, Folder(tmp_path / "b"), State(1, points.params()))
    assert equal(last(resumed), last(unspoilt))


def test_density_1_is_dense_and_feedback_then_changes_nothing(digits: Site, tmp_path: Path) -> None:
    dense = last(run(digits, plan_of()))
    whole = {"name": "topk", "density": 1.0}
    assert equal(last(run(digits, plan_of(uplink=whole))), dense)
    plan = plan_of(uplink=whole, stages=["error_feedback"])
    assert equal(last(run(digits, plan, Folder(tmp_path))), dense)


def test_mu_0_is_plain_averaging(digits: Site) -> None:
    prox = {"name": "prox", "mu": 0.0}
    local = {"lr": 0.05, "batch_size": 16}
    assert equal(last(run(digits, plan_of(local={**local, "correction": prox}))), last(run(digits, plan_of())))
    pulled = {"name": "prox", "mu": 1.0}
    assert not equal(last(run(digits, plan_of(local={**local, "correction": pulled}))), last(run(digits, plan_of())))


def test_the_first_round_of_scaffold_is_plain_averaging(digits: Site, tmp_path: Path) -> None:
    plan = plan_of(**SCAFFOLD, rounds=1)
    assert equal(beside(("c",), last(run(digits, plan, Folder(tmp_path)))), last(run(digits, plan_of(rounds=1))))


def test_the_ledger_has_the_bytes_that_crossed(digits: Site) -> None:
    plan = plan_of(uplink="int8", downlink="bfloat16", rounds=2)
    engine = Recording(on(digits, plan))
    ledgers = [ledger for _, ledger in federate(plan, engine, start(plan, digits.params()))]
    assert sum(ledger.bytes_down for ledger in ledgers) == sum(len(job.payload) for job in engine.jobs)
    assert sum(ledger.bytes_up for ledger in ledgers) == sum(
        len(reply.payload) for reply in engine.replies if isinstance(reply, Reply)
    )
    entries = sum(x.numel() for x in digits.params().values())
    for ledger in ledgers:  # int8: an entry a byte, and a scale for weight and bias
        assert ledger.bytes_up - ledger.up_headers == 3 * (entries + 2 * 4)


def changed(plan: Plan, expected: Tensors, change: Callable[[Update], Update]) -> Callable[[Reply | Failure], Reply]:
    def harm(reply: Reply | Failure) -> Reply:
        assert isinstance(reply, Reply)
        update = unpack(reply.client, reply.payload, plan.uplink, layout(expected))
        return Reply(reply.client, pack(change(update), plan.uplink))

    return harm


def delta(change: Callable[[Tensors], Tensors]) -> Callable[[Update], Update]:
    return lambda update: replace(update, delta=change(update.delta))


HARMS: dict[str, tuple[Callable[[Update], Update], str]] = {
    "nan": (delta(lambda d: {n: x.sqrt() - 1e30 * 1e30 for n, x in d.items()}), "not finite"),
    "shape": (delta(lambda d: {n: x[..., :1] for n, x in d.items()}), "came as"),
    "name": (delta(lambda d: {f"other.{n}": x for n, x in d.items()}), "lacks 2 tensors of the plan"),
    "type": (delta(lambda d: {n: x.double() for n, x in d.items()}), "came as .*float64"),
    "missing": (delta(lambda d: dict(list(d.items())[:1])), "lacks 1 tensors"),
    "weight": (lambda update: replace(update, weight=0.0), "must be positive"),
    "metric": (lambda u: replace(u, metrics={"loss": Weighted(float("inf"), 1.0)}), "no finite number"),
}


@pytest.mark.parametrize("harm", sorted(HARMS))
def test_a_bad_update_is_a_named_failure_and_the_rest_are_averaged(points: Site, harm: str) -> None:
    plan = points_plan(rounds=1)
    recording = Recording(on(points, plan))
    next(federate(plan, recording, start(plan, points.params())))
    victim, *others = recording.jobs
    change, reason = HARMS[harm]
    engine = Tampering(on(points, plan), {victim.client: changed(plan, points.params(), change)})
    [(state, ledger)] = federate(plan, engine, start(plan, points.params()))
    assert ledger.failed.keys() == {victim.client} and victim.client not in state.accepted
    with pytest.raises(AssertionError, match=reason):  # the reason says what is wrong
        raise AssertionError(ledger.failed[victim.client])
    assert ledger.up[victim.client] > 0, "its bytes crossed, so they count"
    rest = [unpack(r.client, r.payload, plan.uplink, layout(points.params())) for r in good(recording, others)]
    for name, x in state.params.items():
        total = sum(update.weight for update in rest)
        mean = sum(update.delta[name] * (update.weight / total) for update in rest)
        torch.testing.assert_close(x, points.params()[name] + mean, rtol=0, atol=1e-6)


def good(recording: Recording, jobs: list[Job]) -> list[Reply]:
    wanted = {job.client for job in jobs}
    return [reply for reply in recording.replies if isinstance(reply, Reply) and reply.client in wanted]


def test_a_truncated_reply_and_a_lost_client_are_failures(points: Site) -> None:
    plan = points_plan(rounds=1)
    recording = Recording(on(points, plan))
    next(federate(plan, recording, start(plan, points.params())))
    a, b, *_ = (job.client for job in recording.jobs)
    harm: dict[str, Callable[[Reply | Failure], Reply | Failure]] = {
        a: lambda reply: Reply(reply.client, reply.payload[:-1]) if isinstance(reply, Reply) else reply,
        b: lambda reply: Failure(reply.client, "gone"),
    }
    [(_, ledger)] = federate(plan, Tampering(on(points, plan), harm), start(plan, points.params()))
    assert "corrupt or truncated" in ledger.failed[a] and ledger.failed[b] == "gone" and b not in ledger.up
    assert len(ledger.weights) == 2


def test_a_training_that_diverges_fails_by_name_and_nothing_changes(points: Site) -> None:
    plan = points_plan(rounds=2, local={"lr": 1e38, "batch_size": 4, "epochs": 2})
    for state, ledger in run(points, plan):
        assert equal(state.params, points.params()) and state.accepted == {}
        assert len(ledger.failed) == 4 and all("diverged" in reason for reason in ledger.failed.values())
        assert ledger.note.startswith("0 good replies, 1 needed")
    assert state.round == 2


def test_what_the_codec_cannot_hold_is_a_named_failure(points: Site) -> None:
    plan = points_plan(rounds=1, uplink="float16", local={"lr": 1e6, "batch_size": 16})
    [(_, ledger)] = run(points, plan)
    assert len(ledger.failed) == 4 and all("float16 ends at 65504" in reason for reason in ledger.failed.values())


def test_a_memory_without_a_place_is_a_named_failure(points: Site) -> None:
    [(_, ledger)] = run(points, points_plan(**FEEDBACK, rounds=1))
    assert all("give the engine a folder" in reason for reason in ledger.failed.values()) and len(ledger.failed) == 4


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_what_a_client_counts(points: Site, weighting: str) -> None:
    plan = points_plan(rounds=1, weighting=weighting)
    recording = Recording(on(points, plan))
    [(state, ledger)] = federate(plan, recording, start(plan, points.params()))
    sizes = {client: float(points.data.size(client)) for client in ledger.weights}
    assert len(set(sizes.values())) > 1, "clients of one size would not tell the two apart"
    assert ledger.weights == (sizes if weighting == "examples" else dict.fromkeys(sizes, 1.0))
    updates = [
        unpack(r.client, r.payload, plan.uplink, layout(points.params())) for r in good(recording, recording.jobs)
    ]
    total = sum(ledger.weights.values())
    want = [scale(update.delta, ledger.weights[update.client] / total) for update in updates]
    for name, x in points.params().items():
        torch.testing.assert_close(state.params[name], x + sum(one[name] for one in want), rtol=0, atol=1e-6)
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
        assert equal(state.params, copy.params) and equal(state.memory, copy.memory) and state.round == copy.round


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
    plan = read_plan({**CONVOLUTION, "local": local, "server": "scaffold", "rounds": 3, "cohort": 3})
    params = last(run(open_site(plan), plan, Folder(tmp_path)))
    assert not params["c/norm.running_mean"].any() and params["c/norm.weight"].any()
