"""What attackers of a simulation do, by hand, and which aggregators bear it."""

import pytest
import torch
from rounds import DIGITS, Recording, on, plan_of, points_plan

from fedpeft.adversaries.assignment import choose_adversaries, poison_rows
from fedpeft.core.interfaces import Attack
from fedpeft.core.tensors import equal, layout, scale
from fedpeft.core.types import Reply, Tensors, Update
from fedpeft.engines.inprocess import InProcess
from fedpeft.errors import PlanError
from fedpeft.evaluation.measure import measure, measure_attacks
from fedpeft.registry import build, names
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.wire.payloads import unpack

every = pytest.mark.parametrize("name", sorted(names("attack")))


def made(name: object) -> Attack:
    attack: Attack = build("attack", name)
    return attack


def pictures(count: int) -> Tensors:
    return {
        "image": torch.zeros(count, 1, 8, 8, dtype=torch.uint8),
        "label": torch.arange(count) % 4,
    }


@every
def test_arguments_are_not_touched_and_names_shapes_and_types_are_kept(name: str) -> None:
    attack, rows = made(name), pictures(6)
    update = Update("c", {"a": torch.ones(3)}, 2.0)
    assert layout(attack.poison(rows, 4)) == layout(rows) and equal(rows, pictures(6))
    sent = attack.send(update)
    assert (sent.client, sent.weight, layout(sent.delta)) == ("c", 2.0, layout(update.delta))
    assert equal(update.delta, {"a": torch.ones(3)})


@every
@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range(name: str, share: float) -> None:
    with pytest.raises(PlanError, match=r"share must be in \[0, 1\]"):
        made({"name": name, "share": share})


def test_attackers_are_exactly_their_share_and_those_of_a_smaller_one_are_among_them() -> None:
    clients = [f"c{k}" for k in range(10)]
    few, many = (
        choose_adversaries(made({"name": "scaled", "share": s}), 7, clients) for s in (0.1, 0.3)
    )
    assert len(few) == 1 and len(many) == 3 and set(few) < set(many)
    assert choose_adversaries(made({"name": "sign_flip", "share": 0.3}), 7, clients) == many
    assert choose_adversaries(made({"name": "scaled", "share": 0.0}), 7, clients) == []


def test_labels_flipped_and_pictures_stamped_by_hand() -> None:
    parts = {"a": torch.tensor([0, 2, 4]), "b": torch.tensor([1, 3, 5])}
    rows, flip, stamp = (
        pictures(6),
        made({"name": "label_flip", "share": 0.5}),
        made({"name": "backdoor", "target": 1}),
    )
    [bad] = choose_adversaries(flip, 1, list(parts))
    flipped = poison_rows([flip], 1, rows, parts, 4)["label"]
    want = [3 - k % 4 if k in parts[bad].tolist() else k % 4 for k in range(6)]
    assert flipped.tolist() == want and equal(poison_rows([], 1, rows, parts, 4), rows)
    taught = stamp.poison(rows, 4)
    assert taught["label"].tolist() == [1, 1, 1, 3, 1, 1]
    assert taught["image"].flatten(1).float().sum(1).tolist() == [4 * 255, 0] * 3, (
        "a square of two by two"
    )
    assert bool((taught["image"][0, 0, -2:, -2:] == 255).all())
    probe = stamp.probe(rows, 4)
    assert probe is not None and len(probe["label"]) == 4 and probe["label"].tolist() == [1] * 4
    assert bool((probe["image"][:, 0, -2:, -2:] == 255).all())


@pytest.mark.parametrize("attack", ["backdoor", {"name": "backdoor", "target": 9}])
def test_an_attack_that_the_data_do_not_admit(attack: object) -> None:
    with pytest.raises(
        PlanError, match="cannot be made here: a backdoor needs pictures with labels"
    ):
        open_site(points_plan(attacks=[attack]))


def test_what_attackers_send_is_what_they_trained_changed(points: Site) -> None:
    honest, plan = (
        points_plan(rounds=1),
        points_plan(rounds=1, attacks=[{"name": "sign_flip", "share": 0.5}, "scaled"]),
    )
    bad, worse = (
        choose_adversaries(attack, plan.seed, points.data.clients) for attack in plan.attacks
    )
    seen = []
    for one in (honest, plan):
        recording = Recording(on(points, one))
        next(federate(one, recording, start(one, points.params())))
        replies = (
            unpack(r.client, r.payload, one.uplink, layout(points.params()))
            for r in recording.replies
            if isinstance(r, Reply)
        )
        seen.append({update.client: update for update in replies})
    factors = {c: (-4.0 if c in bad else 1.0) * (10.0 if c in worse else 1.0) for c in seen[0]}
    assert len(set(factors.values())) > 1
    for client, update in seen[0].items():
        assert equal(seen[1][client].delta, scale(update.delta, factors[client])), client


ATTACKS = {
    "sign_flip": {"name": "sign_flip", "share": 0.3, "factor": 10.0},
    "scaled": [{"name": "label_flip", "share": 0.3}, {"name": "scaled", "share": 0.3}],
}


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_the_mean_falls_and_the_robust_ones_stand(attack: str) -> None:
    changes = {
        "partition": {"name": "iid", "clients": 10},
        "cohort": 10,
        "rounds": 5,
        "attacks": ATTACKS[attack],
    }
    site = open_site(points_plan(**changes))
    reached = {}
    for name in ("geometric_median", "krum", "mean", "median", "multi_krum", "trimmed_mean"):
        settings = {
            "trimmed_mean": {"trim": 0.3},
            "krum": {"attackers": 0.3},
            "multi_krum": {"attackers": 0.3},
        }
        plan = points_plan(**changes, aggregator={"name": name, **settings.get(name, {})})
        *_, (state, ledger) = federate(plan, on(site, plan), start(plan, site.params()))
        assert not ledger.failed
        reached[name] = measure(site, state.params)["accuracy"]
    assert reached.pop("mean") < 0.5 and min(reached.values()) > 0.9


@pytest.mark.slow
def test_a_backdoor_is_learned_and_its_success_is_told_apart_from_accuracy() -> None:
    changes = {
        **DIGITS,
        "partition": {"name": "iid", "clients": 4},
        "cohort": 2,
        "rounds": 1,
        "method": "bias",
    }
    plan = plan_of(**changes, attacks=[{"name": "backdoor", "share": 1.0, "target": 3}])
    site = open_site(plan)
    assert measure_attacks(site, site.params())["backdoor success"] < 0.3
    *_, (state, _) = federate(plan, InProcess(site), start(plan, site.params()))
    assert (
        measure_attacks(site, state.params)["backdoor success"] > 0.8
        and measure(site, state.params)["accuracy"] > 0.5
    )
