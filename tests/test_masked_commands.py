"""Masked files through the commands, as docs/guide/one-shot.md has them."""

from pathlib import Path

import pytest
import torch
from masked_studies import MASKING, OWNERS, keyed
from running import PLAN, fedpeft

from fedpeft.core.types import Tensors
from fedpeft.storage.files import load_tensors

DIGITS = ("weighting=uniform", "cohort=3", "partition.clients=3", "local.epochs=1", "method=head")


def params(folder: Path) -> Tensors:
    return load_tensors(folder / "checkpoint" / "state.safetensors")[0]


def said(*arguments: str | int | Path) -> str:
    """What a command writes, which must succeed."""
    told = fedpeft(*arguments)
    assert told.exit_code == 0, told.output
    return told.output


def invite_digits(root: Path) -> None:
    """A study of masked files at `root/masked`, after all joined, and one in the open."""
    small = [flag for one in DIGITS for flag in ("--set", one)]
    masks = ("--set", "exchange={name='secure',threshold=3}")
    told = said("invite", "-o", root / "open", *small, *masks)
    assert "each owner: fedpeft join open --name NAME" in told
    lines = [root / f"{owner}.join" for owner in OWNERS[:3]]
    for owner, line in zip(OWNERS, lines, strict=False):
        flags = ("--name", owner, "-o", line, "--memory", root / "memory")
        said("join", root / "open", *flags)
    said("roster", root / "open", *lines, "-o", root / "masked")
    said("invite", "-o", root / "plain", *small)


def merged(root: Path, kind: str) -> Tensors:
    """The model of three files of the study of that kind."""
    files = [root / f"{kind}{number}" for number in range(3)]
    for number, file in enumerate(files):
        flags = ("--client", number, "-o", file, "--memory", root / "memory")
        said("contribute", "--yes", root / kind, *flags)
    said("merge", root / kind, *files, "-o", root / f"{kind}-merged", "--evaluate")
    return params(root / f"{kind}-merged")


@pytest.mark.slow
def test_digits_of_three_owners_masked_and_in_the_open(tmp_path: Path) -> None:
    invite_digits(tmp_path)
    ours, theirs = (merged(tmp_path, kind) for kind in ("masked", "plain"))
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        assert torch.allclose(x, theirs[name], atol=1e-6), name
    memory = ("--memory", tmp_path / "memory")
    told = said(
        "contribute", "--yes", tmp_path / "masked", "--client", 1, *memory, "-o", tmp_path / "b"
    )
    assert "made for this study before, byte for byte" in told
    assert (tmp_path / "b").read_bytes() == (tmp_path / "masked1").read_bytes()
    told = refused("withdraw", tmp_path / "masked", "--name", "c001", *memory, "-o", tmp_path / "c")
    assert "Two different files under one mask reveal their difference" in told


def refused(*arguments: str | int | Path) -> str:
    """What a command says that must not succeed."""
    told = fedpeft(*arguments)
    assert told.exit_code == 2, told.output
    return told.stderr


def joined_blobs(root: Path, memory: tuple[str, Path]) -> Path:
    """The folder of a study of points that four owners joined, with its roster."""
    plan = root / "plan.toml"
    plan.write_text(PLAN)
    sets = [flag for one in MASKING for flag in ("--set", one)]
    told = said("invite", plan, "-o", root / "open", *sets)
    assert "then you: fedpeft roster open *.join -o NEW" in told
    lines = [root / f"{owner}.join" for owner in OWNERS]
    for owner, line in zip(OWNERS, lines, strict=True):
        told = said("join", root / "open", "--name", owner, *memory, "-o", line)
        assert f"{owner} joins with the key " in told
    told = refused("join", root / "open", "--name", "c000", *memory, "-o", lines[0])
    assert "is there already" in told
    told = refused("contribute", "--yes", root / "open", "--client", 0, *memory, "-o", root / "x")
    assert "has no roster: give the server what" in told
    told = said("roster", root / "open", *lines, "-o", root / "study")
    assert "(for c000, c001, c002, c003)" in told
    return root / "study"


def test_four_owners_of_whom_one_withdraws(tmp_path: Path) -> None:
    memory, merged_at = ("--memory", tmp_path / "memory"), tmp_path / "merged"
    study = joined_blobs(tmp_path, memory)
    files = [tmp_path / f"{owner}.safetensors" for owner in OWNERS]
    for number, file in enumerate(files[:3]):
        told = said("contribute", "--yes", study, "--client", number, *memory, "-o", file)
        assert "as the server says: without exchange.keys it may have made them up" in told
    told = refused("merge", study, *files[:3], "-o", merged_at)
    assert "the files of c003 are missing" in told
    told = said("withdraw", study, "--name", "c003", *memory, "-o", files[3])
    assert "c003 adds nothing to the sum" in told
    told = said("merge", study, *files, "-o", merged_at)
    assert "4 contributions merged" in told
    assert "as their owners withdrew: 1" in told
    assert "none can be added or taken out" in refused("merge", merged_at, "--remove", "c003")


def test_signed_owners_through_the_commands(tmp_path: Path) -> None:
    made = keyed(tmp_path, OWNERS[:3])
    for number, owner in enumerate(OWNERS[:3]):
        told = fedpeft(
            *(
                "contribute",
                "--yes",
                made.path,
                "--client",
                number,
                "--key",
                tmp_path / f"{owner}.key",
            ),
            *("--memory", made.memory(owner), "-o", made.file(owner)),
        )
        assert told.exit_code == 0, told.output
        assert "masked for 3 owners, each by a key that the plan has" in told.stderr
    told = fedpeft("merge", made.path, *made.files, "-o", tmp_path / "merged")
    assert told.exit_code == 0 and "3 contributions merged" in told.stdout
    told = fedpeft("evaluate", tmp_path / "merged")
    assert told.exit_code == 0
