"""A head from one file of sums of each client: in any order, with one more and one less."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contributions import Study, change, merge, study, tree
from running import PLAN, fedpeft, strict
from torch import Tensor

from fedpeft.codecs.dense import Dense
from fedpeft.core.conversation import Message
from fedpeft.core.tensors import equal
from fedpeft.errors import PlanError
from fedpeft.oneshot.contribution import write_contribution
from fedpeft.oneshot.keys import signing_key
from fedpeft.oneshot.one_file import check_plan
from fedpeft.oneshot.rejections import ContributionError, Rejection
from fedpeft.oneshot.rules import Rules
from fedpeft.plan.reading import read_plan
from fedpeft.storage.files import load_tensors
from fedpeft.wire.payloads import decode_answer, encode_answer

HEADS = {
    "class_means": "class_means",
    "class_covariances": "class_means",
    "ridge_head": "feature_products",
    "virtual_features": "class_moments",
}
"""What is asked for each of them."""


def settings_of(name: str) -> list[str]:
    return ["rounds=0", f"algorithms=['{name}']"]


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Four files of class means, which no test changes."""
    return study(tmp_path_factory.mktemp("sums"), *settings_of("class_means"))


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_tensors(folder / "checkpoint" / "state.safetensors")[0]


@pytest.mark.parametrize("name", HEADS)
def test_all_files_together_are_the_run(name: str, tmp_path: Path) -> None:
    made = study(tmp_path, *settings_of(name))
    (tmp_path / "plan.toml").write_text(PLAN)
    settings = [flag for setting in settings_of(name) for flag in ("--set", setting)]
    run, out = tmp_path / "run", tmp_path / "merged"
    assert fedpeft("run", tmp_path / "plan.toml", *settings, "--out", run, "-q").exit_code == 0
    merge(made.path, made.files, out, Rules(), evaluate=True)
    assert equal(tensors(out), tensors(run))
    ours, theirs = (json.loads((x / "rounds.jsonl").read_text()) for x in (out, run))
    same = ("clients", "bytes_up", "bytes_down", "up_headers", "held_out")
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    assert ours["held_out"]["accuracy"] > 0.9
    arrivals = json.loads((out / "arrivals.json").read_text())["arrivals"]
    assert [one["client"] for one in arrivals] == [None, "c000", "c001", "c002", "c003"]
    assert arrivals[-1]["held_out"] == ours["held_out"]


def test_no_order_of_arrival_shows(sums: Study, tmp_path: Path) -> None:
    wanted = None
    for number, files in enumerate(permutations(sums.files[:3])):
        out = tmp_path / f"merged{number}"
        merge(sums.path, files[:1], out, Rules())
        change(out, add=files[1:])
        found = tree(out)
        found.pop("study/order.json")
        wanted = wanted or found
        assert found == wanted


def test_what_is_taken_out_was_never_there_and_comes_back(sums: Study, tmp_path: Path) -> None:
    whole, less = tmp_path / "whole", tmp_path / "less"
    merge(sums.path, sums.files, whole, Rules())
    merge(sums.path, sums.files[1:], less, Rules())
    before, without = tensors(whole), tensors(less)
    assert not equal(before, without)
    change(whole, remove=["c000"])
    assert equal(tensors(whole), without)
    change(whole, add=sums.files[:1])
    assert equal(tensors(whole), before)


