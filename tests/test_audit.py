"""What a server can tell of a client: where it provably can, where it cannot, and that baselines
are in place."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rounds import last, plan_of, points_plan, run, staged
from running import PLAN, fedpeft
from secure_rounds import secure_plan

from fedpeft.audits.attack import Attacker, Effort, attack, favourite
from fedpeft.audits.inversion import labels_of, psnr, solved, sought, ssim
from fedpeft.audits.membership import auc, membership
from fedpeft.audits.messages import alone, overheard, partitioned
from fedpeft.cli.audit import describe_leaks
from fedpeft.core.tensors import equal
from fedpeft.core.types import Batch, Division, Examples, Table
from fedpeft.errors import PlanError, RunError
from fedpeft.plan.tables import Privacy
from fedpeft.rounds.site import Site, open_site, site_of

PLAIN = {"name": "sgd", "momentum": 0.0, "nesterov": False}
POINT = {"method": "full", "local": {"lr": 0.1, "epochs": 3, "optimizer": PLAIN}}


def on_points(site: Site, **changes: object) -> Site:
    return replace(site, plan=points_plan(**{**POINT, **changes}))


@pytest.fixture(scope="module")
def fitted() -> Site:
    """Labels of chance, and as many features as it takes to learn them by heart."""
    draws = torch.Generator().manual_seed(0)
    point, label = torch.randn(300, 64, generator=draws), torch.randint(3, (300,), generator=draws)
    train, test = (
        Table({"point": point[some], "label": label[some]}) for some in (slice(60), slice(60, None))
    )
    plan = points_plan(
        task={"name": "parts:Points", "features": 64},
        method="full",
        local={"epochs": 60},
        rounds=1,
        cohort=2,
    )
    division = Division({"a": torch.arange(30), "b": torch.arange(30, 60)})
    return site_of(plan, Examples(train, test, ("0", "1", "2")), division)


def test_a_linear_layer_with_a_bias_gives_its_only_example_away(points: Site) -> None:
    site, client = on_points(points), points.data.clients[0]
    data = partitioned(site)
    for place in range(3):
        here = alone(site, client, place)
        [message] = overheard(here, client, 1)
        truth = {name: x[data.parts[client][place]][None] for name, x in data.train.items()}
        guess = torch.randn(1, 8, generator=torch.Generator().manual_seed(1))
        batch = {"point": guess, "label": torch.tensor([0]), "mask": torch.ones(1)}
        found = solved(message, guess, batch)
        assert found is not None
        torch.testing.assert_close(found[0], truth["point"][0], rtol=1e-4, atol=1e-4)
        assert labels_of(message.delta, "head.bias", 1).equal(truth["label"])


def test_the_attack_finds_that_out_by_itself(points: Site) -> None:
    site = on_points(points)
    found = attack(site, favourite(site), Effort())
    one = found["inversion"]["one_example"]
    assert (
        one["labels_right"] == 1
        and one["psnr_found"] > 60 > 30 > one["psnr_class_mean"] > one["psnr_mean"]
    )
    assert one["ahead_low"] > 30 and one["tries"] == 4
    assert found["inversion"]["as_sent"]["psnr_found"] < 30


def test_a_search_comes_to_the_same(points: Site) -> None:
    site, client = (
        on_points(points, local={"lr": 0.1, "batch_size": 1, "optimizer": PLAIN}),
        points.data.clients[0],
    )
    here = alone(site, client, 0)
    messages = overheard(here, client, 1)
    truth = next(iter(here.data.training(client)))

    def batch(x: torch.Tensor) -> Batch:
        return {**truth, "point": x}

    begin = torch.zeros_like(truth["point"])
    found = sought(messages, begin, batch, (-4.0, 4.0), 300)
    torch.testing.assert_close(found, truth["point"], rtol=0, atol=0.1)
    assert equal({"x": begin}, {"x": torch.zeros_like(begin)})


def test_labels_from_a_bias() -> None:
    """Three examples of class 0 and one of class 2, from even odds, raise their biases by 2 and
    lower the others'."""
    assert labels_of({"b": torch.tensor([3.0, -1.0, 1.0, -3.0])}, "b", 4).tolist() == [0, 0, 0, 2]


def test_auc_counts_pairs_of_one_class() -> None:
    members, others = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 3.0])
    every = torch.ones(2, 2, dtype=torch.bool)
    assert auc(members, others, every).value == pytest.approx((0 + 0 + 1 + 0.5) / 4)
    assert auc(members, others, torch.eye(2, dtype=torch.bool)).value == pytest.approx(
        (0 + 0.5) / 2
    )
    draws = torch.Generator().manual_seed(0)
    much = auc(
        torch.randn(200, generator=draws) + 1,
        torch.randn(300, generator=draws),
        torch.ones(200, 300).bool(),
    )
    assert much.low < 0.760 < much.high  # Φ(1 / √2)
    assert 0.05 < much.high - much.low < 0.12


def test_who_was_learned_by_heart_is_told_apart(fitted: Site) -> None:
    found = membership(fitted, "a", overheard(fitted, "a"))
    assert found["before"].low < 0.5 < found["before"].high
    assert min(found[name].low for name in ("loss", "gain", "cosine")) > 0.6
    assert max(found[name].value for name in ("loss", "gain", "cosine")) > 0.9


