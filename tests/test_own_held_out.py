"""Each client's own held-out examples: which they are, and what is measured on them."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rounds import points_plan
from running import fedpeft
from torch import Tensor

from fedpeft import Plan, PlanError, read_plan
from fedpeft.core.types import Division, Examples, State, Table
from fedpeft.data.client_data import Partitioned
from fedpeft.data.divide import divide, hold_out_own
from fedpeft.data.report import partition_fingerprint
from fedpeft.evaluation.own_held_out import measure_held_out, own_held_out
from fedpeft.partitions.column import Column
from fedpeft.partitions.iid import IID
from fedpeft.partitions.lists import Lists
from fedpeft.registry import names
from fedpeft.rounds.site import Site, open_site, site_of
from fedpeft.runs.division import division_at
from fedpeft.storage.client_memory import Folder

FIRST = torch.tensor([1.0, 0.0, 0.0])
"""A bias that calls everything class 0."""


def own(labels: list[int] | None, size: int, share: float, seed: int = 1) -> tuple[Tensor, Tensor]:
    known = None if labels is None else torch.tensor(labels)
    kept, apart = hold_out_own({"a": torch.arange(size)}, known, share, seed)
    return kept["a"], apart.get("a", torch.tensor([], dtype=torch.int64))


@pytest.mark.parametrize(
    ("labels", "share", "count"),
    [
        ([0] * 10, 0.2, 2),
        ([0] * 100, 0.29, 29),  # 0.29 * 100 is 28.999... in floating point
        ([0] * 3, 0.2, 1),  # one at least, of three or more
        ([0] * 2, 0.9, 0),  # of one or two none
        ([0], 0.5, 0),
        ([0] * 4, 0.99, 3),  # one is left to train on
        ([0, 1, 2, 3, 4], 0.4, 0),  # each is the only one of its class
        ([0, 0, 1, 2, 3], 0.4, 1),  # one of the two of class 0, and no other
        ([0, 0, 1, 1, 1], 0.8, 3),
    ],
)
def test_how_many_a_client_holds_out(labels: list[int], share: float, count: int) -> None:
    kept, apart = own(labels, len(labels), share)
    assert len(apart) == count
    assert torch.cat([kept, apart]).sort().values.tolist() == list(range(len(labels)))
    assert {labels[place] for place in kept.tolist()} == set(labels)
    assert kept.tolist() == sorted(kept.tolist())


def test_examples_without_labels_are_held_out_too() -> None:
    kept, apart = own(None, 5, 0.4)
    assert (len(kept), len(apart)) == (3, 2)


def test_the_seed_and_the_name_of_the_client_decide_alone() -> None:
    parts = {"a": torch.arange(50), "b": torch.arange(50, 100)}
    _, both = hold_out_own(parts, None, 0.3, 1)
    _, alone = hold_out_own({"b": parts["b"]}, None, 0.3, 1)
    _, other = hold_out_own(parts, None, 0.3, 2)
    assert torch.equal(both["b"], alone["b"])
    assert not torch.equal(both["b"], other["b"])
    assert not torch.equal(both["a"], both["b"] - 50)


def table(labels: list[int], **columns: Any) -> Table:
    label = torch.tensor(labels, dtype=torch.int64)
    point = torch.nn.functional.one_hot(label, 8).float()
    return Table({"point": point, "label": label, **columns})


def test_without_the_key_nothing_changes() -> None:
    examples = Examples(table([0, 1] * 10), table([0, 1]), ("0", "1"))
    plain, asked = (divide(IID(2, held_out), examples, 3) for held_out in (None, 0.0))
    assert plain.notes == {} == asked.notes and plain.apart == {} == plain.tested
    assert partition_fingerprint(plain.parts) == partition_fingerprint(asked.parts)
    some = divide(IID(2, 0.2), examples, 3)
    assert some.notes == {"own_held_out": 4, "clients_without_own": 0}
    for client, part in plain.parts.items():
        both = torch.cat([some.parts[client], some.apart[client]]).sort().values
        assert torch.equal(both, part)
    assert "held_out" not in read_plan({"partition": "iid"}).toml()


@pytest.mark.parametrize("name", sorted(names("partition")))
def test_every_partition_has_the_key_and_checks_it(name: str) -> None:
    needed: dict[str, dict[str, Any]] = {
        "column": {"column": "x"},
        "lists": {"file": "x"},
        "redrawn": {"subset": 9},
    }
    spec = {"name": name, **needed.get(name, {})}
    plan = read_plan({"partition": {**spec, "held_out": 0.25}})
    assert plan.partition.held_out == 0.25  # type: ignore[attr-defined]
    for wrong in (1.0, -0.1, float("nan")):
        with pytest.raises(PlanError, match="at least 0 and below 1"):
            read_plan({"partition": {**spec, "held_out": wrong}})


def test_the_key_belongs_to_the_outer_partition() -> None:
    with pytest.raises(PlanError, match="not to its `of`"):
        read_plan(
            {"partition": {"name": "redrawn", "subset": 9, "of": {"name": "iid", "held_out": 0.1}}}
        )


def natural() -> Examples:
    """b has no held-out example, d no training example."""
    train = table([0, 1, 2, 0, 1, 2], who=["a", "a", "b", "b", "c", "c"])
    return Examples(train, table([0, 1, 0, 0, 2], who=["c", "a", "c", None, "d"]), ("0", "1", "2"))


def test_natural_clients_know_their_rows_of_the_held_out_table() -> None:
    found = divide(Column("who"), natural(), 1)
    assert {client: rows.tolist() for client, rows in found.tested.items()} == {
        "a": [1],
        "c": [0, 2],
    }
    assert found.apart == {}
    assert found.notes["own_held_out"] == 3 and found.notes["clients_without_own"] == 1
    without = Examples(natural().train, table([0, 1, 2]), ("0", "1", "2"))
    assert divide(Column("who"), without, 1).tested == {}


def test_numbers_with_a_gap_name_the_same_client() -> None:
    """A column of integers with a missing value arrives as floats."""
    column = Column("site")
    rows = table([0, 0, 0], site=[2.0, None, 10.0])
    assert {c: x.tolist() for c, x in column.find_own(rows, ["10", "2"]).items()} == {
        "10": [2],
        "2": [0],
    }
    whole = table([0, 0], site=torch.tensor([2, 3]))
    assert list(column.find_own(whole, ["2.0"])) == ["2.0"]


def test_training_and_held_out_examples_are_two_things() -> None:
    rows = {"point": torch.arange(6.0)[:, None], "label": torch.arange(6)}
    test = {"point": torch.arange(10.0, 13.0)[:, None], "label": torch.arange(3)}
    data = Partitioned(
        points_plan().task,
        rows,
        test,
        {"a": torch.tensor([0, 2]), "b": torch.tensor([1, 3])},
        apart={"a": torch.tensor([4, 5])},
        tested={"a": torch.tensor([1])},
    )

    def points(batches: Any) -> list[float]:
        return [x for batch in batches for x in batch["point"].flatten().tolist()]

    assert points(data.training("a")) == [0, 2]
    assert points(data.held_out()) == [10, 11, 12]
    assert points(data.held_out("a")) == [4, 5, 11]
    assert list(data.held_out("b")) == []
    assert (data.own_size("a"), data.own_size("b"), data.size("a")) == (3, 0, 2)


def opened(plan: Plan, partition: Any, examples: Examples) -> Site:
    """A site whose task does not see the column of the clients' names."""
    train, test = (
        Table({name: x for name, x in side.columns.items() if name != "who"})
        for side in (examples.train, examples.test)
    )
    division = divide(partition, examples, plan.seed)
    return site_of(plan, Examples(train, test, examples.classes), division)


