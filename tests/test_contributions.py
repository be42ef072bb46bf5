"""Files instead of a connection: what they come to, in any order, and that it is exact."""

import json
import os
import re
from itertools import permutations
from pathlib import Path

import pytest
import torch
from contributions import ONE_ROUND, PARTS, Study, change, merge, own_data, study, tree
from running import PLAN, fedpeft

from fedpeft.core.tensors import equal
from fedpeft.errors import PlanError, RunError
from fedpeft.oneshot.invitation import invite, read_invitation, server_key
from fedpeft.oneshot.keys import (
    SealError,
    check_name,
    is_signed,
    make_sealing_key,
    make_signing_key,
    seal,
    sealing_key,
    sign,
    signing_key,
    unseal,
)
from fedpeft.oneshot.rejections import ContributionError
from fedpeft.oneshot.rules import Rules
from fedpeft.plan.reading import read_plan
from fedpeft.runs.folder import read_json
from fedpeft.storage.files import load_tensors


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(folder / "checkpoint" / "state.safetensors")[0]


def test_all_files_together_are_the_run_of_one_round(four: Study, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    settings = [flag for setting in ONE_ROUND for flag in ("--set", setting)]
    assert (
        fedpeft(
            "run", tmp_path / "plan.toml", *settings, "--out", tmp_path / "run", "--quiet"
        ).exit_code
        == 0
    )
    merge(four.path, four.files, tmp_path / "merged", Rules())
    assert equal(tensors(tmp_path / "merged"), tensors(tmp_path / "run"))
    ours, theirs = (
        json.loads((tmp_path / name / "rounds.jsonl").read_text()) for name in ("merged", "run")
    )
    same = ("clients", "bytes_up", "bytes_down", "up_headers", "metrics")
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system cannot be asked")
def test_the_disk_is_asked_for_the_next_files(
    four: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str]()
    monkeypatch.setattr(
        os, "posix_fadvise", lambda number, *_: asked.append(os.readlink(f"/proc/self/fd/{number}"))
    )
    merge(four.path, four.files, tmp_path / "merged", Rules())
    assert asked == [str(file.resolve()) for file in four.files[1:]]
    asked.clear()
    change(tmp_path / "merged", remove=["c001"])
    assert len(asked) == len(four.files) - 1


def test_no_order_of_arrival_shows(four: Study, tmp_path: Path) -> None:
    wanted = None
    for number, files in enumerate(permutations(four.files[:3])):
        out = tmp_path / f"merged{number}"
        merge(four.path, files[:1], out, Rules())
        change(out, add=files[1:])
        found = tree(out)
        told = json.loads(found.pop("study/order.json"))["clients"]
        assert told == [file.stem for file in files]
        wanted = wanted or found
        assert found == wanted


def test_the_curve_is_in_the_order_of_arrival(four: Study, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    merge(four.path, [four.files[2], four.files[0]], out, Rules())
    change(out, add=[four.files[1]], remove=["c002"])
    change(out, add=[four.files[2]], evaluate=True)
    arrivals = json.loads((out / "arrivals.json").read_text())["arrivals"]
    assert [one["client"] for one in arrivals] == [None, "c000", "c001", "c002"]
    (out / "study" / "order.json").unlink()  # as of merges that did not keep it
    change(out, remove=["c000"], evaluate=True)
    arrivals = json.loads((out / "arrivals.json").read_text())["arrivals"]
    assert [one["client"] for one in arrivals] == [None, "c001", "c002"]


def test_what_is_taken_out_was_never_there(four: Study, tmp_path: Path) -> None:
    merge(four.path, four.files[1:], tmp_path / "without", Rules())
    merge(four.path, four.files, tmp_path / "merged", Rules())
    assert not equal(tensors(tmp_path / "merged"), tensors(tmp_path / "without"))
    change(tmp_path / "merged", remove=[four.read(four.files[0]).header.client])
    assert tree(tmp_path / "merged") == tree(tmp_path / "without")


def test_a_merge_of_merges_is_the_merge_of_all(four: Study, tmp_path: Path) -> None:
    """Two regions, then the country, with a hospital that belongs to none."""
    north, south, country, whole = (tmp_path / name for name in ("north", "south", "of", "whole"))
    merge(four.path, four.files[2:3], north, Rules())
    merge(four.path, four.files[:2], south, Rules())
    merge(four.path, [north, four.files[3]], country, Rules())
    change(country, add=[south])
    merge(four.path, four.files, whole, Rules())
    order = Path("study/order.json")
    for one in (country, whole):
        (one / order).unlink()  # of arrival, which is another one
    assert tree(country) == tree(whole)
    change(country, remove=["c000"])
    change(whole, remove=["c000"])
    assert equal(tensors(country), tensors(whole))


def test_a_folder_that_is_no_merge_and_a_client_of_two_regions(four: Study, tmp_path: Path) -> None:
    north, south = tmp_path / "north", tmp_path / "south"
    merge(four.path, four.files[:2], north, Rules())
    merge(four.path, four.files[1:], south, Rules())
    with pytest.raises(RunError, match=r"study is a folder and no merge: give contribution files"):
        merge(four.path, [four.path], tmp_path / "out", Rules())
    twice = r"'c001' is in .*north.* too; a client counts once"
    with pytest.raises(ContributionError, match=twice):
        merge(four.path, [north, south], tmp_path / "out", Rules())
    assert not (tmp_path / "out").exists()


def test_so_many_files_as_the_plan_wants_replies(tmp_path: Path) -> None:
    asked = study(tmp_path, "admission.min_replies=2")
    with pytest.raises(RunError, match=r"1 of at least 2 files: the plan wants replies of so many"):
        merge(asked.path, asked.files[:1], tmp_path / "few", Rules())
    merge(asked.path, asked.files[:2], tmp_path / "out", Rules(), evaluate=True)
    arrivals = json.loads((tmp_path / "out" / "arrivals.json").read_text())["arrivals"]
    assert len(arrivals) == 3


def test_the_merge_is_a_run_like_any_other(four: Study, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    said = fedpeft(
        "merge", four.path, *four.files[:3], "-o", out, "--trust", four.trusted, "--evaluate"
    )
    assert said.exit_code == 0, said.output
    assert len(said.output.splitlines()) == 5 and "(nobody)" in said.output
    arrivals = json.loads((out / "arrivals.json").read_text())["arrivals"]
    assert [one["client"] for one in arrivals] == [None, "c000", "c001", "c002"]
    measured = json.loads(fedpeft("evaluate", out, "--json").stdout)["held_out"]
    assert (
        arrivals[-1]["held_out"]
        == measured
        == json.loads((out / "rounds.jsonl").read_text())["held_out"]
    )
    assert arrivals[-1]["held_out"]["accuracy"] > arrivals[0]["held_out"]["accuracy"]
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["clients"], summary["cohort"], summary["rounds"]) == (3, 3, 1)
    assert "nothing is left to do" in fedpeft("run", "--resume", out).output
    assert fedpeft("report", out, "-o", tmp_path / "report.html").exit_code == 0
    page = (tmp_path / "report.html").read_text()
    told = re.search(r"<h3>Arrivals</h3>(.*?)</table>", page, re.DOTALL)
    shown = [f"{one['held_out']['accuracy']:.1%}".removesuffix("%") for one in arrivals]
    assert told
    assert list(dict.fromkeys(re.findall(r"nobody yet|c00\d", told[1]))) == [
        "nobody yet",
        *("c000", "c001", "c002"),
    ]
    assert all(value in told[1] for value in shown)
    said = fedpeft("merge", out, "--add", four.files[3], "--remove", "c000", "--json")
    assert json.loads(said.stdout)["clients"] == 3


def test_of_one_file_the_result_is_that_client_s_own_model(four: Study, tmp_path: Path) -> None:
    merge(four.path, four.files[:1], tmp_path / "merged", Rules())
    start, delta = four.invitation.state.params, four.update(four.files[0]).delta
    assert equal(
        tensors(tmp_path / "merged"), {f"params/{n}": start[n] + x for n, x in delta.items()}
    )


def test_what_cannot_be_changed(four: Study, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    merge(four.path, four.files[:1], out, Rules())
    before = tree(out)
    with pytest.raises(RunError, match="'c007' is not among those merged: c000"):
        change(out, remove=["c007"])
    with pytest.raises(RunError, match="no contribution is there"):
        change(out, remove=["c000"])
    with pytest.raises(RunError, match="holds a merge already"):
        merge(four.path, four.files, out, Rules())
    with pytest.raises(RunError, match="is no merge"):
        change(four.path, add=four.files)
    assert tree(out) == before


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["rounds=3"], "rounds = 3"),
        (["personal=['*.bias']"], "personal tensors"),
        (["local.correction=scaffold"], "Scaffold makes clients remember"),
        (["uplink=topk", "stages=['error_feedback']"], "ErrorFeedback makes clients remember"),
        (
            ["stages=[{name='client_dp',noise_multiplier=1.0}]", "weighting=uniform", "delta=1e-3"],
            "client_dp",
        ),
    ],
)
def test_plans_that_one_file_cannot_carry_out(
    settings: list[str], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match=reason):
        invite(read_plan(PLAN, [*ONE_ROUND, *settings]), tmp_path / "study")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "settings",
    [
        ("uplink=topk", "downlink=float16", "aggregator=median"),
        ("server=adam", "weighting=uniform", "uplink=int8"),
        (
            "stages=[{name='local_dp',noise_multiplier=1.0}]",
            "weighting=uniform",
            "delta=1e-3",
            "accountant=rdp",
        ),
    ],
    ids=["lossy", "adam", "local_dp"],
)
def test_other_plans_in_any_order(settings: tuple[str, ...], tmp_path: Path) -> None:
    made = study(tmp_path, *settings)
    merge(made.path, made.files[:3], tmp_path / "a", Rules())
    merge(made.path, made.files[2::-1], tmp_path / "b", Rules())
    a, b = (tree(tmp_path / name) for name in "ab")
    assert a.pop("study/order.json") != b.pop("study/order.json")
    assert a == b
    header = made.read(made.files[0]).header
    assert (header.privacy is not None) == (header.examples is None) == ("delta=1e-3" in settings)


