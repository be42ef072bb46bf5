"""Clients that send the groups of tensors that do most for their size, and leave the others out."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from contributions import merge, study
from marks import slow_but
from rounds import Recording, Tampering, distance, last, on, points_plan, run
from test_cohort import read
from torch import Tensor

from fedpeft import PlanError, federate, open_site, read_plan, start
from fedpeft.algorithms.fedmfs import FedMFS, blank_columns, scale_to_one
from fedpeft.algorithms.shapley import shapley_values
from fedpeft.core.facts import Fact, offered_by
from fedpeft.core.types import Failure, Reply, State, Tensors, Update
from fedpeft.deploy.consent import consent_to
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.forecasts.forecast import forecast
from fedpeft.oneshot.contribution import write_contribution
from fedpeft.oneshot.keys import signing_key
from fedpeft.oneshot.rejections import ContributionError, Rejection
from fedpeft.oneshot.rules import Rules
from fedpeft.plan.plan import Plan
from fedpeft.storage.client_memory import Folder
from fedpeft.wire.payloads import pack

SIDES = {"left": ["left.*"], "right": ["right.*"]}
HALVES = {"left": ["point[0:4]"], "right": ["point[4:8]"]}
BY_VALUE = {"name": "fedmfs", "groups": SIDES, "by_size": 0.0}
BY_INPUT = {**BY_VALUE, "inputs": HALVES}
NOISE = {
    "task": {"name": "parts:Points", "network": "towers"},
    "data": {"name": "parts:HalfBlobs", "examples": 600},
    "method": "full",
    "compute": {"features": False},
    "partition": {"name": "iid", "clients": 8},
}
TRAINED = {"lr": 0.02, "batch_size": 16, "epochs": 4}
"""Long enough for a tower to do something."""


def towers(**changes: Any) -> Plan:
    """Points of which the right half is noise, with a tower for each half."""
    return points_plan(**{**NOISE, "algorithms": [BY_VALUE], **changes})


def held(plan: Plan) -> tuple[list[dict[str, Tensor]], State, Any]:
    """What the clients of a plan's only round send, and what comes of it."""
    site = open_site(plan)
    engine = Recording(on(site, plan))
    [(state, ledger)] = federate(plan, engine, start(plan, site.params()))
    assert not ledger.failed
    return [dict(read(plan, reply).delta) for reply in engine.replies], state, ledger


def sides(delta: Iterable[str]) -> set[str]:
    return {name.partition(".")[0] for name in delta}


def test_shapley_values_by_hand_and_over_all_orders() -> None:
    """v(a) .6, v(b) .5, v(ab) .8 give .45 and .35."""
    worth = {"": 0.0, "a": 0.6, "b": 0.5, "ab": 0.8}
    values = shapley_values("ab", lambda some: worth["".join(sorted(some))])
    assert values == pytest.approx({"a": 0.45, "b": 0.35})

    def odd(some: frozenset[str]) -> float:
        return len(some) ** 2 + 3.0 * ("a" in some) - 5.0 * ({"b", "d"} <= some) + 1.0

    values = shapley_values("abcd", odd)
    orders = list(permutations("abcd"))
    for player in "abcd":
        gains = [
            odd(before | {player}) - odd(before)
            for order in orders
            for before in [frozenset(order[: order.index(player)])]
        ]
        assert values[player] == pytest.approx(sum(gains) / len(orders))
    assert sum(values.values()) == pytest.approx(odd(frozenset("abcd")) - odd(frozenset()))


def test_priorities_weigh_worth_and_size() -> None:
    """Worth 0, 1 and 1/2 of the range, and size 0, 1 and 0: 1/2, 1/2 and 3/4 at one half."""
    groups = {name: (f"{name}.*",) for name in "abc"}
    worth, size = {"a": -1.0, "b": 3.0, "c": 1.0}, {"a": 8.0, "b": 64.0, "c": 8.0}
    new = dict.fromkeys("abc", 0.0)
    ranks = {by: FedMFS(groups, by_size=by)._rank(worth, size, new) for by in (0.0, 0.5, 1.0)}
    assert ranks == {0.0: ["b", "c", "a"], 0.5: ["c", "a", "b"], 1.0: ["a", "c", "b"]}
    assert scale_to_one({"a": 2.0, "b": 2.0}) == {"a": 0.0, "b": 0.0}