def always_first(partition: Any, examples: Examples, **settings: Any) -> tuple[Site, State]:
    plan = points_plan(**settings)
    site = opened(plan, partition, examples)
    return site, State(1, {"head.weight": torch.zeros(3, 8), "head.bias": FIRST})


def test_a_models_accuracy_on_each_clients_own_examples(tmp_path: Path) -> None:
    """Everything is called class 0: a is right on 1 of 4, c on 1 of 1, so that the mean over the
    clients is 0.625 and over the examples 0.4. The worst tenth of two clients is the worse one."""
    train = table([0, 1, 2, 0, 1, 2], who=list("aabbcc"))
    test = table([0, 1, 2, 1, 0, 2], who=list("aaaacd"))
    site, state = always_first(Column("who"), Examples(train, test, ("0", "1", "2")))
    found = own_held_out(site, state, Folder(tmp_path))
    assert found == {
        "examples": {"a": 4, "c": 1},
        "metrics": {
            "accuracy": {
                "mean": 0.625,
                "weighted": 0.4,
                "worst_tenth": 0.25,
                "each": {"a": 0.25, "c": 1.0},
            }
        },
    }
    assert json.loads(json.dumps(found)) == found


def test_nothing_is_said_where_nobody_has_own_examples(tmp_path: Path) -> None:
    examples = Examples(table([0, 1, 2]), table([0]), ("0", "1", "2"))
    site, state = always_first(Lists({"a": (0, 1, 2)}), examples)
    assert own_held_out(site, state, Folder(tmp_path)) is None


