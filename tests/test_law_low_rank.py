"""Laws of every registered aggregator that knows low-rank factors, and what exact means."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fedpeft.core.interfaces import LowRank
from fedpeft.core.low_rank import Product, accumulate, cut
from fedpeft.core.tensors import equal, layout
from fedpeft.core.types import State, Tensors, Update
from fedpeft.errors import PlanError
from fedpeft.registry import build, names

KNOWING = [
    name for name in sorted(names("aggregator")) if isinstance(build("aggregator", name), LowRank)
]
A, B = "net.lora_A.default.weight", "net.lora_B.default.weight"
OUT, IN, FULL = 6, 9, 4
every = pytest.mark.parametrize("name", KNOWING)
ranked = pytest.mark.parametrize("ranks", [[4], [4, 4, 4], [1, 2, 4], [4, 2] * 9], ids=str)


def a_state() -> State:
    draws = torch.Generator().manual_seed(0)
    factors = {
        A: torch.randn(FULL, IN, generator=draws),
        B: torch.randn(OUT, FULL, generator=draws),
    }
    return State(0, {**factors, "head": torch.ones(2)})


def cohort(ranks: list[int], still: str = "") -> list[Update]:
    draws, updates = torch.Generator().manual_seed(5), []
    for k, rank in enumerate(ranks):
        delta = {
            n: torch.randn(x.shape, generator=draws) for n, x in cut(a_state().params, rank).items()
        }
        sent = {n: x for n, x in delta.items() if not still or f".lora_{still}." not in n}
        updates.append(Update(f"c{k}", sent, float(k + 1)))
    return updates


def reduced(name: object, ranks: list[int], backwards: bool = False) -> tuple[Update, Tensor]:
    """The merged update, and the dense mean of the clients' products."""
    aggregator: Any = build("aggregator", name)
    state, turns = a_state(), getattr(aggregator, "turns", ())
    updates = cohort(ranks, turns[0] if turns else "")
    held = {f"c{k}": cut(state.params, rank) for k, rank in enumerate(ranks)}
    mean = torch.zeros(OUT, IN, dtype=torch.float64)
    for u in updates:
        a, b = (held[u.client][n] + u.delta.get(n, 0) for n in (A, B))
        mean += u.weight / sum(other.weight for other in updates) * (b.double() @ a.double())
    return aggregator(iter(updates[::-1] if backwards else updates), state, held.__getitem__), mean


def after(update: Update) -> tuple[Tensor, Tensor]:
    """A and B after the round."""
    a, b = (a_state().params[n] + update.delta[n] for n in (A, B))
    return a, b


def effective(update: Update) -> Tensor:
    """B·A after the round, with what goes into the frozen weight."""
    a, b = after(update)
    exact = update.exact
    more = exact["net.left"].double() @ exact["net.right"].double() if exact else 0
    return b.double() @ a.double() + more


@every
@ranked
def test_the_error_is_what_a_dense_mean_says(name: str, ranks: list[int]) -> None:
    update, mean = reduced(name, ranks)
    assert layout({n: update.delta[n] for n in a_state().params}) == layout(a_state().params)
    assert update.error is not None
    wanted = float((mean - effective(update)).norm() / mean.norm())
    assert update.error == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ["fedask", "fedex", "flora", "rolora"])
@ranked
def test_exact_ones_are_the_dense_mean(name: str, ranks: list[int]) -> None:
    update, mean = reduced(name, ranks)
    assert float((mean - effective(update)).norm() / mean.norm()) < 1e-5


@every
def test_a_client_alone_is_taken_as_it_is(name: str) -> None:
    update, mean = reduced(name, [FULL])
    torch.testing.assert_close(effective(update), mean, rtol=0, atol=1e-5)


@every
def test_the_order_of_clients_changes_next_to_nothing(name: str) -> None:
    one, two = (reduced(name, [4, 2, 3], backwards)[0] for backwards in (False, True))
    torch.testing.assert_close(effective(one), effective(two), rtol=0, atol=1e-5)


