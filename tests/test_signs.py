"""Merges that look at signs: elected ones, and clients whose signs conflict with the others'."""

import pytest
import torch

from fedpeft.aggregators.agreeing import count_conflicts
from fedpeft.core.interfaces import Aggregator
from fedpeft.core.types import State, Update
from fedpeft.errors import PlanError
from fedpeft.registry import build


def merged(spec: object, updates: list[Update]) -> Update:
    aggregator: Aggregator = build("aggregator", spec)
    return aggregator(iter(updates), State(0, updates[0].delta), lambda client: {})


def rows(*each: list[float], name: str = "a") -> list[Update]:
    return [Update(f"c{k}", {name: torch.tensor(x)}) for k, x in enumerate(each)]


def test_elected_signs_by_hand() -> None:
    """Of each row the two largest stay; of the entries the signs +, −, − and none are elected."""
    three = rows([4.0, -1.0, 2.0, 0.5], [-3.0, 2.0, 1.0, 0.1], [1.0, -3.0, -3.0, 0.2])
    half = merged({"name": "ties", "density": 0.5}, three)
    assert half.delta["a"].tolist() == [4, -3, -3, 0] and half.weight == 3
    twice = merged({"name": "ties", "density": 0.5, "strength": 2.0}, three)
    assert twice.delta["a"].tolist() == [8, -6, -6, 0]
    # all entries: 4 + 1, −1 − 3, and of 2 + 1 − 3 = 0 none
    whole = merged({"name": "ties", "density": 1.0}, three).delta["a"]
    torch.testing.assert_close(whole, torch.tensor([2.5, -2.0, 0.0, 0.8 / 3]))


def test_the_largest_entries_are_those_of_all_tensors_together() -> None:
    one = Update("c0", {"a": torch.tensor([1.0, 5.0]), "b": torch.tensor([[4.0, 3.0]])})
    got = merged({"name": "ties", "density": 0.5}, [one]).delta
    assert got["a"].tolist() == [0, 5] and got["b"].tolist() == [[4, 0]]


def test_elected_signs_are_weighted_and_leave_what_is_measured_to_its_mean() -> None:
    updates = [
        Update("c0", {"a": torch.tensor([2.0]), "norm.running_var": torch.tensor([1.0])}, 3.0),
        Update("c1", {"a": torch.tensor([-3.0]), "norm.running_var": torch.tensor([-2.0])}, 1.0),
    ]
    got = merged({"name": "ties", "density": 1.0}, updates).delta
    assert got["a"].item() == 2 and got["norm.running_var"].item() == 0.25


@pytest.mark.parametrize("changes", [{"density": 0.0}, {"density": 1.1}, {"strength": 0.0}])
def test_ties_out_of_range(changes: dict[str, object]) -> None:
    with pytest.raises(PlanError, match="must be"):
        build("aggregator", {"name": "ties", **changes})


def test_conflicts_of_signs_by_hand() -> None:
    """One against two alike: 2, 1 and 1, of which the mean is 4/3 and the deviation √2/3."""
    against = [torch.tensor([-1.0, 2.0]), torch.tensor([1.0, -2.0]), torch.tensor([3.0, -1.0])]
    assert count_conflicts(against).tolist() == [2, 1, 1]
    assert count_conflicts([torch.zeros(2), torch.ones(2)]).tolist() == [0, 0]


def test_who_conflicts_most_is_left_out_of_that_tensor_alone() -> None:
    state = State(0, {"x.lora_B.w": torch.zeros(2), "head": torch.zeros(1)})
    signs, heads = [[-1.0, 2.0], [1.0, -2.0], [3.0, -1.0]], [3.0, 0.0, 0.0]
    updates = [
        Update(f"c{k}", {"x.lora_B.w": torch.tensor(b), "head": torch.tensor([h])}, 1.0 + (k == 2))
        for k, (b, h) in enumerate(zip(signs, heads, strict=True))
    ]
    aggregator: Aggregator = build("aggregator", "agreeing")
    got = aggregator(updates, state, lambda client: state.params)
    torch.testing.assert_close(got.delta["x.lora_B.w"], torch.tensor([7 / 3, -4 / 3]))
    assert got.delta["head"].item() == 0.75 and got.weight == 4
    assert list(got.delta) == ["x.lora_B.w", "head"]


def test_signs_are_those_of_what_was_trained_and_not_of_its_change() -> None:
    state = State(0, {"x.lora_A.w": torch.tensor([10.0, 10.0])})
    changes = rows([-1.0, 2.0], [1.0, -2.0], [3.0, -1.0], name="x.lora_A.w")
    aggregator: Aggregator = build("aggregator", "agreeing")
    got = aggregator(changes, state, lambda client: state.params).delta["x.lora_A.w"]
    torch.testing.assert_close(got, torch.tensor([1.0, -1 / 3]))


def test_a_tensor_in_which_all_conflict_rests() -> None:
    """Nine tensors without a conflict and one in which two clients are opposite: above the mean of
    0.1 and the deviation of 0.3 both."""
    names_ = [f"x{k}.lora_B.w" for k in range(10)]
    state = State(0, {name: torch.zeros(1) for name in names_})
    updates = [
        Update(f"c{k}", {n: torch.tensor([sign if n == names_[0] else 2.0]) for n in names_})
        for k, sign in enumerate((1.0, -1.0))
    ]
    aggregator: Aggregator = build("aggregator", "agreeing")
    got = aggregator(updates, state, lambda client: state.params).delta
    assert [got[name].item() for name in names_] == [0.0] + [2.0] * 9