def test_without_common_examples_a_round_is_measured_on_those_of_all_clients(
    tmp_path: Path,
) -> None:
    """Everything is called class 0: of a's two and b's three one each is right. Where there are
    common ones, these count."""
    examples = Examples(table([0, 1, 2, 0, 1, 2, 0]), table([]), ("0", "1", "2"))
    apart = {"a": torch.tensor([0, 1]), "b": torch.tensor([2, 3, 4])}
    division = Division({"a": torch.tensor([5]), "b": torch.tensor([6])}, apart=apart)
    site = site_of(points_plan(), examples, division)
    state = State(1, {"head.weight": torch.zeros(3, 8), "head.bias": FIRST})
    assert measure_held_out(site, state, Folder(tmp_path)) == {"accuracy": 0.4}
    common = site_of(points_plan(), replace(examples, test=table([0, 1])), division)
    assert measure_held_out(common, state, Folder(tmp_path)) == {"accuracy": 0.5}
    private = {"name": "dp_sgd", "lr": 0.1, "noise_multiplier": 1.0}
    plan = points_plan(local=private, weighting="uniform", delta=1e-5)
    hidden = site_of(plan, examples, division)
    assert measure_held_out(hidden, state, Folder(tmp_path)) == {}


def test_metrics_of_a_plan_are_measured_on_all_clients_examples_together(tmp_path: Path) -> None:
    """Everything is called class 0, of which there are two of five: precision 0.4, recall 1, F1
    4 / 7, and 0 for the two other classes."""
    plan = points_plan(task="parts:ClassedPoints", metrics=["macro_f1"], select="macro_f1")
    examples = Examples(table([0, 1, 2, 0, 1, 2, 0]), table([]), ("0", "1", "2"))
    apart = {"a": torch.tensor([0, 1]), "b": torch.tensor([2, 3, 4])}
    division = Division({"a": torch.tensor([5]), "b": torch.tensor([6])}, apart=apart)
    site = site_of(plan, examples, division)
    state = State(1, {"head.weight": torch.zeros(3, 8), "head.bias": FIRST})
    found = measure_held_out(site, state, Folder(tmp_path))
    assert found["macro_f1"] == pytest.approx(4 / 21)
    assert found["accuracy"] == pytest.approx(0.4)


def test_of_losses_the_highest_are_the_worst(tmp_path: Path) -> None:
    """The loss of the point x with curvature 2 under the parameter 0 is x²."""
    column = {"who": list("ab" + "ab"), "curvature": torch.full((4,), 2.0)}
    train = Table({"point": torch.zeros(4, 1), **column})
    test = Table({"point": torch.tensor([[1.0], [2.0], [3.0], [0.0]]), **column})
    plan = points_plan(task={"name": "parts:Bowls"}, method="full")
    examples = Examples(train, test, ())
    site = opened(plan, Column("who"), examples)
    found = own_held_out(site, State(1, {"w": torch.zeros(1)}), Folder(tmp_path))
    assert found is not None
    assert found["metrics"]["loss"]["each"] == {"a": 5.0, "b": 2.0}
    assert found["metrics"]["loss"]["worst_tenth"] == 5.0
    broken = own_held_out(site, State(1, {"w": torch.tensor([torch.inf])}), Folder(tmp_path))
    assert broken is not None and broken["metrics"]["loss"]["each"] == {"a": None, "b": None}
    assert broken["metrics"]["loss"]["mean"] is None


