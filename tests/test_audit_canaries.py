"""The canary audit: it sees what the mechanisms do, sound ones pass, and broken ones are found."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from math import exp, log
from typing import Any

import pytest
import torch
from marks import slow_but
from rounds import points_plan

from fedpeft.audits.canaries import Canaries, hatch
from fedpeft.audits.canary_audit import audit_canaries, choose_number, likelihood_ratio
from fedpeft.audits.canary_rounds import observe_rounds
from fedpeft.audits.epsilon_bound import Guesses, bound_epsilon
from fedpeft.core.interfaces import Data, LossFn
from fedpeft.core.types import Batch, Carry, Cohort, Context, Event, Tensors, Update
from fedpeft.errors import PlanError, RunError
from fedpeft.local.descent import Descent
from fedpeft.local.dp_sgd import DpSgd
from fedpeft.registry import build, names
from fedpeft.rounds.site import Site, open_site, threads
from fedpeft.stages.client_dp import ClientDp
from fedpeft.stages.local_dp import LocalDp

KINDS = ("dp_sgd", "client_dp", "local_dp")
every = pytest.mark.parametrize("kind", KINDS)
DELTA = 1e-5


def part_of(kind: str, noise: float, **settings: Any) -> dict[str, Any]:
    """The keys of a plan with that private part, of noise multiplier `noise` by sensitivity."""
    if kind == "dp_sgd":
        own = {"rate": 1.0, "steps": 1, "batch_size": 8, "chunk": 256, **settings}
        return {"local": {"name": kind, "noise_multiplier": noise, **own}}
    by_clip = noise * 2 if kind == "local_dp" else noise  # two updates are up to 2C apart
    return {"stages": [{"name": kind, "noise_multiplier": by_clip, **settings}]}


def site_with(kind: str, noise: float, numbers: int = 1200, **changes: Any) -> Site:
    """A linear model with about so many numbers, three for each feature."""
    features = numbers // 3 + 1
    part = part_of(kind, noise, **changes.pop("settings", {}))
    return open_site(
        points_plan(
            task={"name": "parts:Points", "features": features},
            data={"name": "parts:Blobs", "features": features, "examples": 60},
            partition={"name": "iid", "clients": 4},
            method="full",
            weighting="uniform",
            **{"delta": DELTA, "accountant": "pld", **part, **changes},
        )
    )


@dataclass(frozen=True, kw_only=True)
class WeakDpSgd(DpSgd):
    """DP-SGD that does less than its event tells.

    Attributes:
      far: it clips at so many times its clip norm.
      less: its noise by what it tells.
    """

    far: float = 1.0
    less: float = 1.0

    @property
    def real(self) -> DpSgd:
        assert self.noise_multiplier is not None
        own = {slot.name: getattr(self, slot.name) for slot in fields(DpSgd) if slot.init}
        noise = self.noise_multiplier * self.less / self.far
        return DpSgd(**{**own, "clip_norm": self.clip_norm * self.far, "noise_multiplier": noise})

    def batches(self, data: Data, received: Tensors, context: Context) -> Iterable[Batch]:
        return self.real.batches(data, received, context)

    def step(self, carry: Carry, batch: Batch, losses: LossFn) -> Carry:
        return self.real.step(carry, batch, losses)


@dataclass(frozen=True)
class WeakClientDp(ClientDp):
    """The same for `client_dp`."""

    far: float = 1.0
    less: float = 1.0

    @property
    def real(self) -> ClientDp:
        assert self.noise_multiplier is not None
        return ClientDp(self.clip_norm * self.far, self.noise_multiplier * self.less / self.far)

    def on_client(
        self, update: Update, memory: Tensors, context: Context
    ) -> tuple[Update, Tensors]:
        return self.real.on_client(update, memory, context)

    def on_arrival(self, update: Update) -> Update:
        return self.real.on_arrival(update)

    def on_server(self, update: Update, cohort: Cohort) -> Update:
        return self.real.on_server(update, cohort)


@dataclass(frozen=True)
class WeakLocalDp(LocalDp):
    """The same for `local_dp`."""

    far: float = 1.0
    less: float = 1.0

    def on_client(
        self, update: Update, memory: Tensors, context: Context
    ) -> tuple[Update, Tensors]:
        assert self.noise_multiplier is not None
        real = LocalDp(self.clip_norm * self.far, self.noise_multiplier * self.less / self.far)
        return real.on_client(update, memory, context)


@dataclass(frozen=True, kw_only=True)
class Unclipped:
    """A user's own training that adds noise, and bounds nothing by a clip norm."""

    inner: Descent = Descent()
    precision: str = "float32"
    passes: float = 1.0

    @property
    def event(self) -> Event | None:
        return Event("example", 1.0)

    def steps_for(self, size: int) -> int:
        return self.inner.steps_for(size)

    def batches(self, data: Data, received: Tensors, context: Context) -> Iterable[Batch]:
        return self.inner.batches(data, received, context)

    def begin(self, received: Tensors, memory: Tensors, context: Context) -> Carry:
        return self.inner.begin(received, memory, context)

    def step(self, carry: Carry, batch: Batch, losses: LossFn) -> Carry:
        return self.inner.step(carry, batch, losses)

    def finish(
        self, carry: Carry, received: Tensors, memory: Tensors
    ) -> tuple[Tensors, Tensors, Tensors]:
        return self.inner.finish(carry, received, memory)