def test_equal_ranks_averaged_are_the_mean_to_the_bit() -> None:
    assert equal(reduced("fedit", [4, 4, 4])[0].delta, reduced("mean", [4, 4, 4])[0].delta)


def test_averages_by_hand() -> None:
    """Two clients of rank 1 and 2 on one weight: A = (1, 0) and (0, 2), B = (3, 0) and (1, 1),
    equal weights."""
    state = State(0, {A: torch.zeros(2, 1), B: torch.zeros(1, 2)})
    one = Update("one", {A: torch.tensor([[1.0]]), B: torch.tensor([[3.0]])})
    two = Update("two", {A: torch.tensor([[0.0], [2.0]]), B: torch.tensor([[1.0, 1.0]])})
    held = {"one": cut(state.params, 1), "two": state.params}
    fedit = build("aggregator", "fedit")([one, two], state, held.__getitem__)
    assert fedit.delta[A].flatten().tolist() == [0.5, 1.0] and fedit.delta[
        B
    ].flatten().tolist() == [2.0, 0.5]
    # The products are 3 and 2; 2·0.5 + 0.5·1.
    assert fedit.error == pytest.approx((2.5 - 1.5) / 2.5)
    hetlora = build("aggregator", "hetlora")([one, two], state, held.__getitem__)
    # Weights as 3 to 2.
    torch.testing.assert_close(hetlora.delta[B], torch.tensor([[0.6 * 3 + 0.4, 0.4]]))
    assert hetlora.weight == 2
    assert hetlora.error == pytest.approx(
        (2.5 - (2.2 * 0.6 + 0.4 * 0.8)) / 2.5
    )  # the mean product by equal weights is 2.5


def test_strength_scales_what_is_merged() -> None:
    half, mean = reduced({"name": "flora", "strength": 0.5}, [4, 2])
    torch.testing.assert_close(effective(half), mean / 2, rtol=0, atol=1e-5)


def test_a_flexible_product_is_the_nearest_of_its_rank() -> None:
    update, mean = reduced("flexlora", [4] * 9)
    u, s, vt = torch.linalg.svd(mean, full_matrices=False)
    a, b = after(update)
    for rank in (1, 2, 3, 4):  # and so are its parts
        got = (b[:, :rank] @ a[:rank]).double()
        torch.testing.assert_close(got, u[:, :rank] * s[:rank] @ vt[:rank], rtol=0, atol=1e-5)


def test_directions_that_nobody_has_still_learn() -> None:
    a, b = after(reduced("flexlora", [1])[0])
    assert not b[:, 1:].any() and bool((a.norm(dim=1) > 0).all())


def test_a_sum_of_many_products_stays_small() -> None:
    draws = torch.Generator().manual_seed(1)
    total, dense = Product.zero(5, 7), torch.zeros(5, 7, dtype=torch.float64)
    for _ in range(40):
        b, a = torch.randn(5, 3, generator=draws), torch.randn(3, 7, generator=draws)
        total, dense = total.plus(b, a, 0.5), dense + 0.5 * b.double() @ a.double()
        assert total.left.shape[1] <= 10
    torch.testing.assert_close(total.left @ total.right, dense)
    assert total.norm() == pytest.approx(float(dense.norm()))


def test_what_is_added_is_kept_in_the_shorter_form() -> None:
    draws, held, dense = torch.Generator().manual_seed(1), dict[str, Tensor](), torch.zeros(8, 8)
    for forms in (["left", "right"], ["left", "right"], ["left", "right"], ["whole"], ["whole"]):
        left, right = torch.randn(8, 1, generator=draws), torch.randn(1, 8, generator=draws)
        more: Tensors = {"net.left": left, "net.right": right}
        held, dense = accumulate(held, more), dense + left @ right
        assert sorted(held) == [f"net.{form}" for form in forms]
        got = held["net.whole"] if "whole" in forms[0] else held["net.left"] @ held["net.right"]
        torch.testing.assert_close(got, dense)


def rank_one(b: list[float], a: list[float]) -> Tensors:
    """A client's factors of rank 1."""
    return {A: torch.tensor([a]), B: torch.tensor([b]).T}


