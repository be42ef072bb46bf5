"""Masked files of a whole roster are the sum of the updates; fewer of them are noise."""

import json
import stat
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import torch
from contributions import PARTS, change, killed_before, merge, tree
from masked_studies import (
    MASKING,
    OWNERS,
    WIDE,
    MaskedStudy,
    gathered,
    invited,
    joined,
    looks_uniform,
    masked_study,
    masking_plan,
    own_updates,
)
from rounds import on
from running import PLAN, fedpeft

from fedpeft.core.tensors import equal
from fedpeft.core.types import Tensors
from fedpeft.errors import PlanError, RunError
from fedpeft.exchanges.secure.masked_files import MaskedFiles
from fedpeft.oneshot.contribute import Contributor, from_partition
from fedpeft.oneshot.contribution import write_signed
from fedpeft.oneshot.invitation import invite, read_invitation
from fedpeft.oneshot.joining import join_owner, make_roster, withdraw
from fedpeft.oneshot.one_file import masked
from fedpeft.oneshot.rejections import ContributionError, Rejection
from fedpeft.oneshot.rules import Rules
from fedpeft.oneshot.seat import take_seat
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import open_site
from fedpeft.runs.execute import open_engine
from fedpeft.runs.folder import RunFolder, read_json
from fedpeft.storage.client_memory import Folder
from fedpeft.storage.files import load_tensors


@pytest.fixture(scope="module")
def four_masked(tmp_path_factory: pytest.TempPathFactory) -> MaskedStudy:
    """A study whose four owners have handed in, which no test changes."""
    return masked_study(tmp_path_factory.mktemp("masked"))


def params(folder: Path) -> Tensors:
    return load_tensors(folder / "checkpoint" / "state.safetensors")[0]


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_all_masked_files_are_the_secure_run_of_one_round_to_the_bit(
    weighting: str, tmp_path: Path
) -> None:
    most = "" if weighting == "uniform" else ",max_weight=100"
    settings = [f"weighting={weighting}", f"exchange={{name='secure',threshold=3{most}}}"]
    made = masked_study(tmp_path, OWNERS, *settings)
    merge(made.path, made.files, tmp_path / "merged", Rules())
    (tmp_path / "plan.toml").write_text(PLAN)
    flags = [flag for one in (*MASKING, *settings) for flag in ("--set", one)]
    out = tmp_path / "run"
    assert fedpeft("run", tmp_path / "plan.toml", *flags, "--out", out, "--quiet").exit_code == 0
    assert equal(params(tmp_path / "merged"), params(out))


def test_the_masked_mean_is_the_open_one_to_the_precision_of_a_step(
    four_masked: MaskedStudy, tmp_path: Path
) -> None:
    made, updates = four_masked, own_updates(replaced_root(four_masked, tmp_path))
    merge(made.path, made.files, tmp_path / "merged", Rules())
    merge(tmp_path / "plain" / "study", plain_files(tmp_path), tmp_path / "open", Rules())
    ours, theirs = params(tmp_path / "merged"), params(tmp_path / "open")
    # four updates of at most 8 in 32 bits: 4 * (8 * 2^f + 1/2) < 2^31, so f = 25
    step = 2.0**-25
    moved = max(float(x.abs().max()) for u in updates.values() for x in u.delta.values())
    for name, x in ours.items():
        apart = float((x.double() - theirs[name].double()).abs().max())
        assert apart <= step + 4 * 2.0**-24 * max(1.0, float(x.abs().max()))
    assert moved > 1000 * step and not equal(ours, theirs)


def replaced_root(study: MaskedStudy, root: Path) -> MaskedStudy:
    return MaskedStudy(root, study.open, study.path, study.owners)


def plain_files(root: Path) -> list[Path]:
    return sorted((root / "plain").glob("c00*.safetensors"))


