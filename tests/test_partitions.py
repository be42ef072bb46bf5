"""Partitions: who gets what, by law over random draws and by numbers counted by hand."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedpeft import DataError, PlanError, read_plan
from fedpeft.core.interfaces import Partition
from fedpeft.core.seeds import generator
from fedpeft.core.types import Division, Table
from fedpeft.data.report import partition_fingerprint, partition_report
from fedpeft.partitions.column import Column
from fedpeft.partitions.dirichlet import Dirichlet
from fedpeft.partitions.iid import IID
from fedpeft.partitions.lists import Lists
from fedpeft.partitions.shards import Shards


def cut(partition: Partition, labels: Tensor, seed: int = 1, **columns: Any) -> Division:
    return partition.split(Table({"label": labels, **columns}), generator(seed))


def sizes(division: Division) -> list[int]:
    return [len(part) for part in division.parts.values()]


def everyone(parts: Mapping[str, Tensor]) -> list[int]:
    return sorted(place for part in parts.values() for place in part.tolist())


# --- laws ---


@st.composite
def settings(draw: st.DrawFn) -> tuple[Partition, Tensor]:
    clients = draw(st.integers(1, 12))
    n = draw(st.integers(3 * clients, 120))
    labels = torch.tensor(draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)))
    alpha = draw(st.sampled_from([1e-3, 0.1, 1.0, 1e3]))
    kinds: list[Partition] = [
        IID(clients),
        Shards(clients, shards=draw(st.integers(1, 3))),
        Dirichlet(
            clients, alpha, min_per_client=draw(st.integers(1, 3)), tries=draw(st.integers(1, 4))
        ),
    ]
    return draw(st.sampled_from(kinds)), labels


@given(settings(), st.integers(0, 1 << 40))
def test_every_example_has_one_owner_and_the_generator_decides(
    case: tuple[Partition, Tensor], seed: int
) -> None:
    partition, labels = case
    division = cut(partition, labels, seed)
    assert everyone(division.parts) == list(range(len(labels)))
    assert len(division.parts) == partition.clients  # type: ignore[attr-defined]
    assert min(sizes(division)) >= getattr(partition, "min_per_client", 1)
    assert all(torch.equal(part, part.sort().values) for part in division.parts.values())
    assert list(division.parts) == sorted(division.parts)
    state = torch.get_rng_state()
    again = cut(partition, labels, seed)
    assert partition_fingerprint(again.parts) == partition_fingerprint(division.parts)
    assert again.notes == division.notes
    assert torch.equal(torch.get_rng_state(), state)


@given(st.integers(1, 12), st.integers(12, 100), st.integers(1, 3))
def test_iid_and_shards_are_even(clients: int, n: int, shards: int) -> None:
    labels = torch.arange(n) % 4
    even = sizes(cut(IID(clients), labels))
    assert max(even) - min(even) <= 1
    if n >= clients * shards:
        dealt = cut(Shards(clients, shards), labels)
        assert max(sizes(dealt)) - min(sizes(dealt)) <= shards


@given(
    st.lists(st.sampled_from("abcdefg"), min_size=5, max_size=60),
    st.integers(1, 8),
    st.integers(0, 4),
)
def test_natural_clients_hold_what_is_theirs(values: list[str], least: int, most: int) -> None:
    labels = torch.zeros(len(values), dtype=torch.int64)
    eligible = {value for value in values if values.count(value) >= least}
    if not eligible:
        with pytest.raises(DataError, match="the commonest has"):
            cut(Column("site", least, most), labels, site=values)
        return
    division = cut(Column("site", least, most), labels, site=values)
    assert set(division.parts) <= eligible
    assert len(division.parts) == min(most or len(eligible), len(eligible))
    for name, part in division.parts.items():
        assert part.tolist() == [place for place, value in enumerate(values) if value == name]
    held = sum(sizes(division))
    left_out = {
        "clients_left_out": len(set(values)) - len(division.parts),
        "examples_left_out": len(values) - held,
    }
    assert division.notes == left_out


# --- Dirichlet ---


def test_dirichlet_is_the_papers_partition_of_cifar100() -> None:
    """Sizes of the paper's rule at 50,000 examples, N = 64, alpha = 0.1, from a run of its code:
    352 / 795 / 1125."""
    labels = torch.arange(50_000) % 100
    report = partition_report(
        Table({"label": labels}),
        [str(k) for k in range(100)],
        (d := cut(Dirichlet(64, 0.1), labels)).parts,
        d.notes,
    )
    assert 250 <= report["size"]["min"] <= 450
    assert 760 <= report["size"]["median"] <= 830
    # Full at n / N, so that at most one class comes on top.
    assert report["size"]["max"] <= 50_000 / 64 + 500
    assert 25 <= report["classes_per_client"]["median"] <= 45
    assert report["notes"] == {"draws": 1, "moved": 0}


def test_a_full_client_gets_no_further_class() -> None:
    """Alpha near 0: a class goes to one client whole, and two classes of half the data each to two
    clients."""
    labels = torch.tensor([0] * 50 + [1] * 50)
    for seed in range(20):
        assert sizes(cut(Dirichlet(2, 1e-4, min_per_client=1), labels, seed)) == [50, 50]


def test_large_alpha_is_nearly_iid_and_small_alpha_is_not() -> None:
    labels, names = torch.arange(8000) % 10, [str(k) for k in range(10)]
    table = Table({"label": labels})
    skew = [
        partition_report(table, names, cut(Dirichlet(8, alpha), labels).parts, {})["skew"][
            "total_variation"
        ]
        for alpha in (0.05, 1.0, 1000.0)
    ]
    assert skew[0] > 0.6 > skew[1] > 0.2 > 0.05 > skew[2]


def test_as_few_examples_are_moved_as_are_lacking() -> None:
    """One class, alpha near 0: one client has all 100, so three others lack 10 each."""
    labels = torch.zeros(100, dtype=torch.int64)
    division = cut(Dirichlet(4, 1e-4, min_per_client=10, tries=3), labels)
    assert division.notes == {"draws": 3, "moved": 30}
    assert sorted(sizes(division)) == [10, 10, 10, 70]
    with pytest.raises(
        DataError, match=r"\(30 are missing at best\).*repair = true to move 30 examples"
    ):
        cut(Dirichlet(4, 1e-4, min_per_client=10, tries=3, repair=False), labels)


def test_when_all_examples_are_needed_all_clients_are_equal() -> None:
    division = cut(Dirichlet(10, 0.1, min_per_client=10, tries=1), torch.arange(100) % 5)
    assert sizes(division) == [10] * 10
    with pytest.raises(
        DataError, match=r"99 training examples are too few for 10 clients x 10 examples"
    ):
        cut(Dirichlet(10, 0.1), torch.arange(99) % 5)


def test_scarce_and_large_divisions() -> None:
    scarce = cut(
        Dirichlet(64, 0.1, min_per_client=10), torch.randint(100, (1000,), generator=generator(3))
    )
    assert min(sizes(scarce)) == 10
    # PCam's shape: no draw is valid.
    two = cut(Dirichlet(64, 0.1, min_per_client=10), torch.arange(20_000) % 2)
    assert two.notes["draws"] == 100
    assert two.notes["moved"] > 0
    assert len(cut(Dirichlet(1000, 0.1), torch.arange(50_000) % 100).parts) == 1000


@pytest.mark.parametrize("partition", [IID(1), Shards(1, 1), Dirichlet(1, 0.1)])
def test_one_client_and_one_class(partition: Partition) -> None:
    labels = torch.zeros(30, dtype=torch.int64)
    assert cut(partition, labels).parts["c000"].tolist() == list(range(30))


# --- shards, columns, lists ---


def test_two_shards_of_ten_classes_are_two_classes_at_most() -> None:
    labels = torch.arange(1000) % 10
    division = cut(Shards(50, 2), labels)
    assert sizes(division) == [20] * 50
    assert max(len(torch.unique(labels[part])) for part in division.parts.values()) == 2


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(DataError, match="3 training examples are too few for 4 clients"):
        cut(IID(4), torch.arange(3))
    with pytest.raises(DataError, match="7 training examples are too few for 8 shards"):
        cut(Shards(4), torch.arange(7))


def test_bad_columns() -> None:
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(DataError, match=r"no column called 'sight'\. Did you mean 'site'"):
        cut(Column("sight"), labels, site=["a", "b"])
    with pytest.raises(DataError, match=r"1 of 2 training examples have no value in column 'site'"):
        cut(Column("site"), labels, site=["a", None])
    with pytest.raises(DataError, match="does not hold plain values"):
        cut(Column("site"), labels, site=[["a"], ["b"]])
    assert list(cut(Column("label"), torch.tensor([1, 0, 1])).parts) == ["0", "1"]


def test_lists_from_the_plan_and_from_a_file(tmp_path: Path) -> None:
    labels = torch.zeros(6, dtype=torch.int64)
    file = tmp_path / "who.json"
    file.write_text(json.dumps({"south": [1, 3], "north": [5, 0, 2]}))
    spec = {"name": "lists", "clients": {"south": [1, 3], "north": [5, 0, 2]}}
    plan = read_plan({"partition": spec})
    assert read_plan(plan.toml()).partition == plan.partition
    for partition in (plan.partition, Lists(file=str(file))):
        parts = cut(partition, labels).parts
        assert {name: part.tolist() for name, part in parts.items()} == {
            "north": [0, 2, 5],
            "south": [1, 3],
        }


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ('{"a": [0, 1], "b": [1]}', "example 1 is listed twice, for 'a' and for 'b'"),
        ('{"a": [0, 0]}', "example 0 is listed twice"),
        ('{"a": [0, 6]}', "client 'a' lists example 6; there are 6"),
        ('{"a": [-1]}', "client 'a' lists example -1"),
        ('{"a": [0.5]}', "must map names of clients to lists of numbers"),
        ('{"a": [true]}', "must map names"),
        ("[[0, 1]]", "must map names"),
        ('{"a": ', "cannot be read as JSON"),
    ],
)
def test_bad_lists(content: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "who.json").write_text(content)
    with pytest.raises(DataError, match=match):
        cut(Lists(file=str(tmp_path / "who.json")), torch.zeros(6, dtype=torch.int64))


def test_values_out_of_range_are_refused() -> None:
    for spec in (
        {"name": "iid", "clients": 0},
        {"name": "shards", "shards": 0},
        {"name": "dirichlet", "alpha": 0},
        {"name": "dirichlet", "min_per_client": 0},
        {"name": "column", "column": "x", "min_per_client": 0},
        {"name": "lists"},
        {"name": "lists", "file": "x", "clients": {"a": [1]}},
    ):
        with pytest.raises(PlanError, match=str(spec["name"])):
            read_plan({"partition": spec})
