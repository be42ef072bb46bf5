"""Private runs in their folders: secrets, epsilon in every record, resumes, the command line, and
what is learned."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from crashes import write
from rounds import on, points_plan
from running import fedpeft
from running import run as run_folder
from test_privacy import CLIENT, KINDS, LOCAL, SECRET

from fedpeft.core.secrets import Secret
from fedpeft.core.tensors import equal
from fedpeft.errors import RunError
from fedpeft.evaluation.measure import measure
from fedpeft.plan.calibration import with_noise
from fedpeft.plan.reading import read_plan
from fedpeft.registry import OWN
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site
from fedpeft.runs.checkpoint import load_checkpoint
from fedpeft.runs.execute import open_engine, open_run_site
from fedpeft.runs.folder import RunFolder, create, read_json, read_rounds, reopen
from fedpeft.runs.summary import summarize
from fedpeft.storage.client_memory import Folder
from fedpeft.studies.cell_store import CellStore
from fedpeft.studies.study import read_study


def begun(where: Path, private: dict[str, Any]) -> tuple[RunFolder, Site]:
    """A run's folder with known secrets."""
    site = open_run_site(points_plan(**private))
    folder = create(site.plan, where)
    for path in folder.secrets:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(SECRET.root)
    return folder, site


@KINDS
def test_a_run_that_goes_on_counts_on_and_ends_in_the_same_bits(
    tmp_path: Path, private: dict[str, Any]
) -> None:
    whole, site = begun(tmp_path / "whole", private)
    run_folder(whole, site)
    halves, _ = begun(tmp_path / "halves", private)
    run_folder(halves, site, rounds=2)
    half = load_checkpoint(halves.checkpoint, site.plan)
    assert half is not None and half.privacy == read_rounds(halves)[-1]["privacy"]
    run_folder(halves, site)
    a, b = (load_checkpoint(folder.checkpoint, site.plan) for folder in (whole, halves))
    assert a is not None and b is not None and equal(a.state.params, b.state.params)
    lines = [[line["privacy"] for line in read_rounds(folder)] for folder in (whole, halves)]
    assert lines[0] == lines[1] and a.privacy == b.privacy == lines[0][-1]
    summary = summarize(whole, site)
    assert summary["privacy"] == lines[0][-1] and summary["client_accuracy"] is None


@pytest.mark.parametrize("which", [0, 1], ids=["server", "clients"])
@pytest.mark.parametrize("lost", [True, False], ids=["lost", "another"])
def test_a_run_does_not_go_on_with_another_secret(tmp_path: Path, which: int, lost: bool) -> None:
    folder, site = begun(tmp_path / "run", CLIENT)
    run_folder(folder, site, rounds=2)
    folder.secrets[which].unlink()
    if not lost:
        folder.secrets[which].write_bytes(Secret.fresh().root)
    with pytest.raises(RunError, match="not what this run's noise was drawn from"):
        run_folder(folder, site)


@KINDS
def test_no_file_that_is_passed_on_holds_a_secret(tmp_path: Path, private: dict[str, Any]) -> None:
    folder, site = begun(tmp_path / "run", private)
    run_folder(folder, site)
    summarize(folder, site)
    keys = [SECRET.root, SECRET.root.hex().encode()]
    for client in site.data.clients:
        keys += [
            Folder(folder.clients).secret(client).root,
            Folder(folder.clients).secret(client).root.hex().encode(),
        ]
    for path in folder.path.rglob("*"):
        if path.is_file() and path not in folder.secrets:
            assert not any(key in path.read_bytes() for key in keys), path


def test_two_runs_of_one_plan_differ_in_their_noise_alone(tmp_path: Path) -> None:
    site = open_run_site(points_plan(**CLIENT))
    states = []
    for name in ("a", "b"):
        folder = create(site.plan, tmp_path / name)
        run_folder(folder, site)
        saved = load_checkpoint(folder.checkpoint, site.plan)
        assert saved is not None
        states.append(saved.state)
    assert (
        not equal(states[0].params, states[1].params) and states[0].accepted == states[1].accepted
    )


PLAN = """
name = "blobs"
task = "parts:Points"
data = "parts:Blobs"
method = "full"
rounds = 3
cohort = 2
weighting = "uniform"
partition = {name = "iid", clients = 4}
"""


def test_the_command_line_tells_what_it_cost_and_resumes(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f"{PLAN}target_epsilon = 5\ndelta = 1e-3\nlocal = {{lr = 0.1}}\n"
        'stages = [{name = "client_dp", clip_norm = 0.5}]\n'
    )
    ended = fedpeft("run", plan, "--out", tmp_path / "run")
    assert ended.exit_code == 0, ended.output
    assert "ε for one client at δ = 0.001" in ended.output and "  ε " in ended.output
    summary = read_json(tmp_path / "run" / "summary.json")
    assert summary is not None and 4.9 < summary["privacy"]["epsilon"] <= 5
    assert "noise_multiplier = " in (tmp_path / "run" / "plan.toml").read_text()
    begun_ = tmp_path / "again"
    copytree(tmp_path / "run", begun_)
    (begun_ / "summary.json").unlink()
    assert fedpeft("run", "--resume", begun_).exit_code == 0
    lines = [json.loads(line) for line in (begun_ / "rounds.jsonl").read_text().splitlines()]
    assert lines[-1]["privacy"] == summary["privacy"]
    assert fedpeft("evaluate", tmp_path / "run").exit_code == 0