PLAN = """
name = "own"
task = "parts:Points"
data = "parts:Blobs"
method = "full"
rounds = 2
cohort = 3
local = {batch_size = 8, lr = 0.1}
partition = {name = "dirichlet", clients = 3, alpha = 1.0, held_out = 0.2}
"""


def test_the_summary_the_evaluation_and_the_partition_tell(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    run = tmp_path / "run"
    ended = fedpeft("run", tmp_path / "plan.toml", "--out", run, "--quiet")
    assert ended.exit_code == 0, ended.output
    summary = json.loads((run / "summary.json").read_text())
    own, division = summary["own_held_out"], json.loads((run / "partition.json").read_text())
    assert set(own["examples"]) == {"c000", "c001", "c002"}
    assert sum(own["examples"].values()) == division["notes"]["own_held_out"]
    assert division["examples"] + division["notes"]["own_held_out"] == 90
    assert division["unused"] == 0
    told = fedpeft("evaluate", run, "--per-client", "--json")
    assert json.loads(told.stdout)["own_held_out"] == own
    text = fedpeft("evaluate", run, "--per-client").stdout
    accuracy = own["metrics"]["accuracy"]
    assert f"mean {accuracy['mean']:.4f}   by examples {accuracy['weighted']:.4f}" in text
    assert f"accuracy {accuracy['each']['c001']:.4f}   {own['examples']['c001']} examples" in text
    shown = fedpeft("partition", tmp_path / "plan.toml").stdout
    assert "own_held_out" in shown and "clients_without_own" in shown


def test_personal_models_are_measured_each_on_its_own(tmp_path: Path) -> None:
    """Before any round a client has the personal tensors of the start: head.bias of the site."""
    examples = Examples(
        table([0, 1, 2, 0, 1, 2], who=list("aaabbb")),
        table([0, 1, 2], who=list("aab")),
        ("0", "1", "2"),
    )
    plan = points_plan(routing=[{"name": "personal", "patterns": ["*.bias"]}])
    site = opened(plan, Column("who"), examples)
    store = Folder(tmp_path)
    state = State(1, {"head.weight": torch.zeros(3, 8)}, accepted={"a": 0, "b": 0})
    for client, bias in (("a", FIRST), ("b", torch.tensor([0.0, 0.0, 1.0]))):
        remember(store, client, bias)
    found = own_held_out(site, state, store)
    assert found is not None
    assert found["metrics"]["accuracy"]["each"] == {"a": 0.5, "b": 1.0}


def remember(store: Folder, client: str, bias: Tensor) -> None:
    from fedpeft.core.types import Job

    job = Job("run", 0, client, "fit", 1, None, b"")
    store.save(job, {"personal/head.bias": bias}, b"reply")


def test_a_private_plan_does_not_tell(tmp_path: Path) -> None:
    plan = read_plan(
        {
            **tomllib.loads(PLAN),
            "local": {"name": "dp_sgd", "lr": 0.1, "noise_multiplier": 1.0},
            "weighting": "uniform",
            "privacy": {"delta": 1e-3},
        }
    )
    site = open_site(plan)
    assert division_at(site)["notes"]["own_held_out"] > 0
    (tmp_path / "plan.toml").write_text(plan.toml())
    ended = fedpeft("run", tmp_path / "plan.toml", "--out", tmp_path / "run", "--quiet")
    assert ended.exit_code == 0, ended.output
    assert "own_held_out" not in json.loads((tmp_path / "run" / "summary.json").read_text())
