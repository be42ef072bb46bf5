"""Figures of clients that choose models, and of clients that send unlike."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cells import write_cell

from fedpeft.report import figures
from fedpeft.report.by_client import client_figures
from fedpeft.report.drawing import Figure
from fedpeft.report.groups import Section, sections
from fedpeft.report.reading import read_cells
from fedpeft.report.rows import CLIENTS, further_metrics, spreads


def section_of(root: Path) -> Section:
    cells, problems = read_cells([root])
    assert not problems
    [section] = sections(cells)
    return section


def change_rounds(cell: Path, change: Callable[[int, dict[str, Any]], Any]) -> None:
    lines = [json.loads(one) for one in (cell / "rounds.jsonl").read_text().splitlines()]
    for at, one in enumerate(lines):
        change(at, one)
    (cell / "rounds.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))


def values_of(figure: Figure) -> list[dict[str, Any]]:
    assert figure.spec
    [values] = figure.spec.get("datasets", {}).values() or [figure.spec["data"]["values"]]
    return list(values)


def test_the_model_that_each_client_chose_is_drawn_round_by_round(tmp_path: Path) -> None:
    """In the second round b goes over to the other model; a rests in the third."""
    chosen = [{"a": 0, "b": 0}, {"a": 0, "b": 1}, {"b": 1}]
    sizes = [[2, 0], [1, 1], [0, 1]]

    def tell(at: int, one: dict[str, Any]) -> None:
        one["reports"] = {"ifca": {"sizes": sizes[at], "draws": 1, "chosen": chosen[at]}}

    change_rounds(write_cell(tmp_path / "1", [0.5, 0.6, 0.7]), tell)
    [figure] = client_figures(section_of(tmp_path))
    found = [(one["client"], one["round"], one["model"]) for one in values_of(figure)]
    assert found == [("a", 1, 0), ("b", 1, 0), ("a", 2, 0), ("b", 2, 1), ("b", 3, 1)]
    assert figure.spec and figure.spec["encoding"]["color"]["scale"]["domain"] == [0, 1]
    assert "Clients of round 3: model 0: 0; model 1: 1." in figure.told


def test_clients_that_send_unlike_have_bars(tmp_path: Path) -> None:
    """Client a sends 4,000 bytes in one round and 2,000 in the other, b 1,000 in each; a failure
    does not count."""

    def send(at: int, one: dict[str, Any]) -> None:
        one["clients"]["a"]["up"] = (4000, 2000, 0)[at]
        if at == 2:
            one["clients"]["a"] |= {"up": 9, "failed": "it broke"}

    cell = write_cell(tmp_path / "1", [0.5, 0.6, 0.7])
    assert client_figures(section_of(tmp_path)) == []
    change_rounds(cell, send)
    [figure] = client_figures(section_of(tmp_path))
    assert [(one["client"], one["sent"]) for one in values_of(figure)] == [("a", 3000), ("b", 1000)]
    assert figure.spec
    assert figure.spec["encoding"]["x"]["axis"]["values"] == [0, 1024, 2048]


def test_what_else_changes_from_round_to_round_has_a_curve(tmp_path: Path) -> None:
    """Recalls have one each; what stays as it is and losses have none."""

    def measure(at: int, one: dict[str, Any]) -> None:
        one["held_out"] = {"recall_1": 0.1, "recall_5": 0.2 * at, "chance": 0.1, "loss": 2.0 - at}

    change_rounds(write_cell(tmp_path / "1", [0.5, 0.6]), measure)
    section = section_of(tmp_path)
    assert further_metrics(section) == ["recall_5"]
    drawn = {one.name: one.title for one in figures.figures(section) if one.spec}
    assert drawn["rounds"] == "Recall 1 per round"
    assert drawn["rounds-0"] == "Recall 5 per round"


def test_without_common_examples_each_client_has_the_accuracy_on_its_own(tmp_path: Path) -> None:
    cell = write_cell(tmp_path / "1", [0.5, 0.6])
    told = json.loads((cell / "summary.json").read_text())
    assert spreads(section_of(tmp_path)) == []
    metrics = {"accuracy": {"mean": 0.75, "each": {"a": 0.5, "b": 1.0}}}
    told["own_held_out"] = {"examples": {"a": 2, "b": 2}, "metrics": metrics}
    (cell / "summary.json").write_text(json.dumps(told))
    found = [(one["client"], one["accuracy"]) for one in spreads(section_of(tmp_path))]
    assert found == [("a", 0.5), ("b", 1.0)]


def test_of_many_clients_those_that_are_shown_are_of_each_kind(tmp_path: Path) -> None:
    """A hundred clients that take turns: every second one is of one model."""
    chosen = {f"c{k:03}": k % 2 for k in range(100)}

    def tell(at: int, one: dict[str, Any]) -> None:
        one["reports"] = {"ifca": {"sizes": [50, 50], "draws": 1, "chosen": chosen}}

    change_rounds(write_cell(tmp_path / "1", [0.5]), tell)
    [figure] = client_figures(section_of(tmp_path))
    found = [one["model"] for one in values_of(figure)]
    assert len(found) == CLIENTS
    assert 20 < sum(found) < CLIENTS - 20
    assert f"Shown are {CLIENTS} of 100 clients." in figure.told


def test_clients_that_were_asked_but_did_not_train_have_no_bar(tmp_path: Path) -> None:
    """They sent something else, and it is no part of the model that is short."""

    def send(at: int, one: dict[str, Any]) -> None:
        one["clients"]["a"] |= {"up": 10, "weight": None}

    change_rounds(write_cell(tmp_path / "1", [0.5, 0.6]), send)
    assert client_figures(section_of(tmp_path)) == []


def test_a_metric_that_not_all_runs_have_has_no_figure(tmp_path: Path) -> None:
    def measure(at: int, one: dict[str, Any]) -> None:
        one["held_out"] |= {"auroc": 0.5 + at / 10}

    change_rounds(write_cell(tmp_path / "1", [0.5, 0.6]), measure)
    write_cell(tmp_path / "2", [0.5, 0.6], seed=2)
    drawn = {one.name for one in figures.figures(section_of(tmp_path))}
    assert "rounds" in drawn and "rounds-0" not in drawn
