"""Forecasts that a run keeps for its report, and the figures of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from cells import write_cell
from running import fedpeft
from test_forecasting import run_of, waves

from fedpeft import InProcess, RunError, federate, open_site, read_plan, start
from fedpeft.core.types import State
from fedpeft.report.continued import GROUPS, POINTS, continued_figures
from fedpeft.report.drawing import Figure
from fedpeft.report.groups import sections
from fedpeft.report.reading import read_cells
from fedpeft.results.held_out_curves import keep_curves
from fedpeft.results.kept_examples import keep_examples
from fedpeft.rounds.absent import absent_site, held_out_of
from fedpeft.rounds.site import Site
from fedpeft.runs.folder import RunFolder
from fedpeft.storage.client_memory import Folder, Nowhere


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return waves(tmp_path_factory.mktemp("series") / "waves.csv")


@pytest.fixture(scope="module")
def run(file: Path) -> Path:
    plan = file.parent / "plan.toml"
    plan.write_text(tomli_w.dumps(run_of(file, name="waves")))
    done = fedpeft("run", plan, "--out", file.parent / "run", "--quiet")
    assert done.exit_code == 0, done.stderr
    return file.parent / "run"


def kept(run: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run / "curves.json").read_text())
    return values


def test_a_run_keeps_windows_of_each_client(run: Path) -> None:
    """Of 15 held-out windows the first and the eighth. The untuned linear model goes on with the
    last value."""
    values = kept(run)
    windows = values["windows"]
    assert values["round"] == 2 and values["clients"] == 3
    assert [(w["client"], w["place"], w["of"]) for w in windows] == [
        (client, place, 15) for client in "abc" for place in (0, 7)
    ]
    for window in windows:
        assert len(window["given"]) == 16 and window["before"] == [window["given"][-1]] * 4
        assert window["after"] != window["before"]
    # window 7 of one client begins 7 steps after window 0
    assert windows[1]["given"][:9] == windows[0]["given"][7:]
    assert windows[1]["given"][9:13] == windows[0]["truth"]


def trained(plan: Any) -> tuple[Site, State, Folder]:
    site = open_site(plan)
    store = Folder(Path(plan.name))
    begin = start(plan, site.params())
    last = list(federate(plan, InProcess(site, store), begin))[-1][0]
    return site, last, store


def test_each_client_is_drawn_with_its_own_model(file: Path, tmp_path: Path) -> None:
    plan = read_plan(run_of(file, personal=["*"], name=str(tmp_path / "clients")))
    site, state, store = trained(plan)
    found = keep_curves(RunFolder(tmp_path), site, state, store, 1)["windows"]
    assert [one["client"] for one in found] == ["a", "b", "c"]
    models = [store.load(client, state.accepted[client]) for client in "abc"]
    for window, memory in zip(found, models, strict=True):
        past = torch.tensor(window["given"])
        weight, bias = (memory[f"personal/head.{name}"] for name in ("weight", "bias"))
        wanted = past[-1] + weight @ (past - past[-1]) + bias
        torch.testing.assert_close(torch.tensor(window["after"]), wanted, atol=1e-3, rtol=1e-3)


def elsewhere(file: Path, tmp_path: Path, **other: Any) -> tuple[Site, State]:
    """A server whose clients are elsewhere, with held-out examples of its own."""
    plan = read_plan(run_of(file, **other))
    model = plan.model(())
    site = absent_site(plan, model, dict.fromkeys("abc", 0), held_out_of(plan))
    return site, start(plan, site.params())


def test_a_server_draws_its_own_examples_alone(file: Path, tmp_path: Path) -> None:
    site, state = elsewhere(file, tmp_path)
    found = keep_curves(RunFolder(tmp_path), site, state, Nowhere(), 3)
    assert found["clients"] == 1
    assert [(w["client"], w["place"], w["of"]) for w in found["windows"]] == [
        ("", 0, 45), ("", 15, 45), ("", 30, 45)
    ]  # fmt: skip


def test_models_that_lie_with_clients_are_not_drawn_elsewhere(file: Path, tmp_path: Path) -> None:
    site, state = elsewhere(file, tmp_path, personal=["*"])
    with pytest.raises(RunError, match="a model of its own, and its held-out examples lie with it"):
        keep_curves(RunFolder(tmp_path), site, state, Nowhere())
    bare = absent_site(site.plan, site.model, {"a": 0}, None)
    with pytest.raises(RunError, match="no held-out example lies here"):
        keep_curves(RunFolder(tmp_path), bare, state, Nowhere())


def test_a_run_ends_well_where_nothing_can_be_kept(run: Path, file: Path) -> None:
    before = kept(run)
    folder, site = RunFolder(run), open_site(read_plan(run / "plan.toml"))
    nobody = replace(site, data=replace(site.data, test={}, tested={}))  # type: ignore[type-var]
    said = keep_examples(folder, nobody)
    assert said.startswith("no forecasts were kept for the report: ")
    assert kept(run) == before and keep_examples(folder, site) == "" and kept(run) == before


def test_evaluate_keeps_more(run: Path) -> None:
    done = fedpeft("evaluate", run, "--sample", 3)
    assert done.exit_code == 0 and "kept for `fedpeft report`: 9 windows" in done.stdout
    assert [one["place"] for one in kept(run)["windows"][:3]] == [0, 5, 10]


# the figures of a report, from values by hand


def window(client: str, last: float = 0.5, **other: Any) -> dict[str, Any]:
    lines = {"given": [0.0, 1.0], "truth": [2.0, 3.0], "before": [1.0, 1.0]}
    return {"client": client, "place": 0, "of": 9, **lines, "after": [last, None], **other}


def write_curves(cell: Path, windows: Sequence[Mapping[str, Any]], clients: int = 2) -> Path:
    told = {"round": 1, "clients": clients, "windows": windows}
    (cell / "curves.json").write_text(json.dumps(told))
    return cell


def drawn(root: Path) -> list[Figure]:
    (section,) = sections(read_cells([root])[0])
    return continued_figures(section)


def points(figure: Figure, layer: int) -> list[Any]:
    assert figure.spec is not None
    name = figure.spec["layer"][layer]["data"]["name"]
    return [(one.get("group"), one["at"], one["value"]) for one in figure.spec["datasets"][name]]


def test_a_figure_for_each_client_has_all_groups_of_the_same_windows(tmp_path: Path) -> None:
    """Two steps are given, 0 and 1, and two follow, 2 and 3; the next window begins after a gap."""
    for method, after in (("bias", 0.5), ("lora", 0.7)):
        cell = write_cell(tmp_path / method, [0.5], method=method)
        write_curves(cell, [window("x", after), window("x", after), window("y", after)], 3)
    write_curves(write_cell(tmp_path / "h", [0.5], method="head"), [window("x", place=4)])
    write_cell(tmp_path / "full", [0.5], method="full")
    x, y, other = drawn(tmp_path)
    assert [f.title for f in (x, y)] == ["Held-out steps of x", "Held-out steps of y"]
    assert points(y, 1) == [(None, 0, 0.0), (None, 1, 1.0), (None, 2, 2.0), (None, 3, 3.0)]
    assert points(y, 2) == [(None, 2, 1.0), (None, 3, 1.0)]
    lines = [("bias", 2, 0.5), ("bias", 3, None), ("lora", 2, 0.7), ("lora", 3, None)]
    assert points(y, 3) == lines
    assert [at for _, at, _ in points(x, 1)] == [0, 1, 2, 3, 5, 6, 7, 8]
    assert "Shown are 2 of 3 clients." in x.told and "untuned" in x.told
    assert points(other, 3) == [("head", 2, 0.5), ("head", 3, None)]
    assert other.name not in (x.name, y.name)


def test_untuned_models_that_differ_are_not_drawn(tmp_path: Path) -> None:
    write_curves(write_cell(tmp_path / "a", [0.5], method="bias"), [window("x")])
    write_curves(write_cell(tmp_path / "b", [0.5]), [window("x", before=[0.0, 0.0])])
    (figure,) = drawn(tmp_path)
    assert figure.spec is not None and len(figure.spec["layer"]) == 3
    assert "untuned" not in figure.told


def test_figures_are_bounded(tmp_path: Path) -> None:
    long: dict[str, Any] = {
        "given": [0.0] * POINTS,
        "truth": [1.0] * 2 * POINTS,
        "before": [1.0] * 2 * POINTS,
    }
    for k in range(GROUPS + 1):
        cell = write_cell(tmp_path / f"{k}", [0.5], method={"name": "lora", "rank": k + 1})
        write_curves(cell, [window("", **long) | {"after": [1.0] * 2 * POINTS}])
    (figure,) = drawn(tmp_path)
    assert figure.title == "Held-out steps"
    assert len(points(figure, 1)) == POINTS and points(figure, 1)[1][1] == 3
    assert f"Shown are the first {GROUPS} of {GROUPS + 1} groups." in figure.told


@pytest.mark.slow
def test_the_page_shows_forecasts(run: Path, tmp_path: Path) -> None:
    done = fedpeft("report", run, "-o", tmp_path / "page.html")
    assert done.exit_code == 0, done.stderr
    text = (tmp_path / "page.html").read_text()
    assert all(f"<h3>Held-out steps of {client}</h3>" in text for client in "abc")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"given": []}, "as many steps"), ({"after": [1.0]}, "as many steps"),
     ({"truth": ["<b>", 1]}, "windows.0.truth.0")],
)  # fmt: skip
def test_damaged_windows_are_one_clear_line(tmp_path: Path, wrong: Any, words: str) -> None:
    run = write_curves(write_cell(tmp_path / "run", [0.5]), [window("x", **wrong)])
    done = fedpeft("report", run, "-o", tmp_path / "page.html")
    assert done.exit_code == 2 and "curves.json is damaged" in done.stderr and words in done.stderr