def test_files_of_weights_are_read_with_what_was_sent(four: Study, tmp_path: Path) -> None:
    made = study(tmp_path, 'uplink={name="weights",codec="dense"}')
    for file, plain in zip(made.files, four.files, strict=True):
        assert made.read(file).size.length == pytest.approx(four.read(plain).size.length, rel=1e-5)


def test_an_invitation_that_was_changed(four: Study, tmp_path: Path) -> None:
    invite(read_plan(PLAN, ONE_ROUND), tmp_path / "study")
    plan = tmp_path / "study" / "plan.toml"
    plan.write_text(plan.read_text().replace("epochs = 3", "epochs = 4"))
    with pytest.raises(RunError, match="another plan"):
        read_invitation(tmp_path / "study", PARTS)
    with pytest.raises(RunError, match="is no invitation"):
        read_invitation(tmp_path, PARTS)
    with pytest.raises(RunError, match="is there already"):
        invite(read_plan(PLAN, ONE_ROUND), tmp_path / "study")
    other = read_json(tmp_path / "study" / "invitation.json") or {}
    assert read_invitation(four.path, PARTS).terms.study != other["study"]


def test_the_folder_to_send_does_not_hold_the_key(four: Study) -> None:
    key = server_key(four.path)
    assert key.stat().st_mode & 0o077 == 0
    assert not any(key.read_bytes().strip() in content for content in tree(four.path).values())


