"""Files instead of a connection: what they come to, in any order, and that a bad one changes nothing."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from contributions import ONE_ROUND, Study, killed_before, study, tree
from running import PLAN, fedpeft

import fedpeft.oneshot.swap as swap
from fedpeft.core.stores import load_tensors
from fedpeft.core.tensors import equal, map_tensors, scale
from fedpeft.core.types import Update
from fedpeft.errors import PlanError, RunError
from fedpeft.oneshot.contribution import opened, write_contribution
from fedpeft.oneshot.flaws import ContributionError, Flaw
from fedpeft.oneshot.invitation import invite, read_invitation, server_key
from fedpeft.oneshot.keys import (
    SealError,
    Trust,
    check_name,
    make_sealing_key,
    make_signing_key,
    seal,
    sealing_key,
    signed,
    signing_key,
    unseal,
    verified,
)
from fedpeft.oneshot.merge import Rules, change, merge
from fedpeft.plan import read_plan
from fedpeft.runs.folder import read_json


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return study(tmp_path_factory.mktemp("three"))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(folder / "checkpoint" / "state.safetensors")[0]


def test_all_files_together_are_the_run_of_one_round(three: Study, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    settings = [flag for setting in ONE_ROUND for flag in ("--set", setting)]
    assert fedpeft("run", tmp_path / "plan.toml", *settings, "--out", tmp_path / "run", "--quiet").exit_code == 0
    merge(three.path, three.files, tmp_path / "merged", Rules())
    assert equal(tensors(tmp_path / "merged"), tensors(tmp_path / "run"))
    ours, theirs = (json.loads((tmp_path / name / "rounds.jsonl").read_text()) for name in ("merged", "run"))
    same = ("clients", "bytes_up", "bytes_down", "up_headers", "metrics")
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}


def test_no_order_of_arrival_shows(three: Study, tmp_path: Path) -> None:
    wanted = None
    for number, files in enumerate(permutations(three.files[:3])):
        out = tmp_path / f"merged{number}"
        merge(three.path, files[:1], out, Rules())
        change(out, add=files[1:])
        wanted = wanted or tree(out)
        assert tree(out) == wanted


def test_what_is_taken_out_was_never_there(three: Study, tmp_path: Path) -> None:
    merge(three.path, three.files[1:], tmp_path / "without", Rules())
    merge(three.path, three.files, tmp_path / "merged", Rules())
    assert not equal(tensors(tmp_path / "merged"), tensors(tmp_path / "without"))
    change(tmp_path / "merged", remove=[three.read(three.files[0]).header.client])
    assert tree(tmp_path / "merged") == tree(tmp_path / "without")


def test_the_merge_is_a_run_like_any_other(three: Study, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    said = fedpeft("merge", three.path, *three.files[:3], "-o", out, "--trust", three.trusted, "--evaluate")
    assert said.exit_code == 0, said.output
    assert len(said.output.splitlines()) == 5 and "(nobody)" in said.output
    arrivals = json.loads((out / "arrivals.json").read_text())["arrivals"]
    assert [one["client"] for one in arrivals] == [None, "c000", "c001", "c002"]
    measured = json.loads(fedpeft("evaluate", out, "--json").stdout)["held_out"]
    assert arrivals[-1]["held_out"] == measured == json.loads((out / "rounds.jsonl").read_text())["held_out"]
    assert arrivals[-1]["held_out"]["accuracy"] > arrivals[0]["held_out"]["accuracy"]
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["clients"], summary["cohort"], summary["rounds"]) == (3, 3, 1)
    assert "nothing is left to do" in fedpeft("run", "--resume", out).output
    assert fedpeft("report", out, "-o", tmp_path / "report.html").exit_code == 0
    said = fedpeft("merge", out, "--add", three.files[3], "--remove", "c000", "--json")
    assert json.loads(said.stdout)["clients"] == 3


def test_of_one_file_the_result_is_that_client_s_own_model(three: Study, tmp_path: Path) -> None:
    merge(three.path, three.files[:1], tmp_path / "merged", Rules())
    start, delta = three.invitation.state.params, three.update(three.files[0]).delta
    assert equal(tensors(tmp_path / "merged"), {f"params/{n}": start[n] + x for n, x in delta.items()})


Spoil = Callable[[Update], Update]
SPOILT: Mapping[Flaw, tuple[Spoil, Mapping[str, Any]]] = {
    Flaw.STUDY: (lambda u: u, {"study": "0" * 32}),
    Flaw.PLAN: (lambda u: u, {"plan": "0" * 16}),
    Flaw.BASE: (lambda u: u, {"base": "0" * 32}),
    Flaw.START: (lambda u: u, {"start": "0" * 32}),
    Flaw.LABELS: (lambda u: u, {"labels": "0" * 32}),
    Flaw.TRANSFORMS: (lambda u: u, {"transforms": "0" * 32}),
    Flaw.FORMAT: (lambda u: u, {"format": "fedpeft-contribution-9"}),
    Flaw.DAMAGED: (lambda u: u, {"bytes": 3}),
    Flaw.WEIGHT: (lambda u: replace(u, weight=1e9), {}),
    Flaw.NOT_FINITE: (lambda u: replace(u, delta=scale(u.delta, float("nan"))), {}),
    Flaw.NORM: (lambda u: replace(u, delta=scale(u.delta, 1e4)), {}),
    Flaw.TWICE: (lambda u: u, {"client": "c001"}),
    Flaw.UNKNOWN_KEY: (lambda u: u, {"client": "c009"}),
    Flaw.TAMPERED: (lambda u: u, {"signer": "0" * 64}),
}


@pytest.mark.parametrize("flaw", SPOILT, ids=lambda flaw: flaw.name)
def test_a_bad_file_is_named_and_changes_nothing(flaw: Flaw, three: Study, tmp_path: Path) -> None:
    out, (spoil, header) = tmp_path / "merged", SPOILT[flaw]
    merge(three.path, three.files[1:], out, Rules({} if flaw is Flaw.TWICE else Trust.read([three.trusted]).keys))
    before, bad = tree(tmp_path), three.forged(tmp_path / "bad.safetensors", spoil, **header)
    with pytest.raises(ContributionError) as caught:
        change(out, add=[bad])
    assert caught.value.flaw is flaw
    assert str(caught.value).startswith(f"{bad}: {flaw.value}: ") and "\n" not in str(caught.value)
    bad.unlink()
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: {**d, "another": torch.zeros(2)},
        lambda d: {n: x for n, x in d.items() if not n.endswith("bias")},
        lambda d: map_tensors(lambda x: x[None], d),
        lambda d: map_tensors(torch.Tensor.double, d),
    ],
    ids=["extra", "missing", "shape", "dtype"],
)
def test_other_tensors_than_the_plan_s(spoil: Any, three: Study, tmp_path: Path) -> None:
    bad = three.forged(tmp_path / "bad.safetensors", lambda u: replace(u, delta=spoil(u.delta)))
    with pytest.raises(ContributionError) as caught:
        merge(three.path, [*three.files[1:], bad], tmp_path / "merged", Rules())
    assert caught.value.flaw is Flaw.TENSORS
    assert not (tmp_path / "merged").exists()


def test_files_that_are_cut_or_changed_or_no_files(three: Study, tmp_path: Path) -> None:
    whole, bad = three.files[0].read_bytes(), tmp_path / "bad.safetensors"
    flipped = bytearray(whole)
    flipped[-20] ^= 1
    for content, flaw in (
        (whole[:-1], Flaw.DAMAGED),
        (whole + b"\0", Flaw.TAMPERED),
        (bytes(flipped), Flaw.TAMPERED),
        (b"", Flaw.DAMAGED),
        (b"\xff" * 100, Flaw.DAMAGED),
        (bytes(1 << 21), Flaw.LARGE),
    ):
        bad.write_bytes(content)
        with pytest.raises(ContributionError) as caught:
            three.read(bad)
        assert caught.value.flaw in (flaw, Flaw.DAMAGED)
    assert three.read(three.files[0]).header.client == "c000"
    assert list(load_tensors(three.files[0])[0]) == ["sealed"]


def test_unsigned_files_count_where_no_keys_are_asked_for(three: Study, tmp_path: Path) -> None:
    file, out = tmp_path / "c0.safetensors", tmp_path / "merged"
    said = fedpeft("contribute", three.path, "--client", 0, "-o", file)
    assert said.exit_code == 0 and "unsigned" in said.output
    refused = fedpeft("merge", three.path, file, "-o", out, "--trust", three.trusted)
    assert refused.exit_code == 2 and f"{file}: unsigned: " in refused.output and not out.exists()
    assert fedpeft("merge", three.path, file, "-o", out).exit_code == 0
    assert equal(three.update(file).delta, three.update(three.files[0]).delta)


def test_a_key_signs_for_its_owner_only(three: Study, tmp_path: Path) -> None:
    bad = three.forged(tmp_path / "bad.safetensors", lambda u: u, client="c001")
    with pytest.raises(ContributionError, match="may sign for nobody else"):
        three.read(bad, Trust.read([three.trusted]))


def test_the_rules_stay_with_the_merge(three: Study, tmp_path: Path) -> None:
    merge(three.path, three.files[:1], tmp_path / "a", Rules(max_norm=1e3, trust=Trust.read([three.trusted]).keys))
    long = three.forged(tmp_path / "long", lambda u: replace(u, delta=scale(u.delta, 1e4)), number=1)
    with pytest.raises(ContributionError, match="at most 1000 is allowed"):
        change(tmp_path / "a", add=[long])
    with pytest.raises(RunError, match="at least 1"):
        Rules(norm_factor=0.5)


def test_what_cannot_be_changed(three: Study, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    merge(three.path, three.files[:1], out, Rules())
    before = tree(out)
    with pytest.raises(RunError, match="'c007' is not among those merged: c000"):
        change(out, remove=["c007"])
    with pytest.raises(RunError, match="no contribution is there"):
        change(out, remove=["c000"])
    with pytest.raises(RunError, match="holds a merge already"):
        merge(three.path, three.files, out, Rules())
    with pytest.raises(RunError, match="is no merge"):
        change(three.path, add=three.files)
    assert tree(out) == before


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["rounds=3"], "rounds = 3"),
        (["personal=['*.bias']"], "personal tensors"),
        (["local.correction=scaffold", "server=scaffold"], "SCAFFOLD"),
        (["uplink=topk", "stages=['error_feedback']"], "error feedback"),
        (["stages=[{name='client_dp',noise_multiplier=1.0}]", "weighting=uniform", "delta=1e-3"], "client_dp"),
    ],
)
def test_plans_that_one_file_cannot_carry_out(settings: list[str], reason: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=reason):
        invite(read_plan(PLAN, [*ONE_ROUND, *settings]), tmp_path / "study")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "settings",
    [
        ("uplink=topk", "downlink=float16", "aggregator=median"),
        ("server=adam", "weighting=uniform", "uplink=int8"),
        ("stages=[{name='local_dp',noise_multiplier=1.0}]", "weighting=uniform", "delta=1e-3", "accountant=rdp"),
    ],
    ids=["lossy", "adam", "local_dp"],
)
def test_other_plans_in_any_order(settings: tuple[str, ...], tmp_path: Path) -> None:
    made = study(tmp_path, *settings)
    merge(made.path, made.files[:3], tmp_path / "a", Rules())
    merge(made.path, made.files[2::-1], tmp_path / "b", Rules())
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    header = made.read(made.files[0]).header
    assert (header.privacy is not None) == (header.examples is None) == ("delta=1e-3" in settings)


def test_an_invitation_that_was_changed(three: Study, tmp_path: Path) -> None:
    invite(read_plan(PLAN, ONE_ROUND), tmp_path / "study")
    plan = tmp_path / "study" / "plan.toml"
    plan.write_text(plan.read_text().replace("epochs = 3", "epochs = 4"))
    with pytest.raises(RunError, match="another plan"):
        read_invitation(tmp_path / "study")
    with pytest.raises(RunError, match="is no invitation"):
        read_invitation(tmp_path)
    with pytest.raises(RunError, match="is there already"):
        invite(read_plan(PLAN, ONE_ROUND), tmp_path / "study")
    assert read_invitation(three.path).terms.study != read_json(tmp_path / "study" / "invitation.json")["study"]  # type: ignore[index]


def test_the_folder_to_send_does_not_hold_the_key(three: Study) -> None:
    key = server_key(three.path)
    assert key.stat().st_mode & 0o077 == 0
    assert not any(key.read_bytes().strip() in content for content in tree(three.path).values())


OWN = """
name = "own"
task = {name = "module", module = "torch.nn:Linear", arguments = {in_features = 2, out_features = 3}}
data = {name = "arrays", path = "server.npz"}
method = "full"
rounds = 1
classes = ["c", "b", "a"]
local = {epochs = 10, lr = 0.1, batch_size = 8}
"""


def own_data(path: Path, labels: str) -> Path:
    """Points around a corner of a triangle for each label."""
    corner = {"a": (5.0, 0.0), "b": (-5.0, 0.0), "c": (0.0, 5.0), "z": (0.0, -5.0)}
    y = np.array([labels[k % len(labels)] for k in range(60)])
    x = np.array([corner[name] for name in y], dtype=np.float32) + np.arange(60, dtype=np.float32)[:, None] / 100
    np.savez(path, x_train=x, y_train=y)
    return path


def test_own_data_with_some_of_the_labels_and_no_data_at_the_server(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(OWN)
    invited = fedpeft("invite", tmp_path / "plan.toml", "-o", tmp_path / "study")
    assert invited.exit_code == 0, invited.output
    for name, labels in (("north", "ab"), ("south", "cb"), ("west", "ca"), ("east", "az")):
        data, out = own_data(tmp_path / f"{name}.npz", labels), tmp_path / f"{name}.safetensors"
        said = fedpeft("contribute", tmp_path / "study", "--data", data, "--name", name, "-o", out)
        assert (said.exit_code, out.exists()) == ((2, False) if name == "east" else (0, True)), said.output
    assert "no label called 'z'" in said.output
    merged = fedpeft("merge", tmp_path / "study", *tmp_path.glob("*.safetensors"), "-o", tmp_path / "merged")
    assert merged.exit_code == 0, merged.output
    weight, bias = (tensors(tmp_path / "merged")[f"params/{name}"] for name in ("weight", "bias"))
    points = torch.tensor([[0.0, 5.0], [-5.0, 0.0], [5.0, 0.0]])  # c, b, a
    assert (points @ weight.T + bias).argmax(1).tolist() == [0, 1, 2]
    assert fedpeft("merge", tmp_path / "merged", "--evaluate").exit_code == 2  # there is no server.npz
    assert "--data" in fedpeft("contribute", tmp_path / "study", "-o", tmp_path / "x").output
    again = fedpeft(
        "contribute", tmp_path / "study", "--data", data, "--name", "n", "-o", tmp_path / "north.safetensors"
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
    known, signature = mine.public_key().public_bytes_raw().hex(), signed(mine, b"head", b"body")
    assert verified(known, signature, b"head", b"body")
    assert not verified(known, signature.upper(), b"head", b"body")
    assert not verified(known, signature, b"hea", b"dbody") and not verified("00", signature, b"head", b"body")
    with pytest.raises(RunError, match="is there already"):
        make_signing_key("me", tmp_path)
    for name in ("", "..", "a/b", "a\nb", " a"):
        with pytest.raises(RunError, match="no name"):
            check_name(name)


def fuzzed(three: Study, count: int) -> None:
    """Mutated files: each is refused with its name, whatever was changed, and no module is loaded by reading it."""
    invitation, key, draw = three.invitation, sealing_key(server_key(three.path)), Random(7)
    whole, other = (file.read_bytes() for file in three.files[:2])
    opened(whole, "whole", invitation, key, Trust())
    loaded = set(sys.modules)
    for number in range(count):
        content = mutated(whole, other, draw)
        if content == whole:
            continue
        with pytest.raises(ContributionError):
            opened(content, f"mutant {number}", invitation, key, Trust())
    assert set(sys.modules) == loaded


def mutated(whole: bytes, other: bytes, draw: Random) -> bytes:
    content = bytearray(whole)
    head = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = draw.randrange(draw.choice((8, head, len(content))) or 1) % max(1, len(content))
        match draw.randrange(6):
            case 0:
                content[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                del content[at : at + draw.choice((1, 8, 1000))]
            case 2:
                content[at:at] = draw.randbytes(draw.choice((1, 8)))
            case 3:
                content[at : at + 20] = other[at : at + 20]
            case 4:
                content[at:at] = draw.choice((b'"', b"{", b"[" * 2000, b"null", b"1e999", b"\\ud800", b"9" * 5000))
            case 5:
                content[:8] = draw.choice((head - 7, 1 << 63, 0, len(content))).to_bytes(8, "little")
        content = content or bytearray(b"\0")
    return bytes(content)


def test_a_thousand_mutated_files(three: Study) -> None:
    fuzzed(three, 1_000)


@pytest.mark.slow
def test_a_hundred_thousand_mutated_files(three: Study) -> None:
    fuzzed(three, 100_000)


@pytest.mark.parametrize("count", [300, pytest.param(30_000, marks=pytest.mark.slow)])
def test_mutated_frames_that_are_sealed_and_signed(count: int, three: Study, tmp_path: Path) -> None:
    """A client with a good key may still send anything."""
    one, study, draw = three.read(three.files[0]), three.invitation, Random(8)
    key, signer = sealing_key(server_key(three.path)), signing_key(three.keys[0])
    for _ in range(count):
        frame = mutated(one.frame, one.frame[::-1], draw)
        if frame == one.frame:
            continue
        said = replace(one.header, bytes=len(frame))
        content = write_contribution(said, frame, study.terms.server, signer)
        with pytest.raises(ContributionError):
            opened(content, "mutant", study, key, Trust())


RENAMES = ("os.rename",)
ALL = (*RENAMES, "open", "os.remove", "os.mkdir", "os.rmdir")


@pytest.mark.parametrize("exchange", [True, False], ids=["exchanged", "one-after-another"])
@pytest.mark.parametrize("events", [RENAMES, pytest.param(ALL, marks=pytest.mark.slow)], ids=["renames", "all"])
def test_a_kill_leaves_the_old_merge_or_the_new_one(
    events: tuple[str, ...], exchange: bool, three: Study, tmp_path: Path
) -> None:
    out, after = tmp_path / "here" / "merged", tmp_path / "after"
    merge(three.path, three.files[:2], out, Rules())
    merge(three.path, three.files[:3], after, Rules())
    old, new = tree(out), tree(after)
    command = [sys.executable, __file__, str(out), str(three.files[2]), str(exchange), *events]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    ends = [tree(Path(line)) for line in done.stdout.splitlines()]
    assert len(ends) > 5
    assert all(end in (old, new) for end in ends)
    assert ends[0] == old and ends[-1] == new


def kill_everywhere(out: Path, file: Path, exchange: bool, events: tuple[str, ...]) -> None:
    """Copy the merge, kill a change of the copy before each of its file events in turn, and print where it lies."""
    if not exchange:
        swap._exchanged = lambda one, other: False  # as on a system that cannot
    moment, status = 0, 1
    while status != 0:
        copy = out.with_name(f"copy{moment}")
        shutil.copytree(out, copy)
        status = killed_before(moment, copy.name, events, lambda: change(copy, add=[file]))  # noqa: B023
        assert status in (0, 9), status
        if not exchange:
            swap.put_back(copy)
        sys.stdout.write(f"{copy}\n")
        moment += 1


if __name__ == "__main__":
    kill_everywhere(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "True", tuple(sys.argv[4:]))
