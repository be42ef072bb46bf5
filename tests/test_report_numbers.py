"""What a report computes: intervals, fronts, in what plans differ, and what runs come to."""

import json
from pathlib import Path
from typing import Any

import pytest
from cells import write_cell, write_study

from fedpeft.evaluation.statistics import estimate, estimate_or_none, pareto
from fedpeft.report.axes import axes, label
from fedpeft.report.groups import Measure, Section, sections
from fedpeft.report.introduction import describe_results
from fedpeft.report.measured import metrics
from fedpeft.report.reading import read_cells
from fedpeft.report.rows import across, bars, costs, curves, divisions, spreads
from fedpeft.report.tables import Entry, ReportTable, as_csv, as_latex, differences, groups


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
    assert estimate_or_none([]) is None


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
        {
            "method": {"name": m},
            "local": {"lr": lr},
            "partition": {"name": "dirichlet", "alpha": alpha},
        }
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
    plans: list[dict[str, Any]] = [
        {"stages": []},
        *({"stages": [{"name": "noise", "scale": s}]} for s in (1.0, 2.0)),
    ]
    assert told(plans) == ["none", "noise (scale 1)", "noise (scale 2)"]


def test_a_stage_does_not_repeat_the_codec_of_the_uplink() -> None:
    """As plans are written down, a stage that follows the uplink has its codec again."""
    plans: list[dict[str, Any]] = [
        {"uplink": codec, "stages": [{"name": "error_feedback", "codec": codec}]}
        for codec in ({"name": "ternary"}, {"name": "sign"})
    ]
    plain: dict[str, Any] = {"uplink": {"name": "ternary"}, "stages": []}
    assert told([*plans, plain]) == ["error_feedback, ternary", "error_feedback, sign", "ternary"]
    assert told(plans) == ["ternary", "sign"]


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
    assert {row["group"]: row["front"] for row in costs(section, "up")} == {
        "bias": True,
        "head": True,
        "lora": False,
    }


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
    along = {
        axis.path: [(row["level"], row["other"]) for row in bars(section, axis)]
        for axis in section.axes
    }
    assert along == {
        "method": [("bias", "alpha 1"), ("lora", "alpha 1")],
        "partition.alpha": [("0.1", "lora"), ("1", "lora")],
    }


def test_a_key_that_a_plan_is_too_old_to_have_is_off_in_it(tmp_path: Path) -> None:
    local = {"lr": 0.0, "correction": "none"}
    write_cell(tmp_path / "old", [0.5], seed=1, plan={"local": local})
    write_cell(
        tmp_path / "new",
        [0.6],
        seed=2,
        plan={"local": {**local, "sorted": False, "init": ""}, "parts": []},
    )
    write_cell(tmp_path / "on", [0.7], seed=1, plan={"local": {**local, "sorted": True}})
    section = only(tmp_path)
    assert sorted(len(group.cells) for group in section.groups) == [1, 2]
    assert [(axis.path, sorted(axis.values)) for axis in section.axes] == [
        ("local.sorted", ["no", "yes"])
    ]


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
    assert titles == [
        "digits, image-classification",
        "cifar100, image-classification",
        "digits, text-classification",
    ]


