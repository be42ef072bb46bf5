"""Laws of admission: what is far too long is refused by name, who is refused too often is asked no
more, a resume remembers both, and honest runs notice nothing."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rounds import Tampering, on, points_plan, round_of, run

from fedpeft.core.conversation import PARAMS, Answer, Message
from fedpeft.core.tensors import equal, layout, scale
from fedpeft.core.types import Failure, Reply, State, Update
from fedpeft.errors import PlanError
from fedpeft.plan.plan import NORM_FACTOR, Plan
from fedpeft.rounds.admission import FEW, WINDOW, Admission
from fedpeft.rounds.ledger import Ledger
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.runs.checkpoint import load_checkpoint, save_checkpoint
from fedpeft.runs.record import record_of
from fedpeft.wire.payloads import message_of, pack, unpack

Harm = Callable[[Reply | Failure], Reply | Failure]


def longer(plan: Plan, site: Site, by: float) -> Harm:
    def harm(reply: Reply | Failure) -> Reply:
        assert isinstance(reply, Reply)
        update = unpack(reply.client, reply.payload, plan.uplink, layout(site.params()))
        return Reply(
            reply.client, pack(replace(update, delta=scale(update.delta, by)), plan.uplink)
        )

    return harm


def garbage(reply: Reply | Failure) -> Reply:
    return Reply(reply.client, b"garbage")


def lost(reply: Reply | Failure) -> Failure:
    return Failure(reply.client, "lost")


def admission(**changes: object) -> Admission:
    return Admission.of(points_plan(**changes), State(0, {}), Ledger(0))


def of_lengths(*lengths: float) -> list[Update]:
    return [Update(f"c{k}", {"a": torch.tensor([x, 0.0])}) for k, x in enumerate(lengths)]


def bounded(rules: Admission, updates: Iterable[Update]) -> Iterator[Answer]:
    ask = round_of(rules.plan, rules.state, [], rules.ledger).ask_to_fit([], {})
    return rules.bounded(ask, (Answer(one.client, message_of(one)) for one in updates))


def let_in(rules: Admission, *lengths: float) -> list[float]:
    answers = bounded(rules, of_lengths(*lengths))
    return [float(answer.message.tensors["delta"]["a"][0]) for answer in answers]


def test_the_first_few_are_held_against_each_other_and_the_rest_against_them() -> None:
    first = admission(norm_factor=10)
    assert let_in(first, 1e9, 1, 2, 3, 4, 5, 29, 31, 41, 39) == [1, 2, 3, 4, 5, 29, 31, 39]
    assert first.norms == [1, 2, 3, 4, 5, 29, 31, 39]
    assert first.ledger.failed == {
        "c0": "its update is 1e+09 long, the median of 8 is 4.5, and at most 10 times that is let "
        "in (norm_factor)",
        "c8": "its update is 41 long, the median of 7 is 4, and at most 10 times that is let in "
        "(norm_factor)",
    }
    assert first.refused == first.ledger.refusals == {"c0": 1, "c8": 1} and FEW == 8


def test_later_ones_are_held_against_what_was_let_in_before() -> None:
    second = admission(norm_factor=10)
    second.norms = [1.0] * WINDOW
    assert let_in(second, 11, 10, 10) == [10, 10] and second.norms == [1.0] * (WINDOW - 2) + [
        10,
        10,
    ]


def test_where_the_usual_length_is_nothing_nothing_is_refused() -> None:
    assert let_in(admission(), 0, 0, 1e9) == [0, 0, 1e9]


def sent_and_changed(sent: float, *lengths: float) -> list[Answer]:
    """Changes of so many lengths of parameters that are `sent` long, as are others that stay."""
    params = {"a": torch.tensor([sent, 0.0]), "other": torch.tensor([1e6])}
    messages = [message_of(one) for one in of_lengths(*lengths)]
    return [Answer(f"c{k}", one, Message({PARAMS: params})) for k, one in enumerate(messages)]


def names_let_in(rules: Admission, answers: Iterable[Answer]) -> list[str]:
    ask = round_of(rules.plan, rules.state, [], rules.ledger).ask_to_fit([], {})
    return [answer.client for answer in rules.bounded(ask, answers)]


def test_a_change_no_longer_than_what_it_changes_is_let_in() -> None:
    """A in FedSA-LoRA: weight decay alone in a client's first step, a gradient in its second."""
    rules = admission()
    assert names_let_in(rules, sent_and_changed(1.63, 1.6e-4, 1.6e-4, 1.6e-4, 0.32, 1.6)) == [
        *("c0", "c1", "c2", "c3", "c4")
    ]
    # of a thousand times an honest one, and of one a little longer, the usual ones decide
    rules.norms = [1.6e-4] * 9
    assert names_let_in(rules, sent_and_changed(1.63, 320.0, 1.64, 1.62, 1.6e-4)) == ["c2", "c3"]
    assert rules.refused == {"c0": 1, "c1": 1}