def test_the_numbers_of_a_file_are_noise_and_those_of_all_are_the_sum(tmp_path: Path) -> None:
    made = masked_study(tmp_path, OWNERS, *WIDE)
    updates = own_updates(made, *WIDE)
    plain = {owner: made.plain(update) for owner, update in updates.items()}
    seen = {owner: made.integers(made.file(owner)) for owner in made.owners}
    total = reduce(np.add, seen.values())
    assert (total == reduce(np.add, plain.values())).all()
    for few in (OWNERS[:1], OWNERS[:2], OWNERS[:3]):
        noise = reduce(np.add, (seen[owner] for owner in few))
        update = reduce(np.add, (plain[owner] for owner in few))
        assert looks_uniform(noise) and looks_uniform(noise - update)
        assert not looks_uniform(update)
    assert not looks_uniform(total)


def test_a_file_that_is_missing_is_named_and_nothing_is_merged(
    four_masked: MaskedStudy, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=r"the files of c001, c003 are missing.*fedpeft withdraw"):
        merge(
            four_masked.path,
            [four_masked.file("c000"), four_masked.file("c002")],
            tmp_path / "merged",
            Rules(),
        )
    assert not (tmp_path / "merged").exists()


def test_a_file_that_came_twice_or_is_foreign_or_changed_is_named(
    four_masked: MaskedStudy, tmp_path: Path
) -> None:
    made, out = four_masked, tmp_path / "merged"
    other = masked_study(tmp_path)
    bad = tmp_path / "bad.safetensors"
    content = bytearray(made.file("c001").read_bytes())
    content[-1] ^= 1
    bad.write_bytes(content)
    for files, reason in (
        ([*made.files, made.file("c000")], Rejection.TWICE),
        ([*made.files[:3], other.file("c003")], Rejection.STUDY),
        ([made.file("c000"), bad, *made.files[2:]], Rejection.TAMPERED),
    ):
        with pytest.raises(ContributionError) as caught:
            merge(made.path, files, out, Rules())
        assert caught.value.reason is reason and not out.exists()


def test_who_is_not_in_the_roster_is_refused_by_name(
    four_masked: MaskedStudy, tmp_path: Path
) -> None:
    """An outsider who has the folder, and says what a file of it must say."""
    study = four_masked.invitation
    frame = four_masked.read(four_masked.file("c000")).frame
    out = tmp_path / "outsider.safetensors"
    out.write_bytes(write_signed(study.terms, "mallory", frame, None)[1])
    with pytest.raises(ContributionError, match="'mallory' is not in the roster") as caught:
        merge(four_masked.path, [*four_masked.files, out], tmp_path / "merged", Rules())
    assert caught.value.reason is Rejection.FOREIGN


def test_other_numbers_than_the_plan_has_are_refused(
    four_masked: MaskedStudy, tmp_path: Path
) -> None:
    study, owner = four_masked.invitation, "c000"
    frame = four_masked.read(four_masked.file(owner)).frame
    out = tmp_path / "bad.safetensors"
    for content, examples in ((frame[:-4], None), (frame, 17)):
        out.write_bytes(write_signed(study.terms, owner, content, None, examples)[1])
        with pytest.raises(ContributionError) as caught:
            four_masked.read(out)
        assert caught.value.reason is Rejection.TENSORS


