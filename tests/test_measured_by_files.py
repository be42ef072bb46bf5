"""Owners measure a model that was made of their files, by one more file of counts each."""

import json
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contributions import PARTS, change, merge
from running import fedpeft
from torch import Tensor

from fedpeft.compute.tally import CONFUSION, EXAMPLES, tally_layout
from fedpeft.core.conversation import Message
from fedpeft.core.types import Weighted
from fedpeft.data.client_data import Partitioned
from fedpeft.errors import DataError, PlanError
from fedpeft.evaluators.owners import PHASE
from fedpeft.oneshot.contribute import from_partition, own_site
from fedpeft.oneshot.contribution import read_contribution, write_contribution
from fedpeft.oneshot.invitation import read_invitation, server_key
from fedpeft.oneshot.keys import Trust, sealing_key
from fedpeft.oneshot.own_data import OwnData
from fedpeft.oneshot.rejections import ContributionError, Rejection
from fedpeft.oneshot.rules import Rules
from fedpeft.plan.coding import answer_codec
from fedpeft.plan.reading import read_plan
from fedpeft.storage.files import load_tensors
from fedpeft.wire.payloads import decode_answer, encode_answer

PLAN = """
name = "owners"
task = "parts:ClassedPoints"
data = "parts:Blobs"
method = "full"
rounds = 1
cohort = 3
metrics = ["macro_f1"]
local = {batch_size = 8, lr = 0.1}
partition = {name = "dirichlet", clients = 3, alpha = 10.0, held_out = 0.3}
"""
OWN = """
rounds = 1
classes = ["a", "b", "c"]
method = "full"
task.name = "module"
task.module = "torch.nn:Linear"
task.arguments = {in_features = 2, out_features = 3}
data = {name = "arrays", path = "server.npz"}
partition = {name = "iid", clients = 2, held_out = 0.3}
"""
ASKING = ("--set", "rounds=0", "--set", 'evaluate_at=["owners"]')


def done(*arguments: str | int | Path) -> str:
    """What a command says that ends well."""
    ended = fedpeft(*arguments)
    assert ended.exit_code == 0, ended.output
    return ended.stdout


def files_for(study: Path) -> list[Path]:
    """The file of each of three owners."""
    files = [study.with_name(f"{study.name}-{owner}.safetensors") for owner in range(3)]
    for owner, file in enumerate(files):
        done("contribute", study, "--client", owner, "-o", file, "--yes")
    return files


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three files, its plan beside it; no test changes it."""
    root = tmp_path_factory.mktemp("merged")
    (root / "plan.toml").write_text(PLAN)
    done("invite", root / "plan.toml", "-o", root / "study")
    done("merge", root / "study", *files_for(root / "study"), "-o", root / "merged")
    return root / "merged"


@pytest.fixture(scope="module")
def measuring(merged: Path) -> tuple[Path, list[Path]]:
    """An invitation to measure it, and the owners' files."""
    study, plan = merged.with_name("measuring"), merged / "plan.toml"
    done("invite", plan, "--start", merged, *ASKING, "-o", study)
    return study, files_for(study)