def weakened(site: Site, far: float = 1.0, less: float = 1.0) -> Site:
    """The site with a private part that claims what it did before, and does less."""
    part = site.plan.private_part
    weak: dict[type, type] = {DpSgd: WeakDpSgd, ClientDp: WeakClientDp, LocalDp: WeakLocalDp}
    own = {slot.name: getattr(part, slot.name) for slot in fields(part) if slot.init}
    broken = weak[type(part)](**own, far=far, less=less)
    if isinstance(broken, WeakDpSgd):
        return replace(site, plan=replace(site.plan, local=broken))
    return replace(site, plan=replace(site.plan, stages=(broken,)))


def seen_of(site: Site, count: int, rounds: int = 1) -> tuple[Canaries, torch.Tensor]:
    canaries = hatch(site, count, rounds, seed=3)
    with threads(1):
        return canaries, torch.stack(list(observe_rounds(canaries, 3, lambda: None)))


def test_every_private_part_is_audited_here() -> None:
    own = {"trainer": "own_trainers:make"}
    given = {"trainer": own, "model_trainer": own}
    parts = {
        name: build(kind, {"name": name, **given.get(name, {})})
        for kind in ("local", "stage")
        for name in names(kind)
    }
    assert {name for name, part in parts.items() if part.event and part.event.accounted} == {*KINDS}


def test_no_two_canaries_share_a_number_of_the_model() -> None:
    canaries = hatch(site_with("client_dp", 1.0), 300, 1, seed=0)
    assert canaries.places.shape == (300, 4)
    assert len(set(canaries.places.flatten().tolist())) == 1200
    assert 120 < int(canaries.included.sum()) < 180
    assert hatch(site_with("client_dp", 1.0), 700, 1, seed=0).places.shape == (700, 1)


def test_what_a_coin_decides_is_what_the_accountants_neighbours_differ_in() -> None:
    example, client, local = (hatch(site_with(kind, 1.0), 50, 1, seed=0) for kind in KINDS)
    inside = example.included.nonzero()[:, 0]
    assert example.site.data.clients == ["canaries"] and not example.absent
    rows = next(iter(example.site.data.training("canaries")))
    assert torch.equal(rows["places"], example.places[inside])
    assert (rows["sign"] == 1).all()
    out = {f"canary{k:06d}" for k in range(50) if not client.included[k]}
    assert client.absent == out and len(client.site.data.clients) == 50
    assert not local.absent
    signs = [next(iter(local.site.data.training(c)))["sign"] for c in local.site.data.clients]
    assert torch.equal(torch.cat(signs) > 0, local.included)


