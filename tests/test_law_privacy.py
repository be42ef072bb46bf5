"""Laws of the stages that add noise: what a client can move is bounded, and the noise is as large
as said."""

from dataclasses import replace
from math import inf, sqrt

import pytest
import torch
from torch import Tensor

from fedpeft.core.interfaces import Stage
from fedpeft.core.secrets import Secret
from fedpeft.core.tensors import clip_length, equal, finite, norm
from fedpeft.core.types import Cohort, Context, Tensors, Update, Weighted
from fedpeft.registry import build, names

SECRET = Secret(bytes(range(32)))
CONTEXT = Context("run", 0, 3, "c0", 10, 2, 7, SECRET)


def private_stages() -> list[str]:
    return [name for name in sorted(names("stage")) if build("stage", name).event is not None]


every = pytest.mark.parametrize("name", private_stages())


def made(name: str, clip_norm: float = 1.0, noise: float = 0.0) -> Stage:
    stage: Stage = build("stage", {"name": name, "clip_norm": clip_norm, "noise_multiplier": noise})
    return stage


def update(seed: int, size: int = 20) -> Update:
    draws = torch.Generator().manual_seed(seed)
    delta = {"a": torch.randn(size, 5, generator=draws), "b": torch.randn(3, generator=draws)}
    return Update("c0", delta, 2.0, {"loss": Weighted(1.0, 2.0)})


def cohort(planned: int, answered: int) -> Cohort:
    return Cohort(0, 100, planned, {f"c{k}": 1.0 for k in range(answered)}, 1, SECRET)


def test_the_private_stages_are_known() -> None:
    assert private_stages() == ["client_dp", "local_dp"]


@every
def test_what_is_sent_is_no_longer_than_the_clip_norm(name: str) -> None:
    for limit in (1e-3, 0.7, 100.0):
        up, _ = made(name, limit).on_client(update(1), {}, CONTEXT)
        assert float(norm(up.delta)) <= limit
        if limit == 100:
            assert equal(up.delta, update(1).delta)
        else:
            assert float(norm(up.delta)) == pytest.approx(limit, rel=2e-6)


@every
def test_metrics_and_weight_stay_with_the_client(name: str) -> None:
    up, memory = made(name).on_client(update(1), {}, CONTEXT)
    assert up.metrics == {} and up.weight == 1.0 and memory == {}
    came = made(name).on_arrival(update(1))  # from one who keeps to nothing
    assert came.metrics == {} and came.weight == 1.0


@every
@pytest.mark.parametrize("value", [0.0, float("nan"), inf, -inf])
def test_a_zero_or_broken_update_passes_as_zero(name: str, value: float) -> None:
    delta = {"a": torch.zeros(4), "b": torch.tensor([value, 1.0 if value else 0.0])}
    up, _ = made(name).on_client(Update("c0", delta), {}, CONTEXT)
    assert finite(up.delta) and float(norm(up.delta)) == 0


def test_a_long_update_is_clipped_again_where_it_arrives() -> None:
    came = made("client_dp", 0.5).on_arrival(update(1))
    assert float(norm(came.delta)) <= 0.5


def test_numbers_too_coarse_for_the_sensitivity_are_refused() -> None:
    with pytest.raises(ValueError, match="bfloat16"):
        made("client_dp").on_client(
            Update("c0", {"a": torch.ones(3, dtype=torch.bfloat16)}), {}, CONTEXT
        )


@pytest.mark.parametrize("answered", [10, 7])
def test_the_servers_noise_is_z_c_over_m(answered: int) -> None:
    """However many of the m answer."""
    still = Update("", {"a": torch.zeros(200, 500)})
    out = made("client_dp", 0.5, 3.0).on_server(still, cohort(10, answered)).delta["a"]
    assert float(out.std()) == pytest.approx(3.0 * 0.5 / 10, rel=0.02)
    assert abs(float(out.mean())) < 4 * 0.15 / sqrt(out.numel())


def test_a_clients_own_noise_is_z_c() -> None:
    up, _ = made("local_dp", 0.5, 3.0).on_client(
        Update("c0", {"a": torch.zeros(200, 500)}), {}, CONTEXT
    )
    assert float(up.delta["a"].std()) == pytest.approx(1.5, rel=0.02)


def test_local_noise_is_accounted_for_any_two_updates() -> None:
    """Two vectors of length C are up to 2C apart."""
    event = made("local_dp", 1.0, 3.0).event
    assert event is not None and event.noise_multiplier == 1.5 and not event.central