def test_files_of_counts_say_what_a_federation_is_told(
    merged: Path, measuring: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    study, files = measuring
    told = done("merge", study, *reversed(files), "-o", tmp_path / "measured")
    run = tmp_path / "run"
    done("run", merged.parent / "plan.toml", "--start", merged, *ASKING, "--out", run, "-q")
    by_files, asked = (
        json.loads((folder / "summary.json").read_text()) for folder in (tmp_path / "measured", run)
    )
    unlike = ("bytes_up", "bytes_down")  # the names of clients' runs differ in length
    assert {key: x for key, x in by_files["owners"].items() if key not in unlike} == {
        key: x for key, x in asked["owners"].items() if key not in unlike
    }
    assert by_files["owners"]["metrics"]["accuracy"]["pooled"] > 0.8
    examples = by_files["owners"]["examples"]
    assert f"at 3 owners, on {sum(examples.values())} held-out examples of theirs" in told
    low, high = by_files["owners"]["metrics"]["accuracy"]["intervals"]["c001"]
    assert re.search(rf"c001 .*accuracy \d\.\d+ \({low:.4f} to {high:.4f}\)", told)
    before, after = (
        load_tensors(folder / "checkpoint" / "state.safetensors")[0]
        for folder in (merged, tmp_path / "measured")
    )
    assert all(torch.equal(x, after[name]) for name, x in before.items() if "params" in name)


def test_a_late_file_and_one_less(measuring: tuple[Path, list[Path]], tmp_path: Path) -> None:
    study, files = measuring
    out = tmp_path / "measured"
    merge(study, files[:1], out, Rules())
    change(out, add=files[1:], remove=["c000"])
    owners = json.loads((out / "summary.json").read_text())["owners"]
    assert list(owners["examples"]) == ["c001", "c002"]


def test_the_message_for_a_merge_is_a_command_that_works(merged: Path, tmp_path: Path) -> None:
    refused = fedpeft("evaluate", merged, "--at-owners")
    assert refused.exit_code == 2
    [command] = re.findall(r"`fedpeft invite (.*) -o measuring`", refused.output.replace("\n", " "))
    words = [word.strip("'") for word in command.split()]
    done("invite", *words, "-o", tmp_path / "asked")


Spoil = Callable[[dict[str, Tensor]], Any]


def _more_of_one_class(tally: dict[str, Tensor]) -> None:
    tally[CONFUSION][0, 0] += 1


def _far_more(tally: dict[str, Tensor]) -> None:
    tally[EXAMPLES] += 10**6
    tally[CONFUSION][0, 0] += 10**6


def _of_two_classes(tally: dict[str, Tensor]) -> None:
    tally[CONFUSION] = tally[CONFUSION][:2, :2].contiguous()


def forged(study: Path, file: Path, out: Path, spoil: Spoil, told: bool = True) -> Path:
    """A file with other counts, sealed as its owner would; `told`: its header fits them."""
    invitation = read_invitation(study, PARTS)
    one = read_contribution(file, invitation, sealing_key(server_key(study)), Trust())
    plan = invitation.plan
    codec = answer_codec(plan, PHASE)
    layout = {PHASE: tally_layout(3, plan.metrics_read)}
    tally = dict(decode_answer(one.frame, codec, layout).tensors[PHASE])
    spoil(tally)
    right, examples = (int(x) for x in (tally[CONFUSION].diagonal().sum(), tally[EXAMPLES]))
    totals = {"accuracy": Weighted(right, examples), "loss": Weighted(1.0, examples)}
    frame = encode_answer(Message({PHASE: tally}, {"metrics": totals}), codec)
    header = replace(one.header, bytes=len(frame), examples=examples if told else 1)
    out.write_bytes(write_contribution(header, frame, invitation.terms.server, None))
    return out


@pytest.mark.parametrize(
    ("reason", "spoil", "told"),
    [
        (Rejection.SUMS, _more_of_one_class, True),
        (Rejection.WEIGHT, lambda tally: None, False),
        (Rejection.EXAMPLES, _far_more, True),
        (Rejection.TENSORS, _of_two_classes, True),
    ],
)
def test_counts_that_no_examples_have_are_named(
    reason: Rejection,
    spoil: Spoil,
    told: bool,
    measuring: tuple[Path, list[Path]],
    tmp_path: Path,
) -> None:
    study, files = measuring
    bad = forged(study, files[0], tmp_path / "bad.safetensors", spoil, told)
    with pytest.raises(ContributionError) as refused:
        merge(study, [bad, *files[1:]], tmp_path / "measured", Rules())
    assert refused.value.reason is reason, refused.value


def test_an_owner_without_held_out_examples_is_told_before_anything_is_measured(
    merged: Path, tmp_path: Path
) -> None:
    plan, study = merged.parent / "plan.toml", tmp_path / "study"
    done("invite", plan, *ASKING, "--set", "partition.held_out=0", "-o", study)
    with pytest.raises(DataError, match="'c002' has no held-out examples"):
        from_partition(read_invitation(study, PARTS), 2)


def test_what_is_held_out_of_an_owners_data_is_not_trained_on(tmp_path: Path) -> None:
    """A plan that measures at the server alone sets the same examples apart as one that measures
    at the owners: else a later one would measure on examples that were trained on."""
    labels = np.array(list("abc") * 10)
    x = np.arange(60, dtype=np.float32).reshape(30, 2)
    np.savez(tmp_path / "own.npz", x_train=x, y_train=labels)
    data, plan = OwnData(str(tmp_path / "own.npz")), read_plan(OWN)
    trains = own_site(plan, data, "a").data
    measures = own_site(read_plan(OWN, ASKING[1::2]), data, "a").data
    assert isinstance(trains, Partitioned) and isinstance(measures, Partitioned)
    assert (trains.size("a"), trains.own_size("a")) == (21, 9)  # 0.3 of 30 are held out
    assert torch.equal(trains.parts["a"], measures.parts["a"])
    assert torch.equal(trains.apart["a"], measures.apart["a"])
    assert not set(trains.parts["a"].tolist()) & set(trains.apart["a"].tolist())


def test_a_start_with_another_division_is_told(
    merged: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = merged / "plan.toml"
    with caplog.at_level(logging.WARNING, "fedpeft"):
        done("invite", plan, "--start", merged, *ASKING, "-o", tmp_path / "same")
        assert not caplog.messages
        other = ("--set", "partition.held_out=0.2")
        done("invite", plan, "--start", merged, *ASKING, *other, "-o", tmp_path / "other")
    assert "may be measured on some that they trained on" in caplog.text


def test_files_that_measure_have_no_curve(
    measuring: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    study, files = measuring
    with pytest.raises(PlanError, match="leave it out"):
        merge(study, files, tmp_path / "measured", Rules(), evaluate=True)
