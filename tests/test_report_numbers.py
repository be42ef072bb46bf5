"""What a report computes: intervals, fronts, in what plans differ, and what runs come to."""

from pathlib import Path
from typing import Any

import pytest
from cells import write_cell, write_study

from fedpeft.report.axes import axes, label
from fedpeft.report.reading import read_cells
from fedpeft.report.rows import bars, costs, divisions
from fedpeft.report.statistics import estimate, pareto
from fedpeft.report.study import Section, sections


def only(root: Path) -> Section:
    cells, problems = read_cells([root])
    assert not problems
    (section,) = sections(cells)
    return section


def told(plans: list[dict[str, Any]]) -> list[str]:
    found = axes(plans)
    return [label(found, k) for k in range(len(plans))]


def test_three_seeds_have_a_t_interval() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert found is not None and found.mean == 2.0 and found.kind == "95 % t interval"
    # s = 1, t(2) = 4.302653 at 97.5 %, so half the width is 4.302653 / sqrt(3)
    assert found.half == pytest.approx(2.484138, abs=1e-6)


def test_two_seeds_have_their_range_and_one_has_nothing() -> None:
    two, one = estimate([0.4, 0.2]), estimate([0.4])
    assert two is not None and [two.low, two.mean, two.high] == pytest.approx([0.2, 0.3, 0.4])
    assert one is not None and (one.mean, one.low, one.high, one.half) == (0.4, None, None, None)
    assert estimate([]) is None


def test_the_front_is_what_nothing_beats() -> None:
    points = [(4.0, 0.9), (1.0, 0.5), (2.0, 0.5), (3.0, 0.8), (5.0, 0.9), (1.0, 0.5)]
    assert pareto(points) == [1, 5, 3, 0]
    assert pareto([]) == []


def test_a_part_that_is_another_one_is_one_axis() -> None:
    plans: list[dict[str, Any]] = [
        {"method": {"name": "lora", "rank": 8, "alpha": 16}},
        {"method": {"name": "bias"}},
        {"method": {"name": "adapter", "shared": False}},
        {"method": {"name": "adapter", "shared": True}},
    ]
    assert told(plans) == ["lora", "bias", "adapter", "adapter (shared)"]
    assert [axis.path for axis in axes(plans)] == ["method"]


def test_what_follows_from_the_method_does_not_name_a_group_but_is_told() -> None:
    plans = [
        {"method": {"name": m}, "local": {"lr": lr}, "partition": {"name": "dirichlet", "alpha": alpha}}
        for m, lr in (("lora", 0.01), ("bias", 0.1))
        for alpha in (0.1, 1.0)
    ]
    assert told(plans) == ["lora, alpha 0.1", "lora, alpha 1", "bias, alpha 0.1", "bias, alpha 1"]
    assert [(axis.path, axis.told) for axis in axes(plans)] == [
        ("method", True),
        ("partition.alpha", True),
        ("local.lr", False),
    ]


def test_keys_that_end_alike_are_told_apart() -> None:
    plans = [{"local": {"lr": a}, "server": {"lr": b}} for a in (0.1, 1.0) for b in (0.1, 1.0)]
    assert told(plans)[1] == "local.lr 0.1, server.lr 1"


def test_one_stage_of_a_list_may_differ() -> None:
    plans: list[dict[str, Any]] = [{"stages": []}, *({"stages": [{"name": "noise", "scale": s}]} for s in (1.0, 2.0))]
    assert told(plans) == ["none", "noise (scale 1)", "noise (scale 2)"]


def test_numbers_of_an_axis_are_in_their_order() -> None:
    (axis,) = axes([{"rounds": n} for n in (10, 9, 100)])
    assert axis.order() == ["9", "10", "100"]


def test_runs_that_differ_in_the_seed_are_a_group(tmp_path: Path) -> None:
    section = only(write_study(tmp_path))
    assert [group.label for group in section.groups] == ["bias", "head", "lora"]
    assert [[cell.seed for cell in group.cells] for group in section.groups] == [[1, 2, 3]] * 3
    bias = section.groups[0].last
    assert bias is not None and bias.mean == pytest.approx(0.72) and bias.n == 3
    # values 0.71, 0.72, 0.73 have s = 0.01
    assert bias.half == pytest.approx(0.02484138, abs=1e-8)


def test_bytes_are_of_the_whole_run_for_each_client(tmp_path: Path) -> None:
    write_cell(tmp_path / "cell", [0.1, 0.2, 0.3], up=1000, failed="it is tired")
    (group,) = only(tmp_path).groups
    assert group.sent("up") == (1000 + 2000 + 2000) / 2
    assert group.sent("down") == 3 * 20 / 2