@every
@pytest.mark.parametrize("clip_norm", slow_but([0.02], [0.02, 5.0]))
def test_a_canary_that_is_in_moves_what_is_seen_by_one_unit(kind: str, clip_norm: float) -> None:
    """And the noise is what the accountant is told: the mechanisms' own clipping and noise."""
    site = site_with(kind, 0.5, settings={"clip_norm": clip_norm})
    canaries, seen = seen_of(site, 400, rounds=2)
    for row in seen:
        there, out = row[canaries.included], row[~canaries.included]
        assert float(there.mean()) == pytest.approx(1.0, abs=0.15)
        assert float(out.mean()) == pytest.approx(0.0, abs=0.15)
        assert float(there.std()) == pytest.approx(0.5, rel=0.2)
        assert float(out.std()) == pytest.approx(0.5, rel=0.2)
    together = torch.corrcoef(seen[:, ~canaries.included])
    assert abs(float(together[0, 1])) < 0.25  # each round has noise of its own


@pytest.mark.slow
def test_poisson_draws_are_seen_too() -> None:
    site = site_with("dp_sgd", 0.5, settings={"rate": 0.3, "steps": 4})
    canaries, seen = seen_of(site, 600)
    there, out = seen[0, canaries.included], seen[0, ~canaries.included]
    assert float(there.mean()) == pytest.approx(4 * 0.3, abs=0.2)
    assert float(there.var()) == pytest.approx(4 * (0.25 + 0.3 * 0.7), rel=0.25)
    assert float(out.var()) == pytest.approx(4 * 0.25, rel=0.25)


@every
def test_a_codec_that_rounds_leaves_the_canaries_be(kind: str) -> None:
    site = site_with(kind, 0.5, uplink="float16")
    canaries, seen = seen_of(site, 200)
    gap = seen[0, canaries.included].mean() - seen[0, ~canaries.included].mean()
    assert float(gap) == pytest.approx(1.0, abs=0.2)


def test_likelihood_ratios_by_hand() -> None:
    seen = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    once = likelihood_ratio(seen, Event("client", 2.0))
    assert once.tolist() == pytest.approx([(2 * x - 1) / 8 for x in seen.tolist()])
    drawn = likelihood_ratio(seen, Event("example", 1.0, 0.25, 1))
    wanted = [log(0.75 + 0.25 * exp((2 * x - 1) / 2)) for x in seen.tolist()]
    assert drawn.tolist() == pytest.approx(wanted)
    twice = likelihood_ratio(seen, Event("example", 1.0, 0.5, 2))
    wanted = [
        log(0.25 + 0.5 * exp((2 * x - 1) / 4) + 0.25 * exp((4 * x - 4) / 4)) for x in seen.tolist()
    ]
    assert twice.tolist() == pytest.approx(wanted)
    assert torch.equal(likelihood_ratio(seen, Event("client", 0.0)), seen)


def test_the_number_of_guesses_is_chosen_before_the_audit() -> None:
    """It follows from the plan alone: few where noise hides most canaries, most where it hides
    none."""
    noisy, plain = Event("client", 1.0), Event("client", 0.0)
    assert choose_number(noisy, 1, 1000, DELTA) == choose_number(noisy, 1, 1000, DELTA) < 500
    assert choose_number(plain, 1, 1000, DELTA) > 500