def test_nothing_is_added_to_a_masked_sum_or_taken_out(
    four_masked: MaskedStudy, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    merge(four_masked.path, four_masked.files, out, Rules())
    before = tree(out)
    for add, remove in (([four_masked.files[0]], []), ([], ["c000"])):
        with pytest.raises(RunError, match="none can be added or taken out"):
            change(out, add, remove)
    assert tree(out) == before
    change(out, evaluate=True)
    arrivals = (read_json(out / "arrivals.json") or {})["arrivals"]
    assert [one["client"] for one in arrivals] == [None, "(all)"]


@pytest.mark.parametrize(
    "rules", [Rules(norm_factor=5.0), Rules(max_norm=1.0), Rules(max_weight=10.0)]
)
def test_what_needs_single_updates_cannot_be_asked_of_a_merge(
    rules: Rules, four_masked: MaskedStudy, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="Owners hold themselves to"):
        merge(four_masked.path, four_masked.files, tmp_path / "merged", rules)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["aggregator=median"], "Median compares the clients' updates"),
        (["uplink=int8"], "only a lossless codec"),
        (["admission.norm_factor=10"], "cannot be seen in a sum"),
        (["exchange={name='masked_files',least=2}"], "least must be at least 3, got 2"),
        (["exchange={name='masked_files',bits=16}"], "bits must be 32 or 64"),
        (["exchange={name='masked_files',limit=1e9}"], "cannot hold 4 updates"),
        (["exchange=masked_files", "weighting=examples"], "set exchange.max_weight"),
        (["exchange={name='masked_files',keys=['x']}"], "this is no public key"),
    ],
)
def test_plans_that_do_not_go_with_masks(settings: list[str], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        masking_plan(*settings)


def test_the_threshold_of_a_secure_plan_is_the_least_number_of_owners() -> None:
    keys = [f"ed25519:{number:064x} c{number}" for number in range(4)]
    plan = masking_plan(
        f"exchange={{name='secure',threshold=4,limit=2.0,max_norm=3.0,bits=64,keys={keys}}}"
    )
    exchange = masked(plan).exchange
    assert exchange == MaskedFiles(4, 2.0, 3.0, 1, 64, tuple(keys))
    assert masked(masked(plan)) == masked(plan)


def test_a_run_over_a_connection_is_refused_with_what_to_set(tmp_path: Path) -> None:
    site = open_site(masking_plan("exchange=masked_files"))
    with pytest.raises(PlanError, match='set exchange = "secure"'):
        open_engine(RunFolder(tmp_path), site)


def test_who_has_no_roster_masks_nothing_and_sends_nothing(tmp_path: Path) -> None:
    """Without a roster in its store a worker fails: it must not fall back to the open."""
    plan = masking_plan("exchange=masked_files")
    site = open_site(plan)
    _, ledger = next(federate(plan, on(site, plan, Folder(tmp_path)), start(plan, site.params())))
    assert len(ledger.failed) == 4 and not any(ledger.up.values())
    assert all("is for `fedpeft contribute`" in words for words in ledger.failed.values())


def test_local_privacy_goes_with_masks(tmp_path: Path) -> None:
    noise = "stages=[{name='local_dp',noise_multiplier=0.1}]"
    made = masked_study(tmp_path, OWNERS, noise, "delta=1e-3", "accountant=rdp")
    assert made.read(made.file("c000")).header.privacy is not None
    merge(made.path, made.files, tmp_path / "merged", Rules())
    again = made.file("c001").read_bytes()
    assert made.hand_in("c001").read_bytes() == again


def test_an_update_out_of_bounds_is_not_sent(tmp_path: Path) -> None:
    made = gathered(tmp_path, OWNERS, ["exchange={name='secure',threshold=3,limit=1e-4}"])
    with pytest.raises(RunError, match=r"changed by more .*exchange\.limit is 0\.0001"):
        made.hand_in("c000")
    assert (made.memory("c000") / "joined").glob("*/*/sent").__next__ is not None
    assert not list(made.memory("c000").glob("joined/*/*/sent"))


def test_who_withdraws_lets_the_others_count(tmp_path: Path) -> None:
    made = gathered(tmp_path)
    for owner in OWNERS[:3]:
        made.hand_in(owner)
    file = made.file("c003")
    file.write_bytes(withdraw(made.invitation, "c003", made.memory("c003")))
    summary = merge(made.path, made.files, tmp_path / "merged", Rules())
    assert summary["updates"] == 3 and summary["clients"] == 4
    # the files of three by themselves, in a roster of their own, are the same mean
    three = masked_study(tmp_path / "three", OWNERS[:3])
    merge(three.path, three.files, tmp_path / "other", Rules())
    ours, theirs = params(tmp_path / "merged"), params(tmp_path / "other")
    assert all(torch.allclose(x, theirs[name], atol=1e-6) for name, x in ours.items())
    # it has made its one file
    with pytest.raises(RunError, match="which adds nothing"):
        made.hand_in("c003")
    assert withdraw(made.invitation, "c003", made.memory("c003")) == file.read_bytes()
    with pytest.raises(RunError, match="of other examples"):
        withdraw(made.invitation, "c000", made.memory("c000"))


def test_of_too_few_updates_no_model_is_made(tmp_path: Path) -> None:
    made = gathered(tmp_path)
    for owner in OWNERS[:2]:
        made.hand_in(owner)
    for owner in OWNERS[2:]:
        made.file(owner).write_bytes(withdraw(made.invitation, owner, made.memory(owner)))
    with pytest.raises(RunError, match=r"add up to 2 updates, and exchange.least is 3 of 4"):
        merge(made.path, made.files, tmp_path / "merged", Rules())
    assert not (tmp_path / "merged").exists()


def test_a_second_file_is_the_first_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = gathered(tmp_path)
    first = made.hand_in("c000").read_bytes()
    made.file("c000").unlink()
    assert made.hand_in("c000").read_bytes() == first
    # other examples: those of the second client, under the first one's name
    study = made.invitation
    other = Contributor(from_partition(study, 1).site, "c001")
    seat = take_seat(made.memory("c000"), study, "c000")
    with pytest.raises(RunError, match="Two different files under one mask reveal their diff"):
        seat.find_made(other)
    with pytest.raises(RunError, match="Two different files under one mask"):
        seat.keep(other, b"another file")
    assert seat.keep(Contributor(other.site, "c000"), b"a later process's") == first


def test_a_kill_at_any_write_leaves_no_file_or_the_one(tmp_path: Path) -> None:
    made, moment, seen = gathered(tmp_path), 0, set[bytes]()
    events = ("open", "os.rename", "os.remove")
    while killed_before(moment, "sent", events, lambda: made.hand_in("c000")):
        for sent in made.memory("c000").glob("joined/*/*/sent"):
            seen.add(sent.read_bytes())
        moment += 1
    assert moment >= 2
    made.hand_in("c000")
    [sent] = made.memory("c000").glob("joined/*/*/sent")
    assert seen <= {sent.read_bytes()} and sent.read_bytes().endswith(
        made.file("c000").read_bytes()
    )


def test_what_an_owner_keeps_is_its_own(tmp_path: Path) -> None:
    made = gathered(tmp_path)
    made.hand_in("c000")
    for path in made.memory("c000").glob("joined/**/*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path
    [secret] = made.memory("c000").glob("joined/*/secret")
    assert secret.stat().st_size == 32


def test_joining_twice_gives_the_same_line(tmp_path: Path) -> None:
    open_ = invited(tmp_path)
    [first] = joined(tmp_path, open_, OWNERS[:1])
    text = first.read_text()
    [again] = joined(tmp_path, open_, OWNERS[:1])
    assert again.read_text() == text
    values = json.loads(text)
    assert values["client"] == "c000" and len(values["key"]) == 64 and values["signature"] == ""


def test_a_study_in_the_open_has_no_roster(tmp_path: Path) -> None:
    invite(read_plan(PLAN, ["rounds=1", "cohort=4"]), tmp_path / "study")
    study = read_invitation(tmp_path / "study", PARTS)
    with pytest.raises(RunError, match="its files are in the open"):
        join_owner(study, "c000", tmp_path / "memory")
    with pytest.raises(RunError, match="its files are in the open"):
        make_roster(study, [], tmp_path / "new")
    with pytest.raises(RunError, match="sends nothing"):
        withdraw(study, "c000", tmp_path / "memory")


def test_a_roster_is_made_once(four_masked: MaskedStudy, tmp_path: Path) -> None:
    files = [four_masked.root / f"{owner}.join" for owner in OWNERS]
    with pytest.raises(RunError, match="has its roster already"):
        make_roster(four_masked.invitation, files, tmp_path / "new")
    with pytest.raises(RunError, match="is there already"):
        make_roster(read_invitation(four_masked.open, PARTS), files, four_masked.path)