def test_what_only_some_runs_of_a_group_tell_is_not_told_of_the_group(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_cell(
            tmp_path / f"some-{seed}",
            [0.5],
            seed=seed,
            each={"a": 0.9, "b": 0.5} if seed == 1 else None,
        )
        write_cell(
            tmp_path / f"all-{seed}", [0.5], method="bias", seed=seed, each={"a": 0.9, "b": 0.5}
        )
    section = only(tmp_path)
    table = groups(section)
    told = {row[0].text: dict(zip(table.head, row, strict=True)) for row in table.rows}
    heads = [f"accuracy, {words}" for words in ("mean of clients", "worst tenth of clients")]
    assert [told["bias"][head].value for head in heads] == pytest.approx([0.7, 0.5])
    assert told["bias"]["accuracy, standard deviation over clients"].text == "10.0 ± 0.0 %"
    assert [told["lora"][head].value for head in heads] == [None, None]
    assert {row["group"] for row in spreads(section)} == {"bias"}


def test_noise_that_was_calibrated_splits_no_group(tmp_path: Path) -> None:
    """It follows from the target and from how often the seed draws each client; what was asked for
    does split."""
    for seed, noise in ((1, 2.378), (42, 2.473)):
        stages = [{"name": "client_dp", "clip_norm": 1.0, "noise_multiplier": noise}]
        write_cell(
            tmp_path / f"target-{seed}",
            [0.5],
            seed=seed,
            plan={"target_epsilon": 8.0, "stages": stages},
        )
        write_cell(tmp_path / f"noise-{seed}", [0.5], seed=seed, plan={"stages": stages})
    section = only(tmp_path)
    assert sorted(len(group.cells) for group in section.groups) == [1, 1, 2]
    (target,) = (group.cells[0] for group in section.groups if len(group.cells) == 2)
    assert target.asked["stages"] == [{"name": "client_dp", "clip_norm": 1.0}]
    assert target.plan["stages"][0]["noise_multiplier"] == 2.378


def with_references(root: Path) -> Section:
    """Two federations, all data in one client, and clients that keep to themselves."""
    alone, one = (
        {"routing": [{"name": "personal", "patterns": ["*"]}], "cohort": 2},
        {"partition": {"name": "iid", "clients": 1}, "cohort": 1},
    )
    for seed in (1, 2, 3):
        for method, up in (("lora", 2000), ("head", 500)):
            plan, value = {"cohort": 2}, up / 4000 + 0.1
            write_cell(
                root / f"{method}-{seed}", [0.1, value], method=method, seed=seed, up=up, plan=plan
            )
        write_cell(
            root / f"alone-{seed}",
            [None, 0.2],
            seed=seed,
            up=1,
            plan=alone,
            each={"a": 0.1, "b": 0.3},
        )
        for method, value in (("lora", 0.97), ("full", 0.98)):
            folder = write_cell(
                root / f"{method}-one-{seed}", [value], method=method, seed=seed, up=9000, plan=one
            )
            summary = json.loads((folder / "summary.json").read_text())
            everywhere = {"mean": value, "worst_decile": value, "std": 0.0, "each": {"a": value}}
            (folder / "summary.json").write_text(
                json.dumps(summary | {"clients": 1, "client_accuracy": everywhere})
            )
    return only(root)


def test_what_is_no_federation_is_called_so_and_only_its_result_compares(tmp_path: Path) -> None:
    section = with_references(tmp_path)
    names = ["head", "lora", "centralised, full", "centralised, lora", "local only, lora"]
    assert [group.label for group in section.groups] == names
    assert [group.sent(way) is None for group in section.groups for way in ("up", "down")] == [
        False
    ] * 4 + [True] * 6
    for way in ("up", "down"):
        assert [group.label for group in section.front(way)] == (
            ["head", "lora"] if way == "up" else ["lora"]
        )
        assert {row["group"] for row in costs(section, way)} == {"head", "lora"}
    assert {row["group"] for row in curves(section)} == {"head", "lora"}
    assert {row["group"]: row["mean"] for row in across(section)} == pytest.approx(
        {"centralised, full": 0.98, "centralised, lora": 0.97, "local only, lora": 0.2}
    )
    assert len({(look.colour, look.form) for look in section.looks}) == len(names)
    # All three are lora.
    assert section.looks[1].colour == section.looks[3].colour == section.looks[4].colour
    assert {row["group"] for row in spreads(section)} == {"local only, lora"}


def test_the_table_of_groups_tells_no_bytes_of_what_is_no_federation(tmp_path: Path) -> None:
    table = groups(with_references(tmp_path))
    for row in table.rows:
        told = dict(zip(table.head, row, strict=True))
        federation = told["group"].text in ("head", "lora")
        assert [
            told[head].value is not None for head in table.head if head.startswith(("up", "down"))
        ] == [federation] * 4
        assert told["accuracy, last"].value is not None and told["seeds"].text == "3"
        assert (told["accuracy, mean of clients"].value is not None) == (
            told["group"].text == "local only, lora"
        )
    differ = differences(with_references(tmp_path / "again"))
    assert {"partition", "routing"} <= set(differ.head) and len(differ.rows) == 5


@pytest.mark.parametrize(
    "plan",
    [
        {"routing": [{"name": "personal", "patterns": ["*"]}]},
        {"schema": 1, "personal": ["*"]},
    ],
)
def test_runs_that_are_no_federation_are_compared_where_there_is_none(
    tmp_path: Path, plan: dict[str, Any]
) -> None:
    for seed in (1, 2):
        write_cell(tmp_path / f"alone-{seed}", [0.2, 0.3], seed=seed, plan=plan)
    section = only(tmp_path)
    assert [group.label for group in section.groups] == [
        "local only, lora"
    ] and section.across == ()
    assert [row["round"] for row in curves(section)] == [1, 2] and costs(section, "up") == []


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0.5], "50.0"),
        ([0.4, 0.6], "50.0 (40.0 to 60.0)"),
        ([0.49, 0.5, 0.51], "50.0 ± 2.5"),
        ([0.97, 0.99, 0.98], "98.0 (95.5 to 100.0)"),
    ],
)
def test_an_interval_has_one_form(values: list[float], text: str) -> None:
    shown = lambda share: f"{100 * share:.1f}"
    assert estimate(values).within(0, 1).text(shown, shown) == text