@every
def test_one_audit_is_the_same_twice_and_another_with_another_seed(kind: str) -> None:
    site = site_with(kind, 1.0, 300)
    found = [audit_canaries(site, 100, 1, seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] and found[0]["included"] != found[2]["included"]


@pytest.mark.parametrize("kind", slow_but(["dp_sgd", "client_dp"], KINDS))
def test_sound_mechanisms_are_not_refuted(kind: str) -> None:
    """Eight audits of each: five in a hundred may be, and none is by far."""
    site = site_with(kind, 1.0, 240, accountant="rdp")
    found = [audit_canaries(site, 120, 1, seed) for seed in range(8)]
    assert all(one["holds"] and 0 <= one["epsilon_lower"] < one["epsilon_upper"] for one in found)
    assert sum(one["epsilon_lower"] > 0.3 for one in found) >= 4  # and it does see something


@pytest.mark.slow
@every
def test_more_rounds_are_accounted_and_seen(kind: str) -> None:
    site = site_with(kind, 2.0, 400)
    steps: list[int] = []
    one, several = (audit_canaries(site, 200, rounds, 0, steps.append) for rounds in (1, 6))
    assert steps == [steps[0]] * steps[0] + [steps[-1]] * steps[-1]  # as many as were told
    assert several["epsilon_upper"] > 2 * one["epsilon_upper"]
    assert several["epsilon_lower"] > one["epsilon_lower"] + 0.5 and several["holds"]


@pytest.mark.parametrize("kind", slow_but(["dp_sgd", "client_dp"], KINDS))
def test_a_mechanism_that_does_not_clip_is_found(kind: str) -> None:
    site = site_with(kind, 2.0, 600)
    assert audit_canaries(site, 300, 1)["holds"]
    found = audit_canaries(weakened(site, far=1e6), 300, 1)
    assert not found["holds"] and found["epsilon_lower"] > 1.5 * found["epsilon_upper"]


@pytest.mark.parametrize("kind", slow_but(["client_dp"], KINDS))
def test_a_quarter_of_the_noise_is_found(kind: str) -> None:
    site = site_with(kind, 2.0, 1000)
    found = audit_canaries(weakened(site, less=0.25), 1000, 1)
    assert not found["holds"] and found["epsilon_lower"] > 1.25 * found["epsilon_upper"]


def test_half_the_noise_is_found() -> None:
    """At δ = 3e-5 the noise z = 2 promises ε = 1.86, half of it ε = 4.0: to tell these two apart
    takes ten thousand canaries or more, of which few are guessed."""
    site = site_with("dp_sgd", 2.0, 12_000, delta=3e-5)
    found = audit_canaries(weakened(site, less=0.5), 12_000, 1)
    assert found["epsilon_upper"] == pytest.approx(1.857, abs=0.01)
    assert not found["holds"] and found["epsilon_lower"] > 1.2 * found["epsilon_upper"]


@pytest.mark.slow
def test_half_the_noise_of_clients_is_found() -> None:
    """Not so under `local_dp`: each of as many clients would draw noise for as many numbers."""
    site = site_with("client_dp", 2.0, 12_000, delta=3e-5)
    found = audit_canaries(weakened(site, less=0.5), 12_000, 1)
    assert not found["holds"] and found["epsilon_lower"] > 1.1 * found["epsilon_upper"]


@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_every_coin_is_told_and_nothing_was_promised(kind: str) -> None:
    """Not every canary is guessed: as many are called in as out, and the coins fell otherwise."""
    found = audit_canaries(site_with(kind, 0.0, 300), 100, 1)
    assert found["right"] == found["guesses"] == 70 and found["epsilon_upper"] is None
    assert found["epsilon_lower"] == bound_epsilon(Guesses(100, 70, 70), DELTA) and found["holds"]


def test_rounds_are_those_of_the_client_that_takes_part_most_often() -> None:
    site = site_with("client_dp", 1.0, 120, rounds=3, cohort=4)
    assert audit_canaries(site, 30)["rounds"] == 3


def test_what_cannot_be_audited_is_refused() -> None:
    site = site_with("client_dp", 1.0, 120)
    with pytest.raises(PlanError, match="this plan promises no epsilon"):
        audit_canaries(replace(site, plan=points_plan()), 30)
    with pytest.raises(PlanError, match="this plan promises no epsilon"):
        audit_canaries(replace(site, plan=points_plan(local="dp_as_published")), 30)
    unclipped = replace(site, plan=replace(site.plan, stages=(), local=Unclipped()))
    with pytest.raises(PlanError, match="Unclipped has no clip_norm"):
        audit_canaries(unclipped, 30, 1)
    for count in (3, 400):
        with pytest.raises(PlanError, match=r"takes 20 to 12\d canaries"):
            audit_canaries(site, count)
    with pytest.raises(PlanError, match="cannot take part in -1 rounds"):
        audit_canaries(site, 30, -1)


def test_a_canary_that_fails_ends_the_audit() -> None:
    site = site_with("client_dp", 1.0, 120)
    canaries = hatch(site, 30, 1, seed=0)
    broken = replace(canaries, site=replace(canaries.site, plan=replace(site.plan, cohort=30)))
    with pytest.raises(RunError, match="a canary could not be trained"):
        list(observe_rounds(broken, 0, lambda: None))