def test_the_front_of_a_study(tmp_path: Path) -> None:
    section = only(write_study(tmp_path))
    assert [group.label for group in section.front("up")] == ["head", "bias"]
    assert {row["group"]: row["front"] for row in costs(section, "up")} == {"bias": True, "head": True, "lora": False}


def test_unfinished_runs_are_in_no_mean(tmp_path: Path) -> None:
    write_cell(tmp_path / "one", [0.1, 0.2], seed=1)
    write_cell(tmp_path / "two", [0.9], seed=2, planned=2)
    (group,) = only(tmp_path).groups
    assert group.last is not None and (group.last.mean, group.last.n) == (0.2, 1)
    assert [(at, found.n) for at, found in group.curve()] == [(1, 1), (2, 1)]


def test_a_curve_is_where_all_runs_were_measured(tmp_path: Path) -> None:
    write_cell(tmp_path / "one", [None, 0.2, 0.4], seed=1)
    write_cell(tmp_path / "two", [0.1, 0.4, 0.6], seed=2)
    (group,) = only(tmp_path).groups
    assert {at: found.mean for at, found in group.curve()} == pytest.approx({2: 0.3, 3: 0.5})


def test_bars_compare_only_what_is_equal_in_all_else(tmp_path: Path) -> None:
    for method, alpha in (("lora", 0.1), ("lora", 1.0), ("bias", 1.0)):
        plan = {"partition": {"name": "dirichlet", "alpha": alpha}}
        write_cell(tmp_path / f"{method}-{alpha}", [0.5], method=method, plan=plan)
    section = only(tmp_path)
    along = {axis.path: [(row["level"], row["other"]) for row in bars(section, axis)] for axis in section.axes}
    assert along == {
        "method": [("bias", "alpha 1"), ("lora", "alpha 1")],
        "partition.alpha": [("0.1", "lora"), ("1", "lora")],
    }


def test_a_key_that_a_plan_is_too_old_to_have_is_off_in_it(tmp_path: Path) -> None:
    local = {"lr": 0.0, "correction": "none"}
    write_cell(tmp_path / "old", [0.5], seed=1, plan={"local": local})
    write_cell(tmp_path / "new", [0.6], seed=2, plan={"local": {**local, "sorted": False, "init": ""}, "parts": []})
    write_cell(tmp_path / "on", [0.7], seed=1, plan={"local": {**local, "sorted": True}})
    section = only(tmp_path)
    assert sorted(len(group.cells) for group in section.groups) == [1, 2]
    assert [(axis.path, sorted(axis.values)) for axis in section.axes] == [("local.sorted", ["no", "yes"])]


def test_each_division_is_drawn_once(tmp_path: Path) -> None:
    section = only(write_study(tmp_path))
    rows, count = divisions(section)
    assert count == 3 and len({row["division"] for row in rows}) == 3
    shares = {(row["client"], row["label"]): row["share"] for row in rows}
    assert shares == {("a", "x"): 0.75, ("a", "y"): 0.25, ("b", "y"): 1.0}


def test_other_data_or_another_task_is_a_section_of_its_own(tmp_path: Path) -> None:
    write_cell(tmp_path / "one", [0.5])
    write_cell(tmp_path / "two", [0.5], plan={"task": {"name": "text-classification"}})
    write_cell(tmp_path / "three", [0.5], plan={"data": {"name": "table", "path": "some/cifar100"}})
    titles = [section.title for section in sections(read_cells([tmp_path])[0])]
    assert titles == ["digits, image-classification", "cifar100, image-classification", "digits, text-classification"]


def test_noise_that_follows_from_a_target_tells_no_experiments_apart(tmp_path: Path) -> None:
    """How often clients take part depends on the seed, and the noise on that."""
    for seed, noise in ((1, 1.25), (2, 1.26), (3, None)):
        part = {"name": "client_dp", "clip_norm": 0.5} | ({} if noise is None else {"noise_multiplier": noise})
        write_cell(tmp_path / f"{seed}", [0.5], seed=seed, plan={"target_epsilon": 8.0, "stages": [part]})
    assert [len(group.cells) for group in only(tmp_path).groups] == [3]
    for seed, noise in ((4, 1.25), (5, 1.26)):
        part = {"name": "client_dp", "noise_multiplier": noise}
        write_cell(tmp_path / "given" / f"{seed}", [0.5], seed=seed, plan={"stages": [part]})
    assert len(only(tmp_path / "given").groups) == 2
