"""ROC curves of what owners counted, and their figures."""

import json
from pathlib import Path

import torch
from cells import write_cell
from sklearn.metrics import roc_curve

from fedpeft.compute.tally import Counts, Curve
from fedpeft.core.types import Weighted
from fedpeft.evaluators.owner_table import CURVES, POINTS, tabulate
from fedpeft.report.groups import Section, sections
from fedpeft.report.reading import read_cells
from fedpeft.report.roc import roc_figures
from fedpeft.tasks.image_classification import ImageClassification


def counts(positives: list[int], negatives: list[int], classes: int = 2) -> Counts:
    curve = Curve(torch.arange(len(positives)), torch.tensor(positives), torch.tensor(negatives))
    names = tuple(f"k{k}" for k in range(classes))
    totals = {"loss": Weighted(1.0, 1.0)}
    return Counts(names, 5, totals, curves=(curve,) * classes)


def told(*each: Counts) -> dict[str, list[tuple[float, float]]]:
    found = tabulate({f"o{k}": one for k, one in enumerate(each)}, [], ImageClassification())
    roc: dict[str, list[tuple[float, float]]] = found.get("roc", {})
    return roc


def test_two_owners_have_the_curve_of_their_examples_together() -> None:
    """Against scikit-learn, with every example's score and all thresholds."""
    one, other = counts([0, 1, 3, 2], [2, 2, 0, 0]), counts([1, 0, 1, 1], [3, 0, 1, 0])
    positives, negatives = [1, 1, 4, 3], [5, 2, 1, 0]
    scores = [k for k in range(4) for _ in range(positives[k] + negatives[k])]
    labels = [x for k in range(4) for x in [1] * positives[k] + [0] * negatives[k]]
    others, found, _ = roc_curve(labels, scores, drop_intermediate=False)
    [(name, points)] = told(one, other).items()
    assert name == "k1"
    assert points[:-1] == [(round(x, 4), round(y, 4)) for x, y in zip(others, found, strict=True)]


def test_a_curve_has_few_points_and_many_classes_have_none() -> None:
    [points] = told(counts([1] * 950, [1] * 950)).values()
    assert POINTS / 2 < len(points) <= POINTS + 2 and points[-1] == (1.0, 1.0)
    assert points == sorted(points)
    assert len(told(counts([1, 2], [2, 1], CURVES))) == CURVES
    assert told(counts([1, 2], [2, 1], CURVES + 1)) == {}
    assert told(counts([1, 2], [0, 0])) == {}, "one class alone has no curve"


def write_roc(cell: Path, roc: object) -> None:
    file = cell / "summary.json"
    owners = {"examples": {"a": 9}, "metrics": {}, "roc": roc}
    file.write_text(json.dumps({**json.loads(file.read_text()), "owners": owners}))


def section_of(root: Path) -> Section:
    cells, problems = read_cells([root])
    assert not problems
    return sections(cells)[0]


def test_a_figure_has_a_line_for_each_group_that_told_scores(tmp_path: Path) -> None:
    for name, method in (("1", "head"), ("2", "lora"), ("3", "bias")):
        write_cell(tmp_path / name, [0.5, 0.6], method=method)
    assert roc_figures(section_of(tmp_path)) == []
    write_roc(tmp_path / "1", {"yes": [[0, 0], [0.2, 0.9], [1, 1]]})
    write_roc(tmp_path / "2", {"yes": [[0, 0], [0.5, 0.5], [1, 1]]})
    (figure,) = roc_figures(section_of(tmp_path))
    assert figure.title == "ROC: yes" and figure.spec is not None
    _, lines = figure.spec["layer"]
    values = figure.spec["datasets"][lines["data"]["name"]]
    drawn = {(one["group"], one["others"], one["found"]) for one in values}
    assert {(0.2, 0.9), (0.5, 0.5)} < {point[1:] for point in drawn}
    assert len({point[0] for point in drawn}) == 2