def test_the_ends_of_an_interval_have_columns_of_their_own_in_files() -> None:
    head = ("group", "accuracy", "seeds")
    row = [Entry("a", "a"), Entry("50.0 ± 2.5 %", 0.5, (0.475, 0.525)), Entry("3", 3)]
    alone = [Entry("b", "b"), Entry("40.0 %", 0.4), Entry("1", 1)]
    text = as_csv([("one", ReportTable("groups", "Groups", head, [row, alone]))])
    assert text.splitlines() == [
        'experiment,group,accuracy,"accuracy, low","accuracy, high",seeds',
        "one,a,0.5,0.475,0.525,3",
        "one,b,0.4,,,1",
    ]


def test_a_latex_table_is_no_wider_than_the_text() -> None:
    table = ReportTable("groups", "Groups", ("a",), [[Entry("1 ± 2", 1.0)]])
    text = as_latex([("one", table)])
    assert r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%" in text
    assert r"1 $\pm$ 2 \\" in text and text.count("{") == text.count("}")


def test_runs_that_ended_worse_than_they_began_are_named_with_both_numbers(tmp_path: Path) -> None:
    """Of three runs one began above its end; one does not tell what it began with."""
    for seed, begun in ((1, 0.75), (2, 0.25), (3, None)):
        folder = write_cell(tmp_path / f"run-{seed}", [0.6, 0.5], seed=seed)
        kept = json.loads((folder / "summary.json").read_text())
        start = {"start": {"round": 0, "metrics": {"accuracy": begun}}} if begun else {}
        (folder / "summary.json").write_text(json.dumps({**kept, **start}))
    [section] = sections(read_cells([tmp_path])[0])
    said = [line for line in describe_results(section) if "worse at the end" in line]
    assert said == [
        "1 run is worse at the end than at the beginning: run-1, accuracy from 75.00 % to 50.00 %."
    ]


def test_what_else_was_measured_has_a_table_where_there_is_such(tmp_path: Path) -> None:
    """Two seeds with 0.5 and 0.7 at an early exit, after rounds that do not count."""
    for seed, value in ((1, 0.5), (2, 0.7)):
        cell = write_cell(tmp_path / f"{seed}", [0.1, 0.9], seed=seed)
        lines = [json.loads(one) for one in (cell / "rounds.jsonl").read_text().splitlines()]
        for at, one in enumerate(lines):
            one["held_out"] |= {"accuracy at block 3": value * at, "loss at block 3": 2.0}
        (cell / "rounds.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    rows = [[entry.text for entry in row] for row in metrics(only(tmp_path)).rows]
    assert [row[1:] for row in rows] == [
        ["accuracy at block 3", "60.0 (50.0 to 70.0) %"],
        ["loss at block 3", "2.000 (2.000 to 2.000)"],
    ]
    write_cell(tmp_path / "plain" / "1", [0.1, 0.9])
    assert not metrics(only(tmp_path / "plain")).rows
    assert Measure("loss at block 3").lower_is_better and not Measure("auroc at 5").lower_is_better