def test_a_rate_that_rises_from_nothing_loses_no_update(points: Site) -> None:
    rising = [{"until": 1, "set": ["local.lr=1e-12"]}]
    plan = points_plan(cohort=6, rounds=3, phase=rising)
    zeros = {name: torch.zeros_like(x) for name, x in points.params().items()}
    bounded = run(points, plan, state=start(plan, zeros))
    free = replace(plan, admission=replace(plan.admission, norm_factor=float("inf")))
    assert equal(bounded[-1][0].params, run(points, free, state=start(free, zeros))[-1][0].params)
    assert bounded[-1][0].refusals == {} and not any(one.failed for _, one in bounded)
    assert bounded[1][1].reports["norm_factor"].startswith("6 of 6 are more than 100 times")
    # A liar in that round is told from those who train.
    liar = sorted(bounded[1][1].weights)[1]
    engine = Tampering(on(points, plan), {liar: longer(plan, points, 1e3)})
    _, told = next(federate(plan, engine, bounded[0][0]))
    assert list(told.failed) == [liar] and "of 6 is" in told.failed[liar]


def test_where_most_of_a_round_are_long_they_are_what_is_usual() -> None:
    """FFA-LoRA, whose B is zero at first, with a learning rate that rises from next to nothing."""
    rules = admission(norm_factor=10)
    rules.norms = [1e-6] * 30
    # The liar is held against them, and one that is as short as before is still let in.
    assert let_in(rules, 1.0, 1e-6, 2.0, 2000.0, 3.0, 1.5, 2.5) == pytest.approx(
        [1e-6, 1.0, 2.0, 3.0, 1.5, 2.5]
    )
    assert rules.norms == pytest.approx([1.0, 2.0, 3.0, 1.5, 2.5])
    assert (
        list(rules.ledger.failed) == ["c3"]
        and "the median of 6 is 2.25," in (rules.ledger.failed["c3"])
    )
    assert rules.ledger.reports["norm_factor"] == (
        "6 of 7 are more than 10 times the usual 1e-06: their own median, 2.25, is usual from now "
        "on"
    )


@pytest.mark.parametrize(
    ("lengths", "let"),
    [
        ([1e3, 1e3], []),
        ([1e3, 1e3, 1e3], [1e3, 1e3, 1e3]),
        ([1e3, 1.0, 1e3, 1e3, 1e3], [1.0]),
        ([1e3, 1.0, 1e3, 1e3, 1e3, 1e3], [1.0, 1e3, 1e3, 1e3, 1e3, 1e3]),
        ([1e3] * 6 + [1.0] * 6, [1.0] * 6),
    ],
    ids=["two", "all of three", "four of five", "five of six", "half"],
)
def test_how_many_change_what_is_usual(lengths: list[float], let: list[float]) -> None:
    rules = admission(norm_factor=10)
    rules.norms = [1.0] * 20
    assert let_in(rules, *lengths) == let


def test_no_bound_and_nothing_waits() -> None:
    updates = iter(of_lengths(1, 1, 1e30))
    every = bounded(admission(norm_factor=float("inf"), weight_factor=float("inf")), updates)
    assert next(every).client == "c0" and len(list(updates)) == 2, (
        "what is not asked for does not train"
    )


@pytest.mark.parametrize("factor", [0.5, 0.0, float("nan")])
def test_a_factor_below_one(factor: float) -> None:
    with pytest.raises(PlanError, match="norm_factor must be at least 1"):
        points_plan(norm_factor=factor)


def test_a_guarantee_for_clients_bounds_the_length_itself() -> None:
    private = {
        "stages": [{"name": "client_dp", "noise_multiplier": 1.0}],
        "weighting": "uniform",
        "delta": 1e-3,
    }
    assert (
        points_plan(**private).norm_bound == float("inf")
        and points_plan().norm_bound == NORM_FACTOR
    )
    with pytest.raises(PlanError, match="whether a client is let in would depend on the others"):
        points_plan(**private, norm_factor=10)