def merged_from_zero(name: object, clients: list[Tensors], still: Tensors | None = None) -> Update:
    """Clients that end with these factors, of equal weights; `still` is what all have of A."""
    zero = {n: torch.zeros_like(x) for n, x in clients[0].items()}
    state = State(0, {**zero, **(still or {})})
    updates = [Update(f"c{k}", delta) for k, delta in enumerate(clients)]
    aggregator: Any = build("aggregator", name)
    update: Update = aggregator(iter(updates), state, lambda client: state.params)
    return update


@pytest.mark.parametrize(
    ("ridge", "wanted"), [(0.0, 1.6), (0.008, 1.5 + 0.125 / 1.26), (0.01, 1.5 + 0.125 / 1.2625)]
)
def test_a_fair_b_by_hand(ridge: float, wanted: float) -> None:
    """Ā = (1, ½), B̄ = 1.5 and M = (1.5, 1), so that M − B̄·Ā = (0, ¼): D = ⅛ / (1.25 + λ')."""
    clients = [rank_one([1.0], [1.0, 0.0]), rank_one([2.0], [1.0, 1.0])]
    update = merged_from_zero({"name": "lora_fair", "ridge": ridge}, clients)
    assert update.delta[B].item() == pytest.approx(wanted, abs=1e-6)
    assert update.delta[A].tolist() == [[1.0, 0.5]]
    missed = (torch.tensor([1.5, 1.0]) - wanted * torch.tensor([1.0, 0.5])).norm()
    assert update.error == pytest.approx(float(missed) / 3.25**0.5, abs=1e-6)


@ranked
def test_a_correction_comes_nearer_to_the_mean_product_than_averages(ranks: list[int]) -> None:
    errors = [
        reduced(name, ranks)[0].error
        for name in ({"name": "lora_fair", "ridge": 0.0}, "lora_fair", "fedit")
    ]
    assert errors[0] <= errors[1] + 1e-12  # type: ignore[operator]
    assert errors[1] < errors[2] or errors[2] < 1e-6  # type: ignore[operator]


@pytest.mark.parametrize("ridge", [-0.1, float("inf"), float("nan")])
def test_a_ridge_out_of_range(ridge: float) -> None:
    with pytest.raises(PlanError, match="ridge must be 0 or positive"):
        build("aggregator", {"name": "lora_fair", "ridge": ridge})


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_even_split_by_hand(sign: float) -> None:
    """(3, 4)ᵀ·(0, 2) has the singular value 10; of ±A the largest entry becomes positive."""
    still = {A: torch.tensor([[0.0, 2.0 * sign]])}
    update = merged_from_zero("fedask", [{B: torch.tensor([[3.0], [4.0]])}], still)
    root = 10**0.5
    wanted = torch.tensor([[0.6 * root * sign], [0.8 * root * sign]])
    torch.testing.assert_close(update.delta[B], wanted)
    torch.testing.assert_close(still[A] + update.delta[A], torch.tensor([[0.0, root]]))
    assert update.error == pytest.approx(0, abs=1e-6)


def test_where_nobody_moved_the_next_round_can_still_learn() -> None:
    still = {A: torch.randn(2, 5, generator=torch.Generator().manual_seed(1))}
    update = merged_from_zero("fedask", [{B: torch.zeros(3, 2)}], still)
    torch.testing.assert_close((still[A] + update.delta[A]).norm(dim=1), torch.ones(2))
    assert not update.delta[B].any()


def test_a_sum_of_clients_is_enough_for_an_even_split() -> None:
    """Of a secure sum nobody says what each client had received."""
    aggregator: Any = build("aggregator", "fedask")
    state, sent = a_state(), {n: x for n, x in cohort([4], "A")[0].delta.items()}
    one = aggregator(iter([Update("", sent, 3.0)]), state, lambda client: {})
    other = aggregator(iter([Update("c0", sent, 3.0)]), state, lambda client: state.params)
    assert equal(one.delta, other.delta)
