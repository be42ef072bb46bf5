"""Runs of the task on pictures and texts: training, engines, files, exports, and that a picture is
seen."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from text_runs import Exported, check_processes, write_rows
from tiny_vlm import (
    COLOURS,
    EVERY,
    changes,
    save_squares,
    square,
    task_of,
)
from torch import Tensor

from fedpeft import InProcess, PlanError, federate, open_site, read_plan, start
from fedpeft.core.outputs import LOGITS
from fedpeft.core.tensors import equal
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.evaluation.measure import measure
from fedpeft.oneshot.contribute import contribute, from_partition
from fedpeft.oneshot.fingerprints import transforms_digest
from fedpeft.oneshot.invitation import invite, read_invitation
from fedpeft.oneshot.keys import make_signing_key, signing_key
from fedpeft.oneshot.merge import merge
from fedpeft.oneshot.rules import Rules
from fedpeft.results.samples import sample_answers
from fedpeft.rounds.site import Site
from fedpeft.storage.files import load_tensors
from fedpeft.tasks.image_text_to_text import ImageTextToText
from fedpeft.tasks.picture_rows import model_inputs
from tools.models.vision_language import SIDE, save_vlm

NOT = -100


@pytest.fixture(scope="module", params=EVERY)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vlm(tmp_path_factory.mktemp(family), family)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vlm(tmp_path_factory.mktemp("llava"), "llava")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_squares(tmp_path_factory.mktemp("squares"))


def trained(site: Site) -> tuple[Mapping[str, Tensor], Any]:
    plan = site.plan
    ((state, ledger),) = federate(plan, InProcess(site), start(plan, site.params()))
    return state.flat, ledger


def test_a_step_of_lora_moves_both_parts(folder: Path, table: Path) -> None:
    plan = read_plan(changes(folder, table))
    site = open_site(plan)
    before = site.params()
    after, ledger = trained(site)
    assert not ledger.failed and list(site.data.clients) == ["ann", "bob"]
    for part in (".vision_", ".visual."), ("language_model", "text_model"):
        mine = [name for name in before if any(one in name for one in part) and "lora_B" in name]
        assert mine and all(bool((after[name] != before[name]).any()) for name in mine)


@pytest.mark.parametrize("merge", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_is_exported_says_the_same_and_writes(
    folder: Path, table: Path, tmp_path: Path, merge: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Exported(changes(folder, table), tmp_path, merge)
    batch, ours = run.forward()
    with torch.inference_mode():
        theirs = run.names["model"](**model_inputs(batch)).logits[:, -ours[LOGITS].shape[1] :]
    torch.testing.assert_close(theirs, ours[LOGITS], rtol=1e-4, atol=1e-5)
    assert "text_config" not in run.loading
    exec(run.usage, {**run.names, "picture": square("red", 2 * SIDE)})
    assert capsys.readouterr().out.startswith("user")


@pytest.mark.slow
def test_a_named_template_is_exported_with_its_mark(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_vlm(tmp_path / "plain", "llava", template=False)
    with pytest.raises(PlanError, match="has no chat template of its own; name one of"):
        open_site(read_plan(changes(model, table)))
    run = Exported(changes(model, table, task=task_of(model, template="vicuna")), tmp_path)
    assert '"content": "<image>\\n..."' in run.usage
    exec(run.usage, {**run.names, "picture": square("red")})
    assert "ASSISTANT" in run.names["processor"].chat_template
    own, other = (transforms_digest(ImageTextToText(str(model), template=t, max_length=8))
                  for t in ("vicuna", "alpaca"))  # fmt: skip
    assert own != other


@pytest.mark.slow
def test_engines_agree(llava: Path, table: Path) -> None:
    """Clients in a stack are trained one after another, which a line says."""
    plan = changes(llava, table)
    check_processes(plan)
    site = open_site(read_plan(plan))
    cohort = Cohort(site)
    ((state, ledger),) = federate(site.plan, cohort, start(site.plan, site.params()))
    assert not ledger.failed and "vmap" in cohort.alone
    assert equal(state.flat, trained(site)[0])


@pytest.mark.slow
def test_a_file_from_each_owner_comes_to_the_run_of_one_round(
    llava: Path, table: Path, tmp_path: Path
) -> None:
    plan = read_plan(changes(llava, table))
    invite(plan, tmp_path / "study")
    given, files = read_invitation(tmp_path / "study"), []
    for number in range(2):
        who = from_partition(given, number)
        private, _ = make_signing_key(who.client, tmp_path)
        files.append(tmp_path / f"{who.client}.safetensors")
        files[-1].write_bytes(contribute(given, who, signing_key(private), lambda: None)[1])
    merge(tmp_path / "study", files, tmp_path / "merged", Rules())
    got, _ = load_tensors(tmp_path / "merged" / "checkpoint" / "state.safetensors")
    got = {name.partition("/")[2]: x for name, x in got.items() if name.startswith("params/")}
    assert equal(trained(open_site(plan))[0], got)


@pytest.mark.slow
def test_each_example_has_a_gradient_of_its_own(llava: Path, table: Path) -> None:
    local = {"name": "dp_sgd", "batch_size": 8, "lr": 0.02, "clip_norm": 1.0}
    local |= {"noise_multiplier": 1.0, "rate": 0.5, "steps": 2}
    private = {"weighting": "uniform", "privacy": {"delta": 1e-5}, "local": local}
    assert not trained(open_site(read_plan(changes(llava, table, **private))))[1].failed
    small = {"compute": {"micro_batch": 2, "checkpointing": True}}
    assert not trained(open_site(read_plan(changes(llava, table, **small))))[1].failed


@pytest.mark.slow
def test_the_picture_is_seen(llava: Path, tmp_path: Path) -> None:
    """After overfitting, the colour of each square is told. Where a picture says nothing of its
    name, the loss stays at that of a guess among four, ln 4 for two tokens."""

    def learned(names: list[str]) -> tuple[float, list[str]]:
        root = tmp_path / "".join(name[0] for name in names)
        root.mkdir()
        rows = []
        for k, name in enumerate(names):
            square(list(COLOURS)[k % 4]).save(root / f"{k}.png")
            rows.append({"image": f"{k}.png", "text": name})
        file = write_rows(root / "rows.jsonl", rows)
        local = {"batch_size": 16, "lr": 0.01, "optimizer": "adamw", "epochs": 80}
        one = {"partition": {"name": "iid", "clients": 1}, "cohort": 1, "method": "full"}
        data = {"name": "table", "path": str(file), "label": "none", "test_fraction": 0.5}
        site = open_site(read_plan(changes(llava, file, **one, local=local, data=data)))
        ((state, _),) = federate(site.plan, InProcess(site), start(site.plan, site.params()))
        said = sample_answers(site, state, 8)
        right = [one.after == one.truth for one in said]
        return measure(site, state.params)["loss"], [str(x) for x in right]

    each = list(COLOURS)
    loss, right = learned(each * 8)
    assert loss < 0.05 and set(right) == {"True"}
    mixed = [each[(k // 4 + k) % 4] for k in range(32)]  # each colour has each name twice
    other, _ = learned(mixed)
    assert other > 0.6


def test_a_base_in_bfloat16_is_trained_beside(tmp_path: Path, table: Path) -> None:
    large = save_vlm(tmp_path, "llava", hidden_size=96, head_dim=48)
    task = task_of(large, quantize="bfloat16")
    site = open_site(read_plan(changes(large, table, task=task)))
    kept = {x.dtype for x in site.model.parameters()}
    assert torch.bfloat16 in kept and not trained(site)[1].failed
    with pytest.raises(PlanError, match=r"quantize"):
        read_plan({"task": task_of(large, quantize="nf4")})
