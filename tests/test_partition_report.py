"""The report of a partition: what it counts, draws and refuses."""

import json

import pytest
import torch

from fedpeft import DataError, Plan, open_site
from fedpeft.core.types import Division, Table
from fedpeft.data.in_memory import Memory
from fedpeft.data.report import check_division, heat_map, partition_fingerprint, partition_report
from fedpeft.methods.full import Full
from fedpeft.partitions.dirichlet import Dirichlet
from fedpeft.tasks.module import ModuleTask


def test_the_report_counts_and_measures() -> None:
    """a has classes 0, 0; b has 1, 1, 0, 1. Of all: 3/6, 3/6. Distances: 1/2 and 1/4; class 0 alone
    is 1 class."""
    labels = torch.tensor([0, 0, 1, 1, 0, 1, 1])
    parts = {"a": torch.tensor([0, 1]), "b": torch.tensor([2, 3, 4, 5])}
    report = partition_report(Table({"label": labels}), ["no", "yes"], parts, {"moved": 1})
    assert report["histograms"] == {"a": [2, 0], "b": [1, 3]}
    assert report["size"] == {"min": 2, "median": 3.0, "max": 4}
    assert report["classes_per_client"] == {"min": 1, "median": 1.5, "max": 2}
    assert (report["clients"], report["examples"], report["unused"], report["notes"]) == (
        2,
        6,
        1,
        {"moved": 1},
    )
    skew = report["skew"]
    assert skew["total_variation"] == pytest.approx((1 / 2 + 1 / 4) / 2)
    of_b = 4 / 3 ** (3 / 4)  # exp of the entropy of (1/4, 3/4)
    assert skew["effective_classes"] == pytest.approx((1 + of_b) / 2)
    assert skew["effective_classes_of_all"] == pytest.approx(2)
    assert skew["largest_over_mean"] == pytest.approx(4 / 3)
    assert json.loads(json.dumps(report)) == report


def test_the_fingerprint_knows_who_holds_what() -> None:
    parts = {"a": torch.tensor([0, 1]), "b": torch.tensor([2])}
    others = [
        {"a": torch.tensor([0]), "b": torch.tensor([1, 2])},
        {"b": torch.tensor([0, 1]), "a": torch.tensor([2])},
        {"a": torch.tensor([0, 1])},
    ]
    names = {partition_fingerprint(one) for one in (parts, *others)}
    assert len(names) == 4
    assert partition_fingerprint(dict(reversed(parts.items()))) == partition_fingerprint(parts)


def test_the_heat_map_shades_by_share() -> None:
    labels = torch.tensor([0] * 6 + [1] * 3 + [2] + [0] * 30)
    parts = {"a": torch.arange(10), "bcd": torch.arange(10, 40)}
    report = partition_report(Table({"label": labels}), ["x", "y", "z"], parts, {})
    first, second, legend = heat_map(report).split("\n")
    assert (first, second) == ("a   █▓▒ 10", "bcd █   30")
    assert legend.startswith("2 of 2 clients, 3 classes;")
    narrow = heat_map(report, width=7, height=1).split("\n")
    assert narrow[0] == "a █▒ 10"
    assert narrow[1].startswith("1 of 2 clients, 3 classes, 2 classes a column")


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ({}, "gives no client any data"),
        ({"a": [0, 1, 2, 3], "b": []}, "client 'b' has no data"),
        ({"a": [0, 1], "b": [1, 2, 3]}, "example 1 belongs to more than one client"),
        ({"a": [0, 1, 2, 9]}, "names example 9; the data has 4"),
        ({"a": [0, 2]}, "no client holds a training example of the class 'dog'"),
    ],
)
def test_a_division_that_nothing_can_be_trained_on(parts: dict[str, list[int]], match: str) -> None:
    division = Division(
        {name: torch.tensor(part, dtype=torch.int64) for name, part in parts.items()}
    )
    with pytest.raises(DataError, match=match):
        check_division(division, Table({"label": torch.tensor([0, 1, 0, 1])}), ["cat", "dog"])


def test_the_notes_reach_the_site() -> None:
    data = Memory({"x": torch.zeros(50, 2), "label": torch.zeros(50, dtype=torch.int64)})
    plan = Plan(
        data=data,
        task=ModuleTask(torch.nn.Linear, {"in_features": 2, "out_features": 1}),
        method=Full(),
        partition=Dirichlet(4, 1e-4, min_per_client=5, tries=2),
    )
    assert open_site(plan).data.notes == {"draws": 2, "moved": 15}  # type: ignore[attr-defined]
