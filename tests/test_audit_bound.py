"""The lower bound of ε from right guesses (arXiv:2305.08846, Theorem 5.2), by hand."""

from math import comb, exp, log

import pytest
import torch

from fedpeft.audits.epsilon_bound import LARGEST, Guesses, bound_epsilon, guess, p_value


def test_without_delta_it_is_the_tail_of_a_binomial() -> None:
    """Two of three or better, each right with probability 3/4: 3 · 9/16 · 1/4 + 27/64 = 54/64."""
    assert p_value(Guesses(7, 3, 2), log(3), 0.0) == pytest.approx(54 / 64, abs=1e-12)
    assert p_value(Guesses(3, 3, 3), log(3), 0.0) == pytest.approx(27 / 64, abs=1e-12)


def test_delta_adds_the_worst_way_to_use_it() -> None:
    """Two of two at ε = 0: β = 1/4; α is the larger of P[W = 1] / 1 = 1/2 and P[W ≤ 1] / 2 = 3/8;
    ten canaries and δ = 0.01 add 2 · 10 · 0.01 · 1/2."""
    assert p_value(Guesses(10, 2, 2), 0.0, 0.01) == pytest.approx(0.25 + 0.1, abs=1e-12)


def by_definition(canaries: int, made: int, right: int, epsilon: float, delta: float) -> float:
    """The theorem as it is printed, with whole numbers."""
    chance = exp(epsilon) / (1 + exp(epsilon))
    each = [comb(made, k) * chance**k * (1 - chance) ** (made - k) for k in range(made + 1)]
    alpha = max(sum(each[right - i : right]) / i for i in range(1, right + 1))
    return min(1.0, sum(each[right:]) + 2 * canaries * delta * alpha)


@pytest.mark.parametrize("epsilon", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("delta", [0.0, 1e-4, 1e-2])
@pytest.mark.parametrize(("made", "right"), [(1, 1), (20, 15), (60, 31), (60, 60), (200, 190)])
def test_it_is_the_theorem(made: int, right: int, epsilon: float, delta: float) -> None:
    wanted = by_definition(300, made, right, epsilon, delta)
    assert p_value(Guesses(300, made, right), epsilon, delta) == pytest.approx(wanted, rel=1e-9)


def test_a_hundred_right_of_a_hundred() -> None:
    """(e^ε / (1 + e^ε))^100 = 0.05, so that e^ε / (1 + e^ε) = 0.9705."""
    chance = 0.05 ** (1 / 100)
    found = bound_epsilon(Guesses(100, 100, 100), 0.0)
    assert found == pytest.approx(log(chance / (1 - chance)), abs=1e-9)
    assert found == pytest.approx(3.4930, abs=1e-4)


@pytest.mark.parametrize(("made", "right"), [(0, 0), (100, 0), (100, 50), (100, 55), (4, 4)])
def test_what_chance_alone_does_bounds_nothing(made: int, right: int) -> None:
    assert bound_epsilon(Guesses(100, made, right), 0.0) == 0.0


def test_more_right_guesses_more_confidence_and_less_delta_say_more() -> None:
    found = [bound_epsilon(Guesses(1000, 200, right), 1e-5) for right in range(0, 201, 10)]
    assert found == sorted(found) and found[-1] > found[15] > found[12] > 0
    less = [bound_epsilon(Guesses(1000, 200, 180), delta) for delta in (0.0, 1e-5, 1e-4, 1e-2)]
    assert less == sorted(less, reverse=True) and less[-1] == 0.0
    guesses = Guesses(1000, 200, 180)
    assert bound_epsilon(guesses, 0.0, 0.99) < bound_epsilon(guesses, 0.0, 0.9)


def test_a_certain_delta_refutes_nothing_and_no_bound_is_beyond_what_is_told() -> None:
    assert bound_epsilon(Guesses(100, 100, 100), 1.0) == 0.0
    assert 8 < bound_epsilon(Guesses(10_000, 10_000, 10_000), 0.0) < LARGEST


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("made", [30, 200])
def test_randomized_response_is_bounded_above_its_epsilon_in_5_of_100_audits(
    made: int, epsilon: float
) -> None:
    """It gives away exactly ε: the probabilities of all outcomes, added up."""
    chance = exp(epsilon) / (1 + exp(epsilon))
    wrong = sum(
        comb(made, right) * chance**right * (1 - chance) ** (made - right)
        for right in range(made + 1)
        if bound_epsilon(Guesses(made, made, right), 0.0) > epsilon
    )
    assert 0.01 < wrong <= 0.05


@pytest.mark.parametrize("numbers", [(10, 11, 5), (10, 5, 6), (10, 5, -1)])
def test_numbers_that_no_audit_has(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at most the one before"):
        Guesses(*numbers)


def test_the_highest_are_called_in_and_the_lowest_out() -> None:
    scores = torch.tensor([0.3, 9.0, -2.0, 5.0, -7.0, 0.1])
    included = torch.tensor([True, True, True, False, False, False])
    assert guess(scores, included, 4) == Guesses(6, 4, 2)  # 9 and 5 in, -2 and -7 out
    assert guess(scores, included, 2) == guess(scores, included, 3) == Guesses(6, 2, 2)
    assert guess(scores, included, 0) == Guesses(6, 0, 0)