def test_a_group_that_waited_long_comes_first() -> None:
    """Priorities 1/2, 1/2 and 3/4, and of the fifth round 4/5, 0 and 1/5 for waiting."""
    groups = {name: (f"{name}.*",) for name in "abc"}
    worth, size = {"a": -1.0, "b": 3.0, "c": 1.0}, {"a": 8.0, "b": 64.0, "c": 8.0}
    waiting = {"a": 0.8, "b": 0.0, "c": 0.2}
    ranks = {by: FedMFS(groups, recency=by)._rank(worth, size, waiting) for by in (0.0, 0.4, 0.5)}
    assert ranks == {0.0: ["c", "a", "b"], 0.4: ["c", "a", "b"], 0.5: ["a", "c", "b"]}


def test_with_recency_alone_clients_send_their_groups_in_turn(tmp_path: Path) -> None:
    """Of two groups the one that was not sent last waits longer; the first choice is by worth."""
    part = {**BY_INPUT, "recency": 100.0}
    plan = towers(algorithms=[part], rounds=4, cohort=8)
    site = open_site(plan)
    with pytest.raises(PlanError, match="a store"):
        run(site, plan)
    engine = Recording(on(site, plan, Folder(tmp_path)))
    list(federate(plan, engine, start(plan, site.params())))
    sent: dict[str, list[set[str]]] = {}
    for reply in engine.replies:
        assert isinstance(reply, Reply)
        sent.setdefault(reply.client, []).append(sides(read(plan, reply).delta) & {"left", "right"})
    assert len(sent) == 8
    for turns in sent.values():
        assert turns[0] != turns[1] and turns[:2] == turns[2:] and {len(x) for x in turns} == {1}


def test_inputs_are_blanked_where_they_lie() -> None:
    batch = {"x": torch.arange(6.0).view(2, 3), "seen": torch.ones(2, dtype=torch.bool)}
    blank = blank_columns(batch, ["x[1:3]", "seen"])
    assert blank["x"].tolist() == [[0, 0, 0], [3, 0, 0]] and not blank["seen"].any()
    assert batch["x"].tolist() == [[0, 1, 2], [3, 4, 5]] and batch["seen"].all()
    with pytest.raises(PlanError, match=r"no column 'y'; inputs may be of x, seen"):
        blank_columns(batch, ["y"])
    for places in ("x[1:4]", "x[2:2]", "seen[0:1]"):
        with pytest.raises(PlanError, match="are no places of a column"):
            blank_columns(batch, [places])


@pytest.mark.parametrize("part", [BY_VALUE, BY_INPUT], ids=["tensors", "inputs"])
def test_clients_send_the_tower_that_learns_from_more_than_noise(part: dict[str, Any]) -> None:
    plan = towers(algorithms=[part], rounds=1, cohort=8, local=TRAINED)
    sent, state, ledger = held(plan)
    begun = start(plan, open_site(plan).params()).params
    assert [sides(delta) for delta in sent] == [{"left", "head"}] * 8
    assert ledger.reports["fedmfs"] == {"sent": {"left": 8, "right": 0}}
    still = {name for name, x in begun.items() if torch.equal(x, state.params[name])}
    assert sides(dict.fromkeys(still)) == {"right"}, "what nobody sends rests"


def test_a_mean_is_over_those_who_sent_a_group() -> None:
    """Both halves tell of the class here, so that some send one tower and some the other."""
    plan = towers(
        rounds=1, cohort=8, data={"name": "parts:Blobs", "examples": 600},
        partition={"name": "dirichlet", "clients": 8, "alpha": 10.0},
        algorithms=[{**BY_VALUE, "sets_apart": 0.3}],
    )  # fmt: skip
    site = open_site(plan)
    engine = Recording(on(site, plan))
    [(state, ledger)] = federate(plan, engine, start(plan, site.params()))
    updates = [read(plan, reply) for reply in engine.replies]
    counts = ledger.reports["fedmfs"]["sent"]
    assert min(counts.values()) > 0 and sum(counts.values()) == 8
    begun = start(plan, site.params()).params
    for name, x in begun.items():
        mine = [one for one in updates if name in one.delta]
        weight = sum(one.weight for one in mine)
        mean = sum((one.weight / weight * one.delta[name] for one in mine), torch.zeros(()))
        torch.testing.assert_close(state.params[name], x + mean, rtol=0, atol=1e-6)