@pytest.mark.parametrize("others", [1, 5])
def test_a_client_that_drops_out_moves_the_result_by_no_more_than_c_over_m(others: int) -> None:
    """Against the mean of those who answered, which would move by up to twice as much."""
    stage, mean = made("client_dp", 1.0), build("aggregator", "mean")
    along = clip_length({"a": torch.ones(8)}, 1.0)
    against: Tensors = {"a": -along["a"]}
    rest = [Update(f"o{k}", along) for k in range(others)]

    def released(updates: list[Update]) -> Tensor:
        planned = others + 1
        one = mean(iter(updates), None, lambda client: {})
        return stage.on_server(one, cohort(planned, len(updates))).delta["a"]

    moved = float((released([*rest, Update("x", against)]) - released(rest)).norm())
    assert moved <= 1 / (others + 1) + 1e-6
    plain = [
        float(torch.stack([u.delta["a"] for u in us]).mean(0).norm())
        for us in ([*rest, Update("x", against)], rest)
    ]
    assert abs(plain[0] - plain[1]) > 1 / (others + 1) + 0.1


@pytest.mark.parametrize("others", ["alike", "opposed"])
def test_one_of_5000_clients_moves_the_sum_by_no_more_than_c(others: str) -> None:
    """In float32 it moved it by up to 1.0003 of that."""
    stage, mean, clients = made("client_dp", 1.0), build("aggregator", "mean"), 5_000
    draws = torch.Generator().manual_seed(1)
    along = torch.tensor([0.6, -0.2, 0.1, 1 / 3]) + torch.rand(clients, 4, generator=draws) / 10
    sign = torch.tensor([1.0, -1.0]).repeat(clients // 2)[:, None]
    rows = along if others == "alike" else along * sign
    rows = rows / rows.norm(dim=1, keepdim=True)
    came = [stage.on_arrival(Update(f"c{k}", {"a": row})) for k, row in enumerate(rows)]

    def total(updates: list[Update]) -> Tensor:
        one = mean(iter(updates), None, lambda client: {})
        whole: Tensor = one.delta["a"].double() * len(updates)
        return whole

    whole = total(came)
    for missing in (0, 2_500, 4_999):
        moved = whole - total(came[:missing] + came[missing + 1 :])
        assert 1 - 1e-5 <= float(moved.norm()) <= 1 + 1e-9


def test_noise_is_added_before_anything_is_rounded() -> None:
    """A sum that is rounded first may move by more than one client."""
    mean = torch.tensor([1 / 3, 1e-9, -0.7], dtype=torch.float64)
    seen = SECRET.bound({"a": mean}).at("a").normal((3,))
    out = made("client_dp", 0.5, 3.0).on_server(Update("", {"a": mean}), cohort(10, 7)).delta["a"]
    assert out.dtype is torch.float32
    assert torch.equal(out, (mean * 0.7 + seen * (3.0 * 0.5 / 10)).float())


@every
def test_without_noise_and_clipping_nothing_changes_by_a_bit(name: str) -> None:
    stage = made(name, inf)
    up, _ = stage.on_client(update(1), {}, CONTEXT)
    down = stage.on_server(stage.on_arrival(up), cohort(4, 4))
    assert equal(down.delta, update(1).delta)


@every
def test_noise_is_another_in_every_round_for_every_client_and_for_every_root(name: str) -> None:
    def noise(context: Context, cohort_: Cohort) -> Tensors:
        stage = made(name, 1.0, 1.0)
        up, _ = stage.on_client(Update("c0", {"a": torch.zeros(50)}), {}, context)
        return stage.on_server(up, cohort_).delta

    def with_key(key: Secret) -> Tensors:
        return noise(replace(CONTEXT, secret=key), replace(cohort(2, 2), secret=key))

    assert equal(with_key(SECRET), with_key(SECRET))
    found = [
        with_key(key)["a"]
        for key in (SECRET, SECRET.at("round", 1), SECRET.at("c1"), Secret(bytes(32)))
    ]
    assert all(not torch.equal(a, b) for k, a in enumerate(found) for b in found[:k])
    # and it is not the seed that a plan or a job holds which makes it
    assert equal(noise(replace(CONTEXT, seed=8), replace(cohort(2, 2), seed=8)), with_key(SECRET))


def test_the_servers_noise_is_another_for_another_mean() -> None:
    """Were it the same for a round that is done again with other replies, their difference would
    have none."""
    stage = made("client_dp", 1.0, 1.0)
    one, other = (Update("", {"a": torch.full((50,), x)}) for x in (0.0, 0.001))
    noise = [stage.on_server(u, cohort(2, 2)).delta["a"] - u.delta["a"] for u in (one, other)]
    assert float((noise[0] - noise[1]).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("kind", "name"), [("stage", "client_dp"), ("stage", "local_dp"), ("local", "dp_sgd")]
)
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"clip_norm": float("nan")}, "clip_norm must be positive"),
        ({"noise_multiplier": -1.0}, "noise_multiplier must be"),
        ({"noise_multiplier": inf}, "noise_multiplier must be"),
        ({"clip_norm": inf, "noise_multiplier": 1.0}, "clip_norm must be finite"),
    ],
)
def test_values_that_no_gaussian_has(
    kind: str, name: str, settings: dict[str, float], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        type(build(kind, name))(**settings)