STUDY = f"""
set = ["delta=1e-3", "accountant=rdp", 'stages=[{{ name = "client_dp", clip_norm = 0.5 }}]']
[base]
{PLAN}
[[row]]
label = "calibrated"
set = ["target_epsilon=5"]
[[row]]
label = "given"
set = [
    "target_epsilon=5",
    'stages=[{{ name = "client_dp", clip_norm = 0.5, noise_multiplier = 9.0 }}]',
]
"""


def noise_in(folder: Path) -> float | None:
    noise: float | None = read_plan(folder / "plan.toml").private_part.noise_multiplier
    return noise


def test_a_cell_keeps_its_noise_and_is_known_by_its_plan_before_it(tmp_path: Path) -> None:
    study = read_study(write(tmp_path / "study.toml", STUDY))
    cell, given = study.cells
    cell_store = CellStore(study, tmp_path / "out", tmp_path / "kept")
    folder = cell_store.place(cell)
    assert noise_in(folder.path) is None
    site = open_run_site(reopen(folder.path, OWN)[1])
    run_folder(folder, site, rounds=1)
    assert noise_in(folder.path) == site.plan.private_part.noise_multiplier is not None
    # And nothing else was changed.
    assert replace(read_plan(folder.plan), stages=cell.plan.stages) == cell.plan

    assert cell_store.place(cell) == folder
    assert fedpeft("run", "--resume", folder.path).exit_code == 0
    cell_store.store(cell, folder.path)
    elsewhere = CellStore(study, tmp_path / "elsewhere", tmp_path / "kept")
    kept = tmp_path / "kept" / "study" / cell.name
    assert noise_in(kept) is not None and elsewhere.finished() == {cell.plan.fingerprint: kept}
    write(kept / "plan.toml", cell.plan.toml())  # as they were kept once, without their noise
    assert elsewhere.finished() == {cell.plan.fingerprint: kept}
    # The same target, and noise that a cell asks for by itself.
    write(kept / "plan.toml", given.plan.toml())
    assert elsewhere.finished() == {given.plan.fingerprint: kept}


def test_a_run_goes_on_with_the_noise_that_another_version_calibrated(tmp_path: Path) -> None:
    study = read_study(write(tmp_path / "study.toml", STUDY))
    cell_store = CellStore(study, tmp_path / "out")
    site = open_run_site(study.cells[0].plan)
    then = site.plan.private_part.noise_multiplier * 1.0005
    folder = cell_store.place(study.cells[0])
    run_folder(folder, replace(site, plan=with_noise(site.plan, then)), rounds=1)
    assert cell_store.place(study.cells[0]) == folder
    ended = fedpeft("run", "--resume", folder.path)
    assert ended.exit_code == 0, ended.output
    assert noise_in(folder.path) == then
    assert read_rounds(folder)[-1]["privacy"]["epsilon"] < 5


def test_noise_as_published_is_told_to_guarantee_nothing(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(f'{PLAN}local = {{name = "dp_as_published", lr = 0.01, batch_size = 8}}\n')
    ended = fedpeft("run", plan, "--out", tmp_path / "run")
    assert ended.exit_code == 0, ended.output
    assert "ε not bounded" in ended.output and "gives no example a guarantee" in ended.output
    summary = read_json(tmp_path / "run" / "summary.json")
    assert summary is not None and summary["privacy"] == {
        "epsilon": None,
        "delta": None,
        "unit": "example",
        "accountant": None,
    }


def test_engine_folder_makes_its_secrets_by_itself(tmp_path: Path) -> None:
    site = open_run_site(points_plan(**LOCAL))
    folder = create(site.plan, tmp_path / "run")
    engine = open_engine(folder, site)
    rounds = list(federate(site.plan, engine, start(site.plan, site.params())))
    assert (
        len(rounds) == site.plan.rounds
        and (folder.clients / "secret").stat().st_mode & 0o777 == 0o600
    )


LEARNT = {"head": 0.8, "bias": 0.8, "lora": 0.8, "adapter": 0.8, "prompt": 0.7}
PLANS = Path(__file__).parents[1] / "plans"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("plan", "method"),
    [*product(["digits-dp", "digits-client-dp"], sorted(LEARNT)), ("digits-dp", "full")],
)
def test_every_method_still_learns_at_epsilon_8(plan: str, method: str) -> None:
    """Chance is a tenth. What is measured is in docs/results/privacy.md, of full fine-tuning in the
    cells of studies/privacy-small.toml."""
    site = open_run_site(
        read_plan(
            PLANS / f"{plan}.toml", [f"method={method}", "accountant=rdp", "engine=inprocess"]
        )
    )
    *_, (state, ledger) = federate(site.plan, on(site, site.plan), start(site.plan, site.params()))
    assert ledger.privacy is not None and ledger.privacy["epsilon"] <= 8 and not ledger.failed
    assert measure(site, state.params)["accuracy"] > LEARNT.get(method, 0.8)