def test_all_groups_are_federated_averaging_to_the_bit() -> None:
    plain, every = (towers(rounds=2, algorithms=some) for some in ([], [{**BY_VALUE, "keep": 2}]))
    assert offered_by(every.algorithms[0]) == {Fact.MIXED_TENSORS}
    site = open_site(plain)
    want, got = last(run(site, plain)), last(run(open_site(every), every))
    assert all(torch.equal(want[name], got[name]) for name in want)


def test_a_smaller_group_comes_first_where_size_alone_counts() -> None:
    groups = {"weights": ["*.weight"], "offsets": ["*.bias"]}
    plan = points_plan(
        method="full", rounds=1, algorithms=[{"name": "fedmfs", "groups": groups, "by_size": 1.0}]
    )
    sent, _, _ = held(plan)
    assert [list(delta) for delta in sent] == [["head.bias"]] * 4


def test_clients_in_a_stack_leave_out_the_same() -> None:
    plan = towers(rounds=2, local={**TRAINED, "epochs": 1})
    site = open_site(plan)
    want = last(run(site, plan))
    engine = Cohort(site)
    got = list(federate(plan, engine, start(plan, site.params())))[-1][0].flat
    assert engine.alone == "" and distance(got, want) < 1e-4


@pytest.mark.parametrize(
    "codec",
    slow_but(("topk", "ferret"), ["topk", "randk", "int8", "sign", "ternary", "ferret", "float16"]),
)
def test_every_codec_takes_an_update_in_part(codec: str) -> None:
    plan = towers(rounds=1, uplink=codec)
    site = open_site(plan)
    [(_, ledger)] = federate(plan, on(site, plan), start(plan, site.params()))
    assert not ledger.failed and len(ledger.weights) == 4


def test_a_client_without_a_group_sends_what_it_has() -> None:
    scopes = {"name": "scopes", "scopes": {"right.*": ["*[02468]"]}}
    plan = towers(rounds=1, cohort=8, routing=[scopes])
    site = open_site(plan)
    engine = Recording(on(site, plan))
    [(_, ledger)] = federate(plan, engine, start(plan, site.params()))
    assert not ledger.failed
    for reply in engine.replies:
        sent = sides(read(plan, reply).delta)
        outside = int(reply.client[-1]) % 2 == 1
        assert sent == {"left", "head"} if outside else len(sent) == 2


def test_what_stays_with_a_client_is_in_the_model_that_it_judges_by(tmp_path: Path) -> None:
    """A head of its own that nobody sends: the tower is chosen with it in its place."""
    own = {"name": "personal", "patterns": ["head.*"]}
    plan = towers(rounds=2, routing=[own], local=TRAINED)
    site = open_site(plan)
    rounds = run(site, plan, Folder(tmp_path))
    last(rounds)
    assert rounds[-1][1].reports["fedmfs"]["sent"] == {"left": 4, "right": 0}


def spoilt(plan: Plan, spoil: Callable[[Tensors], Tensors]) -> str:
    """Why an update is refused, of a client that sends something else."""
    site = open_site(plan)
    whole = replace(plan, algorithms=())

    def harm(reply: Reply | Failure) -> Reply | Failure:
        update = read(whole, reply)
        delta = spoil(update.delta)
        return Reply(reply.client, pack(replace(update, delta=delta), plan.uplink))

    honest = on(site, whole)  # it leaves nothing out
    first = start(plan, site.params())
    [(_, asked)] = federate(plan, on(site, plan), first)
    client = next(iter(asked.down))
    [(_, ledger)] = federate(plan, Tampering(honest, {client: harm}), first)
    assert len(ledger.weights) + len(ledger.failed) == len(ledger.down)
    return ledger.failed[client]


def test_a_client_that_lies_about_groups_is_refused() -> None:
    plan = towers(rounds=1)
    assert "lacks 1 tensors of the plan, first 'left.bias'" in spoilt(
        plan, lambda delta: {n: x for n, x in delta.items() if n != "left.bias"}
    )
    assert spoilt(plan, lambda delta: delta) == "it holds left, right, and a client sends 1 group"
    assert "lacks 2 tensors of the plan, first 'head.bias'" in spoilt(plan, lambda delta: {})
    assert "does not send, first 'other'" in spoilt(
        plan, lambda delta: {**delta, "other": torch.ones(1)}
    )
    every = {**BY_VALUE, "groups": {"towers": ["left.*", "right.*"], "top": ["head.*"]}}
    assert "it holds no tensor" in spoilt(towers(rounds=1, algorithms=[every]), lambda delta: {})