def test_the_head_is_of_the_sums_by_hand(sums: Study, tmp_path: Path) -> None:
    merge(sums.path, sums.files, tmp_path / "merged", Rules())
    total, numbers = torch.zeros(3, 8, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for file in sums.files:
        told = in_file(sums, file).tensors["class_means"]
        total, numbers = total + told["sums"].double(), numbers + told["counts"].double()
    head = tensors(tmp_path / "merged")["params/head.weight"]
    means = torch.nn.functional.normalize(total / numbers[:, None])
    torch.testing.assert_close(torch.nn.functional.normalize(head), means.float())


def in_file(made: Study, file: Path) -> Message:
    frame = made.read(file).frame
    layout = {"class_means": [("sums", [3, 8], "float32"), ("counts", [3], "float32")]}
    return decode_answer(frame, Dense(), layout)


def forged(
    made: Study, out: Path, spoil: Callable[[dict[str, Tensor]], Any], **header: Any
) -> Path:
    """The first client's file with other sums, properly signed and sealed."""
    one = made.read(made.files[0])
    told = spoil(dict(in_file(made, made.files[0]).tensors["class_means"]))
    frame = encode_answer(Message({"class_means": told}), Dense())
    said = replace(one.header, bytes=len(frame), **header)
    server, key = made.invitation.terms.server, signing_key(made.keys[0])
    out.write_bytes(write_contribution(said, frame, server, key))
    return out


def times(by: float) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda told: {**told, "sums": told["sums"] * by}


@pytest.mark.parametrize(
    ("reason", "spoil", "header"),
    [
        (Rejection.TENSORS, lambda told: {"sums": told["sums"][:2], "counts": told["counts"]}, {}),
        (Rejection.NOT_FINITE, times(float("nan")), {}),
        (Rejection.SUMS, lambda told: {**told, "counts": told["counts"] - 0.5}, {}),
        (Rejection.WEIGHT, lambda told: told, {"examples": 10_000}),
        (Rejection.WEIGHT, lambda told: told, {"examples": None}),
        (Rejection.NORM, times(1e3), {}),
        (Rejection.NORM, times(1e30), {}),
    ],
)
def test_sums_that_no_client_has_are_named(
    reason: Rejection,
    spoil: Callable[[dict[str, Tensor]], Any],
    header: dict[str, Any],
    sums: Study,
    tmp_path: Path,
) -> None:
    out = tmp_path / "merged"
    merge(sums.path, sums.files[1:], out, Rules())
    before, bad = tree(out), forged(sums, tmp_path / "bad.safetensors", spoil, **header)
    with pytest.raises(ContributionError) as caught:
        change(out, add=[bad])
    assert caught.value.reason is reason and tree(out) == before
    assert "update" not in str(caught.value) or reason is not Rejection.NORM


def test_a_file_that_counts_far_more_than_others_is_named(sums: Study, tmp_path: Path) -> None:

    def many(told: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: x * 1e4 for name, x in told.items()}

    examples = int(many(dict(in_file(sums, sums.files[0]).tensors["class_means"]))["counts"].sum())
    bad = forged(sums, tmp_path / "bad.safetensors", many, examples=examples)
    with pytest.raises(ContributionError, match="--max-examples") as caught:
        merge(sums.path, [*sums.files[1:], bad], tmp_path / "merged", Rules())
    assert caught.value.reason is Rejection.EXAMPLES


OWN = """
name = "own"
data = {name = "arrays", path = "server.npz"}
task = {name = "module", module = "own_modules:Net", arguments = {classes = 3}}
method = {name = "head", head = "head"}
algorithms = ["class_means"]
rounds = 0
cohort = 2
classes = ["c", "b", "a"]
"""


def test_an_owner_with_some_of_the_classes_counts_its_own_data(tmp_path: Path) -> None:
    """What leaves is shown, and what the header says of it is what the sums are of."""
    (tmp_path / "plan.toml").write_text(OWN)
    made, merged, files = tmp_path / "study", tmp_path / "merged", []
    code = "--allow-code=own_modules"
    told = strict("invite", tmp_path / "plan.toml", "-o", made, code)
    assert told.exit_code == 0, told.output
    for name, labels in (("north", "ab"), ("south", "b")):
        data = tmp_path / f"{name}.npz"
        x = torch.randn(30, 64, generator=torch.Generator().manual_seed(1)).numpy()
        np.savez(data, x_train=x, y_train=np.array([labels[k % len(labels)] for k in range(30)]))
        files.append(tmp_path / f"{name}.safetensors")
        given = ("--data", data, "--name", name, "-o", files[-1], "--yes", code)
        told = strict("contribute", made, *given, "--memory", tmp_path / "memory")
        assert told.exit_code == 0, told.output
        assert "51 numbers once, and no example" in told.output
        assert "you count once" in told.output and "the mean loss" not in told.output
        assert "from 30 examples" in told.output
    assert strict("merge", made, *files, "-o", merged, code).exit_code == 0
    begun, ended = tensors(made)["params/head.weight"], tensors(merged)["params/head.weight"]
    kept = [torch.equal(old, new) for old, new in zip(begun, ended, strict=True)]
    assert kept == [True, False, False]  # nobody has a "c"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["rounds=1"], "set rounds = 0 for its head alone"),
        (["rounds=2"], "rounds = 0 for a head"),
        (
            ["rounds=0", "algorithms=['class_means', 'ridge_head']"],
            "ClassMeans and RidgeHead ask one after another",
        ),
        (
            ["rounds=0", "evaluate_at=['owners']", "task='parts:ClassedPoints'"],
            "OwnerEvaluation ask",
        ),
        (["rounds=0", "routing=[{name='ranks', ranks=[1, 2]}]"], "ranks"),
    ],
)
def test_what_one_file_cannot_carry_out(settings: list[str], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        check_plan(read_plan(PLAN, ["algorithms=['class_means']", *settings]))
