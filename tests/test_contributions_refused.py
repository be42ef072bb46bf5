"""Contribution files that are not what they should be: each is named, and changes nothing."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from contributions import Study, change, merge, study, tree
from fuzzing import counts
from running import fedpeft

from fedpeft.core.tensors import equal, map_tensors, scale
from fedpeft.core.types import Update
from fedpeft.errors import PlanError, RunError
from fedpeft.oneshot.contribution import open_contribution, write_contribution
from fedpeft.oneshot.contribution_header import Header, read_header
from fedpeft.oneshot.invitation import invite, server_key
from fedpeft.oneshot.keys import (
    Trust,
    sealing_key,
    signing_key,
)
from fedpeft.oneshot.rejections import ContributionError, Rejection
from fedpeft.oneshot.rules import Rules
from fedpeft.plan.reading import read_plan
from fedpeft.storage.files import load_tensors

Spoil = Callable[[Update], Update]
SPOILT: Mapping[Rejection, tuple[Spoil, Mapping[str, Any]]] = {
    Rejection.STUDY: (lambda u: u, {"study": "0" * 32}),
    Rejection.PLAN: (lambda u: u, {"plan": "0" * 16}),
    Rejection.BASE: (lambda u: u, {"base": "0" * 32}),
    Rejection.START: (lambda u: u, {"start": "0" * 32}),
    Rejection.LABELS: (lambda u: u, {"labels": "0" * 32}),
    Rejection.TRANSFORMS: (lambda u: u, {"transforms": "0" * 32}),
    Rejection.FORMAT: (lambda u: u, {"format": "fedpeft-contribution-9"}),
    Rejection.DAMAGED: (lambda u: u, {"bytes": 3}),
    Rejection.WEIGHT: (lambda u: replace(u, weight=1e9), {}),
    Rejection.NOT_FINITE: (lambda u: replace(u, delta=scale(u.delta, float("nan"))), {}),
    Rejection.NORM: (lambda u: replace(u, delta=scale(u.delta, 1e4)), {}),
    Rejection.TWICE: (lambda u: u, {"client": "c001"}),
    Rejection.UNKNOWN_KEY: (lambda u: u, {"client": "c009"}),
    Rejection.TAMPERED: (lambda u: u, {"signer": "0" * 64}),
}


@pytest.mark.parametrize("reason", SPOILT, ids=lambda reason: reason.name)
def test_a_bad_file_is_named_and_changes_nothing(
    reason: Rejection, four: Study, tmp_path: Path
) -> None:
    out, (spoil, header) = tmp_path / "merged", SPOILT[reason]
    merge(
        four.path,
        four.files[1:],
        out,
        Rules({} if reason is Rejection.TWICE else Trust.read([four.trusted]).keys),
    )
    before, bad = tree(tmp_path), four.forged(tmp_path / "bad.safetensors", spoil, **header)
    with pytest.raises(ContributionError) as caught:
        change(out, add=[bad])
    assert caught.value.reason is reason
    assert str(caught.value).startswith(f"{bad}: {reason.value}: ") and "\n" not in str(
        caught.value
    )
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
def test_other_tensors_than_the_plan_s(spoil: Any, four: Study, tmp_path: Path) -> None:
    bad = four.forged(tmp_path / "bad.safetensors", lambda u: replace(u, delta=spoil(u.delta)))
    with pytest.raises(ContributionError) as caught:
        merge(four.path, [*four.files[1:], bad], tmp_path / "merged", Rules())
    assert caught.value.reason is Rejection.TENSORS
    assert not (tmp_path / "merged").exists()


def test_files_that_are_cut_or_changed_or_no_files(four: Study, tmp_path: Path) -> None:
    whole, bad = four.files[0].read_bytes(), tmp_path / "bad.safetensors"
    flipped = bytearray(whole)
    flipped[-20] ^= 1
    for content, reason in (
        (whole[:-1], Rejection.DAMAGED),
        (whole + b"\0", Rejection.DAMAGED),
        (bytes(flipped), Rejection.TAMPERED),
        (b"", Rejection.DAMAGED),
        (b"\xff" * 100, Rejection.DAMAGED),
        (bytes(1 << 21), Rejection.LARGE),
    ):
        bad.write_bytes(content)
        with pytest.raises(ContributionError) as caught:
            four.read(bad)
        assert caught.value.reason is reason
    assert four.read(four.files[0]).header.client == "c000"
    assert list(load_tensors(four.files[0])[0]) == ["sealed"]


def test_unsigned_files_count_where_no_keys_are_asked_for(four: Study, tmp_path: Path) -> None:
    file, out = tmp_path / "c0.safetensors", tmp_path / "merged"
    said = fedpeft("contribute", four.path, "--client", 0, "--yes", "-o", file)
    assert said.exit_code == 0 and "unsigned" in said.output
    refused = fedpeft("merge", four.path, file, "-o", out, "--trust", four.trusted)
    assert refused.exit_code == 2 and f"{file}: unsigned: " in refused.output and not out.exists()
    assert fedpeft("merge", four.path, file, "-o", out).exit_code == 0
    assert equal(four.update(file).delta, four.update(four.files[0]).delta)


def test_a_key_signs_for_its_owner_only(four: Study, tmp_path: Path) -> None:
    bad = four.forged(tmp_path / "bad.safetensors", lambda u: u, client="c001")
    with pytest.raises(ContributionError, match="may sign for nobody else"):
        four.read(bad, Trust.read([four.trusted]))


def test_a_key_that_is_in_no_list(four: Study) -> None:
    listed = Trust.read([key.with_suffix(".pub") for key in four.keys[1:]])
    with pytest.raises(
        ContributionError, match="is none of the 3 keys that --trust names"
    ) as caught:
        four.read(four.files[0], listed)
    assert caught.value.reason is Rejection.UNKNOWN_KEY


@pytest.mark.parametrize(
    "header",
    [
        {"examples": 10**400},
        {"examples": 2**53 + 1},
        {"examples": 0},
        {"examples": -1},
        {"bytes": 10**400},
    ],
    ids=["huge", "above", "none", "fewer", "bytes"],
)
def test_counts_that_no_client_has(header: Mapping[str, int], four: Study, tmp_path: Path) -> None:
    bad, out = four.forged(tmp_path / "bad.safetensors", lambda u: u, **header), tmp_path / "merged"
    said = fedpeft("merge", four.path, bad, "-o", out)
    assert (
        said.exit_code == 2
        and f"{bad}: damaged or no contribution: its header" in said.output
        and not out.exists()
    )


def test_who_does_not_tell_its_examples_counts_as_the_plan_says(
    four: Study, tmp_path: Path
) -> None:
    heavy: Spoil = lambda u: replace(u, weight=1e9)
    bad = four.forged(tmp_path / "bad.safetensors", heavy, examples=None)
    with pytest.raises(ContributionError, match="does not tell how many examples") as caught:
        four.read(bad)
    assert caught.value.reason is Rejection.WEIGHT
    stage = "stages=[{name='local_dp',noise_multiplier=1.0}]"
    private = study(tmp_path, stage, "weighting=uniform", "delta=1e-3", "accountant=rdp")
    assert private.read(private.files[0]).weight == 1
    for spoil, header, words in (
        (heavy, {}, "should 1"),
        (lambda u: u, {"examples": 7}, "it tells how many"),
    ):
        with pytest.raises(ContributionError, match=words) as caught:
            private.read(private.forged(bad, spoil, **header))
        assert caught.value.reason is Rejection.WEIGHT


def test_the_rules_stay_with_the_merge(four: Study, tmp_path: Path) -> None:
    merge(
        four.path,
        four.files[:1],
        tmp_path / "a",
        Rules(max_norm=1e3, trust=Trust.read([four.trusted]).keys),
    )
    long = four.forged(tmp_path / "long", lambda u: replace(u, delta=scale(u.delta, 1e4)), number=1)
    with pytest.raises(ContributionError, match="at most 1000 is allowed"):
        change(tmp_path / "a", add=[long])
    with pytest.raises(RunError, match="at least 1"):
        Rules(norm_factor=0.5)


def test_rules_may_be_changed_with_what_they_are_for(four: Study, tmp_path: Path) -> None:
    out, rules = tmp_path / "merged", tmp_path / "merged" / "study" / "rules.json"
    merge(four.path, four.files[:2], out, Rules())
    long = four.forged(tmp_path / "long", lambda u: replace(u, delta=scale(u.delta, 1e4)), number=2)
    before = tree(out)
    # The latter by those that were there before.
    for given in ("--norm-factor=9", "--max-norm=1e-9"):
        said = fedpeft("merge", out, "--add", long, given)
        assert said.exit_code == 2 and "absurd norm" in said.output and tree(out) == before
    assert (
        fedpeft("merge", out, "--add", long, "--norm-factor=1e9", "--max-norm=1e8").exit_code == 0
    )
    assert json.loads(rules.read_text()) == {
        "trust": {},
        "norm_factor": 1e9,
        "max_norm": "100000000.0",
        "max_weight": None,
    }
    said = fedpeft("merge", out, "--norm-factor=10")
    assert said.exit_code == 2 and "--remove c002" in said.output
    assert json.loads(rules.read_text())["norm_factor"] == 1e9


def test_a_late_comer_brings_its_key(four: Study, tmp_path: Path) -> None:
    out, (first, second, third, _) = (
        tmp_path / "merged",
        (key.with_suffix(".pub") for key in four.keys),
    )
    assert fedpeft("merge", four.path, four.files[0], "-o", out, "--trust", first).exit_code == 0
    before = tree(out)
    for file, key in ((four.files[1], third), (tmp_path / "none", second)):
        assert fedpeft("merge", out, "--add", file, "--trust", key).exit_code != 0
        assert tree(out) == before
    assert fedpeft("merge", out, "--add", four.files[1], "--trust", second).exit_code == 0
    trusted = json.loads((out / "study" / "rules.json").read_text())["trust"]
    assert trusted == Trust.read([first, second]).keys
    refused = fedpeft("merge", out, "--add", four.files[2])
    assert refused.exit_code == 2 and "unknown key" in refused.output


def test_an_outlier_that_came_first_is_found_by_those_that_follow(
    four: Study, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    long = four.forged(tmp_path / "long", lambda u: replace(u, delta=scale(u.delta, 50)))
    # Alone it cannot be told, nor of two which is the wrong one.
    merge(four.path, [long], out, Rules())
    change(out, add=[four.files[1]])
    before = tree(out)
    with pytest.raises(
        ContributionError, match=r"'c000' was merged before: take it out \(--remove c000\)"
    ) as caught:
        change(out, add=[four.files[2]])
    assert caught.value.reason is Rejection.NORM and tree(out) == before
    with pytest.raises(ContributionError, match="ask the client"):
        merge(four.path, [long, *four.files[1:3]], tmp_path / "at-once", Rules())
    change(out, add=[four.files[2]], remove=["c000"])
    merge(four.path, four.files[1:3], tmp_path / "without", Rules())
    assert tree(out) == tree(tmp_path / "without")


def test_what_needs_the_contributors_examples_is_refused(four: Study, tmp_path: Path) -> None:
    """The plan has a partition of its own, whose clients are others."""
    out = tmp_path / "merged"
    merge(four.path, four.files, out, Rules())
    assert fedpeft("evaluate", out).exit_code == 0
    for command, words in (
        (("evaluate", out, "--per-client"), "leave out --per-client"),
        (("audit", out, "--pictures", 2, "--steps", 1), "Audit a simulation of the plan"),
    ):
        told = fedpeft(*command)
        assert told.exit_code == 2 and told.stdout == ""
        assert f"{out} was merged from files" in told.stderr and words in told.stderr


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
                content[at:at] = draw.choice(
                    (b'"', b"{", b"[" * 2000, b"null", b"1e999", b"\\ud800", b"9" * 5000)
                )
            case 5:
                content[:8] = draw.choice((head - 7, 1 << 63, 0, len(content))).to_bytes(
                    8, "little"
                )
        content = content or bytearray(b"\0")
    return bytes(content)


@pytest.mark.parametrize("count", counts(1_000, 100_000))
def test_mutated_files(four: Study, count: int) -> None:
    """Mutated files: each is refused with its name, whatever was changed, and no module is loaded
    by reading it."""
    invitation, key, draw = four.invitation, sealing_key(server_key(four.path)), Random(7)
    whole, other = (file.read_bytes() for file in four.files[:2])
    open_contribution(whole, "whole", invitation, key, Trust())
    loaded = set(sys.modules)
    for number in range(count):
        content = mutated(whole, other, draw)
        if content == whole:
            continue
        with pytest.raises(ContributionError):
            open_contribution(content, f"mutant {number}", invitation, key, Trust())
    assert set(sys.modules) == loaded


ABSURD: Sequence[Any] = (
    *(
        10**400,
        -(10**400),
        2**53,
        2**53 + 1,
        2**64,
        0,
        -1,
        1.5,
        1e308,
        True,
        None,
        [],
        {},
        [[]],
        {"a": 10**400},
    ),
    *("", "x", "\ud800", "\0", "9" * 5000, "0" * 64, "-0" * 32, "é" * 32, "fedpeft-contribution-0"),
)


def test_an_empty_list_of_what_is_read_otherwise_is_no_second_way_to_say_nothing(
    four: Study,
) -> None:
    said = replace(four.read(four.files[0]).header, reads=[])
    with pytest.raises(ContributionError, match="an empty list"):
        read_header(said.text(), "a file")


@pytest.mark.parametrize("count", counts(300, 30_000))
def test_mutated_frames_that_are_sealed_and_signed(count: int, four: Study, tmp_path: Path) -> None:
    """A client with a good key may still send anything."""
    one, study, draw = four.read(four.files[0]), four.invitation, Random(8)
    key, signer = sealing_key(server_key(four.path)), signing_key(four.keys[0])
    for number in range(count):
        frame, said = one.frame, one.header
        if number % 2:
            said = replace(said, **{draw.choice(fields(Header)).name: draw.choice(ABSURD)})
        else:
            frame = mutated(one.frame, one.frame[::-1], draw)
            said = replace(said, bytes=len(frame))
        content = write_contribution(said, frame, study.terms.server, signer)
        try:
            open_contribution(content, "mutant", study, key, Trust())
        except ContributionError:
            continue
        assert (frame, replace(said, client="c000", privacy=None)) == (one.frame, one.header)


def test_owners_are_not_asked_by_files_and_the_message_says_what_to_do(tmp_path: Path) -> None:
    plan = read_plan({"rounds": 1, "evaluate_at": ["owners"]})
    with pytest.raises(PlanError, match=r'Set evaluate_at = \["server"\] here, .* --start MERGED'):
        invite(plan, tmp_path / "study")