def test_noise_hides_who_was_there(fitted: Site) -> None:
    local = {
        "name": "dp_sgd",
        "steps": 4,
        "rate": 0.25,
        "batch_size": 8,
        "noise_multiplier": 20.0,
        "lr": 0.1,
    }
    plan = replace(
        fitted.plan,
        local=points_plan(local=local, weighting="uniform", delta=1e-3).local,
        weighting="uniform",
        privacy=Privacy(delta=1e-3, accountant="rdp"),
    )
    site = replace(fitted, plan=plan)
    found = membership(site, "a", overheard(site, "a"))
    assert all(score.value < 0.75 for score in found.values())


@pytest.mark.parametrize(("stage", "own"), [("client_dp", False), ("local_dp", True), ("", None)])
def test_whose_noise_is_in_a_message_is_told(stage: str, own: bool | None, points: Site) -> None:
    site = replace(points, plan=points_plan(**{**POINT, **staged(stage)}))
    found = attack(site, favourite(site), Effort(pictures=2, steps=1, messages=1))
    assert found["privacy"] == (stage or None) and found["noise_in_messages"] is own
    text = "\n".join(describe_leaks(found))
    assert (f"noise of {stage}" in text) == bool(stage) and ("none of its own" in text) == (
        own is False
    )


def test_who_is_attacked_was_drawn_where_a_sampler_learns(points: Site) -> None:
    """Whom it draws later depends on what it learns, so that the first round alone is known."""
    bandit = {"name": "bandit", "visits": 2}
    plan = points_plan(sampler=bandit, cohort=3, rounds=6, engine="inprocess")
    site = replace(points, plan=plan)
    client = favourite(site)
    [(_, first), *_] = run(points, replace(plan, rounds=1))
    assert client == min(first.cohort)
    assert overheard(site, client, 1)[0].round == 0


def test_what_is_heard_is_what_the_run_sends(points: Site) -> None:
    plan = points_plan(cohort=1, rounds=6)
    site = replace(points, plan=plan)
    client = favourite(site)
    heard = overheard(site, client)
    rounds = run(points, plan)
    assert [m.round for m in heard] == [
        ledger.round for _, ledger in rounds if client in ledger.weights
    ]
    for message in heard:
        assert equal(message.sent, rounds[message.round][0].params)
    assert len(overheard(site, client, 1)) == 1
    assert equal(last(rounds), rounds[-1][0].params)


def test_what_scaffold_shares_is_not_the_clients_update(points: Site) -> None:
    plan = points_plan(local={"correction": "scaffold"}, rounds=2, cohort=24)
    site = replace(points, plan=plan)
    client = points.data.clients[0]
    heard = overheard(site, client)
    assert [sorted(message.delta) for message in heard] == [["head.bias", "head.weight"]] * 2
    assert 0 <= membership(site, client, heard)["cosine"].value <= 1


def test_pictures_are_compared_as_usual() -> None:
    a = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert psnr(a, a + 0.1, 1.0).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)
    assert psnr(a, a, 1.0).tolist() == [100.0, 100.0]
    assert ssim(a, a, 1.0).tolist() == pytest.approx([1.0, 1.0])
    assert (ssim(a, 1 - a, 1.0) < 0).all()


def test_what_cannot_be_attacked_is_refused(points: Site) -> None:
    with pytest.raises(PlanError, match="personal"):
        overheard(replace(points, plan=points_plan(personal=["*.bias"])), points.data.clients[0])
    with pytest.raises(PlanError, match="single messages cannot be read"):
        overheard(replace(points, plan=secure_plan()), points.data.clients[0])
    with pytest.raises(RunError, match="takes part in no round"):
        overheard(replace(points, plan=points_plan(rounds=1, cohort=1)), "nobody")
    with pytest.raises(PlanError, match="2 or more"):
        Effort(pictures=1)
    site = open_site(
        points_plan(
            method={"name": "bias", "head": ""}, task={"name": "parts:Points", "network": "tied"}
        )
    )
    assert (
        "bias of a trained head" in attack(site, favourite(site), Effort())["inversion"]["skipped"]
    )


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    run_ = tmp_path / "run"
    assert fedpeft("run", tmp_path / "plan.toml", "--out", run_, "--quiet").exit_code == 0
    told = fedpeft("audit", run_, "--pictures", 2, "--json")
    assert told.exit_code == 0, told.stderr
    found = json.loads(told.stdout)
    assert found["messages"] >= 1 and set(found["membership"]) == {
        "loss",
        "gain",
        "cosine",
        "before",
    }
    shown = fedpeft("audit", run_, "--client", found["client"], "--messages", 1)
    assert (
        "1 message\n" in shown.stdout
        and "0.5 is guessing" in shown.stdout
        and "as sent" in shown.stdout
    )
    assert "no client called 'nobody'" in fedpeft("audit", run_, "--client", "nobody").stderr


@pytest.mark.slow
def test_a_picture_comes_back_through_a_transformer() -> None:
    """One digit, one step of plain descent on all weights: the search gets nearer than the mean of
    its class."""
    site = open_site(
        plan_of(method="full", pack=False, features=False, local={"lr": 0.01, "optimizer": PLAIN})
    )
    client, data = site.data.clients[0], partitioned(site)
    heard = overheard(alone(site, client, 0), client, 1)
    attacker, draws = Attacker.of(site), torch.Generator().manual_seed(0)
    found, label = attacker.invert(heard, 1, 120, draws, lambda: None)
    truth = data.train["image"].float()[data.parts[client][:1]]
    each = attacker.judged(found, label, truth, draws)
    assert each["psnr_found"] > each["psnr_class_mean"] + 5