def test_files_hold_what_their_clients_chose(tmp_path: Path) -> None:
    groups = '{ slopes = ["*.weight"], offsets = ["*.bias"] }'
    four = study(tmp_path, f'algorithms=[{{ name = "fedmfs", groups = {groups}, by_size = 1.0 }}]')
    summary = merge(four.path, four.files, tmp_path / "merged", Rules())
    assert summary["rounds"] == 1

    one, given = four.read(four.files[0]), four.invitation
    both = Update(one.header.client, given.state.params, one.weight)
    frame = pack(both, given.plan.uplink)
    said = replace(one.header, bytes=len(frame))
    bad = tmp_path / "bad"
    key = signing_key(four.keys[0])
    bad.write_bytes(write_contribution(said, frame, given.terms.server, key))
    with pytest.raises(ContributionError, match="a client sends 1 group") as error:
        merge(four.path, [bad, *four.files[1:]], tmp_path / "other", Rules())
    assert error.value.reason is Rejection.WEIGHT


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "compares": ({"aggregator": "median"}, "lets clients of one round send different tensors"),
    "sums": ({"exchange": {"name": "secure", "threshold": 2}}, "sum"),
    "air": ({"exchange": "over_the_air"}, "whom a sum hides"),
    "feedback": ({"uplink": "topk", "stages": ["error_feedback"]}, "left out for ever"),
    "ef21": ({"uplink": "topk", "stages": ["ef21"]}, "leave out one of them"),
    "control": (
        {"local": {"lr": 0.05, "batch_size": 16, "correction": "scaffold"}},
        "an update that has all tensors",
    ),
    "vote": ({"algorithms": [BY_VALUE, "vote"]}, "a vote is on models"),
    "buffer": ({"algorithms": [BY_VALUE, {"name": "fedbuff", "buffer": 3}]}, "no rounds"),
    "features": (
        {"algorithms": [BY_INPUT], "compute": {"features": True}},
        "set compute.features = false",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_with_it_is_told(case: str) -> None:
    changes, words = REFUSED[case]
    with pytest.raises(PlanError, match=words):
        towers(**changes)


def test_settings_out_of_range_are_told() -> None:
    for changes, words in (
        ({"groups": {"left": ["left.*"]}}, "groups must be 2 to 6"),
        ({"groups": {"left": ["left.*"], "right": []}}, "groups must be 2 to 6"),
        ({"keep": 3}, "keep must be from 1 to 2 groups, got 3"),
        ({"by_size": 1.5}, "by_size must be from 0 to 1"),
        ({"sets_apart": 1.0}, "sets_apart must be at least 0 and below 1"),
        ({"inputs": {"left": ["x"]}}, "inputs must be of all groups, left, right"),
        ({"inputs": {"left": ["x["], "right": ["x"]}}, r"got 'x\['"),
    ):
        with pytest.raises((ValueError, PlanError), match=words):
            towers(algorithms=[{**BY_VALUE, **changes}])
    for groups, words in (
        ({"left": ["left.*"], "none": ["up.*"]}, "the group 'none' has no tensor"),
        ({"left": ["left.*"], "all": ["*"]}, "is in the groups 'left' and 'all'"),
    ):
        plan = towers(algorithms=[{**BY_VALUE, "groups": groups}])
        with pytest.raises(PlanError, match=words):
            start(plan, open_site(plan).params())


def test_an_owner_is_told_that_less_may_leave() -> None:
    site = open_site(towers(rounds=1))
    lines = dict(consent_to(site, "c000", site.data.clients).lines)
    assert lines["leaves here"].startswith("at most 131 numbers")
    assert "which of left, right do most for the model here" in lines["not hidden"]


@pytest.mark.slow
def test_who_plans_is_told_that_bytes_depend_on_what_is_learned() -> None:
    found = forecast(towers(rounds=1))
    assert "what a client leaves out depends on what it learns" in " ".join(found.notes)


def test_a_plan_reads_back(tmp_path: Path) -> None:
    plan = towers(algorithms=[{**BY_INPUT, "keep": 1, "sets_apart": 0.25}])
    (tmp_path / "plan.toml").write_text(plan.toml())
    assert read_plan(tmp_path / "plan.toml") == plan