@pytest.mark.parametrize("place", [0, 1, 2], ids=["first", "second", "third"])
@pytest.mark.parametrize("round_", [0, 2])
def test_a_giant_update_costs_what_a_lost_one_costs(points: Site, place: int, round_: int) -> None:
    plan = points_plan(cohort=3)
    before = start(plan, points.params())
    for _ in range(round_):
        before, _ = next(federate(plan, on(points, plan), before))
    _, ledger = next(federate(plan, on(points, plan), before))
    victim = sorted(ledger.weights)[place]
    giant, told = next(
        federate(plan, Tampering(on(points, plan), {victim: longer(plan, points, 1e6)}), before)
    )
    without, _ = next(federate(plan, Tampering(on(points, plan), {victim: lost}), before))
    assert equal(giant.params, without.params) and giant.accepted == without.accepted
    assert (
        "times that is let in" in told.failed[victim]
        and told.up[victim] > 0
        and victim not in told.weights
    )
    assert giant.refusals == {victim: 1} and without.refusals == {} and giant.norms == without.norms
    client = record_of(told, None, 0.0).clients[victim]
    assert client["refusals"] == 1 and client["failed"] == told.failed[victim]


def test_who_is_refused_too_often_is_asked_no_more_and_a_resume_remembers_it(
    points: Site, tmp_path: Path
) -> None:
    plan = points_plan(cohort=24, rounds=5, max_refusals=2)
    bad, gone = points.data.clients[3], points.data.clients[7]
    engine = Tampering(on(points, plan), {bad: garbage, gone: lost})
    whole = list(federate(plan, engine, start(plan, points.params())))
    assert [bad in ledger.up for _, ledger in whole] == [True, True, False, False, False]
    assert [ledger.down[bad] > 0 for _, ledger in whole] == [True, True, False, False, False]
    assert whole[2][1].failed[bad] == "left out: 2 of its updates were refused"
    assert record_of(whole[4][1], None, 0.0).clients[bad]["down"] == 0
    assert all(ledger.failed[gone] == "lost" for _, ledger in whole), (
        "who only does not answer may come back"
    )
    state = whole[1][0]
    save_checkpoint(tmp_path / "checkpoint" / "state", plan, state, {})
    saved = load_checkpoint(tmp_path / "checkpoint" / "state", plan)
    assert saved is not None
    assert (saved.state.norms, saved.state.refusals) == (state.norms, {bad: 2}) and len(
        state.norms
    ) == 44
    again = list(
        federate(plan, Tampering(on(points, plan), {bad: garbage, gone: lost}), saved.state)
    )
    assert equal(again[-1][0].params, whole[-1][0].params)
    assert [replace(a, params={}) for a, _ in again] == [
        replace(b, params={}) for b, _ in whole[2:]
    ]


@pytest.mark.parametrize("alpha", [0.05, 10.0])
def test_honest_runs_notice_nothing(points: Site, alpha: float) -> None:
    """Clients with 1 to 150 examples; the longest update stays well below the bound."""
    plan = points_plan(
        partition={"name": "dirichlet", "clients": 24, "alpha": alpha, "min_per_client": 1},
        cohort=12,
        rounds=6,
    )
    site = open_site(plan)
    bounded, free = (
        run(site, replace(plan, admission=replace(plan.admission, norm_factor=factor)))
        for factor in (None, float("inf"))
    )
    assert equal(bounded[-1][0].params, free[-1][0].params) and bounded[-1][0].refusals == {}
    norms = sorted(bounded[-1][0].norms)
    assert norms[-1] < NORM_FACTOR / 3 * norms[len(norms) // 2]


def claiming(plan: Plan, site: Site, weight: float) -> Harm:
    def harm(reply: Reply | Failure) -> Reply:
        assert isinstance(reply, Reply)
        update = unpack(reply.client, reply.payload, plan.uplink, layout(site.params()))
        return Reply(reply.client, pack(replace(update, weight=weight), plan.uplink))

    return harm


def test_where_all_count_alike_nobody_counts_more(points: Site) -> None:
    plan = points_plan(weighting="uniform", cohort=6)
    begun = start(plan, points.params())
    _, honest = next(federate(plan, on(points, plan), begun))
    liar = sorted(honest.weights)[2]
    engine = Tampering(on(points, plan), {liar: claiming(plan, points, 1e6)})
    state, ledger = next(federate(plan, engine, begun))
    assert "all count alike" in ledger.failed[liar]
    lost = Tampering(on(points, plan), {liar: lambda reply: Failure(reply.client, "lost")})
    without, _ = next(federate(plan, lost, begun))
    assert equal(state.params, without.params)


def test_a_claim_of_far_more_examples_than_is_usual_is_refused_by_name(points: Site) -> None:
    plan = points_plan(cohort=6, weight_factor=50.0)
    begun = start(plan, points.params())
    _, honest = next(federate(plan, on(points, plan), begun))
    liar = sorted(honest.weights)[0]
    engine = Tampering(on(points, plan), {liar: claiming(plan, points, 1e9)})
    state, ledger = next(federate(plan, engine, begun))
    assert "at most 50 times that is let in (weight_factor)" in ledger.failed[liar]
    assert 1e9 not in state.weights and len(state.weights) == 5