OWN = """
name = "own"
data = {name = "arrays", path = "server.npz"}
task.name = "module"
task.module = "torch.nn:Linear"
task.arguments = {in_features = 2, out_features = 3}
method = "full"
rounds = 1
classes = ["c", "b", "a"]
local = {epochs = 10, lr = 0.1, batch_size = 8}
"""


def test_own_data_with_some_of_the_labels_and_no_data_at_the_server(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(OWN)
    invited = fedpeft("invite", tmp_path / "plan.toml", "-o", tmp_path / "study")
    assert invited.exit_code == 0, invited.output
    for name, labels in (("north", "ab"), ("south", "cb"), ("west", "ca"), ("east", "az")):
        data, out = own_data(tmp_path / f"{name}.npz", labels), tmp_path / f"{name}.safetensors"
        said = fedpeft(
            "contribute", tmp_path / "study", "--data", data, "--name", name, "-y", "-o", out
        )
        assert (said.exit_code, out.exists()) == ((2, False) if name == "east" else (0, True)), (
            said.output
        )
    assert "no label called 'z'" in said.output
    merged = fedpeft(
        "merge", tmp_path / "study", *tmp_path.glob("*.safetensors"), "-o", tmp_path / "merged"
    )
    assert merged.exit_code == 0, merged.output
    weight, bias = (tensors(tmp_path / "merged")[f"params/{name}"] for name in ("weight", "bias"))
    points = torch.tensor([[0.0, 5.0], [-5.0, 0.0], [5.0, 0.0]])  # c, b, a
    assert (points @ weight.T + bias).argmax(1).tolist() == [0, 1, 2]
    # There is no server.npz.
    assert fedpeft("merge", tmp_path / "merged", "--evaluate").exit_code == 2
    assert "--data" in fedpeft("contribute", tmp_path / "study", "-o", tmp_path / "x").output
    again = fedpeft(
        "contribute",
        tmp_path / "study",
        "--data",
        data,
        "--name",
        "n",
        "-o",
        tmp_path / "north.safetensors",
    )
    assert again.exit_code == 2 and "is not written over" in again.output


def test_another_base_model_is_refused_where_it_is(tmp_path: Path) -> None:
    invite(read_plan(PLAN, ONE_ROUND), tmp_path / "study")
    file = tmp_path / "study" / "invitation.json"
    values = json.loads(file.read_text())
    for key, words in (("base", "base model here"), ("transforms", "what becomes of images")):
        file.write_text(json.dumps({**values, key: "0" * 32}))
        said = fedpeft("contribute", tmp_path / "study", "--client", 0, "-o", tmp_path / "c")
        assert said.exit_code == 2 and words in said.output and not (tmp_path / "c").exists()


def test_sealed_for_one_and_signed_by_one(tmp_path: Path) -> None:
    public = make_sealing_key(tmp_path / "server.key")
    other = make_sealing_key(tmp_path / "other.key")
    key = sealing_key(tmp_path / "server.key")
    assert unseal(key, b"head", seal(public, b"head", b"body")) == b"body"
    assert seal(public, b"head", b"body") != seal(public, b"head", b"body")
    for sealed, head in (
        (seal(public, b"head", b"body"), b"tail"),
        (seal(other, b"head", b"body"), b"head"),
        (b"", b""),
    ):
        with pytest.raises(SealError):
            unseal(key, head, sealed)
    private, _ = make_signing_key("me", tmp_path)
    mine = signing_key(private)
    known, signature = mine.public_key().public_bytes_raw().hex(), sign(mine, b"head", b"body")
    assert is_signed(known, signature, b"head", b"body")
    assert not is_signed(known, signature.upper(), b"head", b"body")
    assert not is_signed(known, signature, b"hea", b"dbody") and not is_signed(
        "00", signature, b"head", b"body"
    )
    with pytest.raises(RunError, match="is there already"):
        make_signing_key("me", tmp_path)
    for name in ("", "..", "a/b", "a\nb", " a"):
        with pytest.raises(RunError, match="no name"):
            check_name(name)
