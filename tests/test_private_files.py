"""Files that are their owner's alone, and what stands in the way where one is to be."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from contributions import PARTS, Study, change, merge
from running import fedpeft

from fedpeft.core.secrets import secret_at
from fedpeft.core.types import Job
from fedpeft.deploy.terms import token_at
from fedpeft.errors import RunError
from fedpeft.oneshot.contribution import Contribution
from fedpeft.oneshot.invitation import read_invitation, server_key
from fedpeft.oneshot.keys import Trust, make_signing_key, signing_key
from fedpeft.oneshot.rejections import ContributionError
from fedpeft.oneshot.replace_folder import replace_when_built
from fedpeft.oneshot.rules import Rules
from fedpeft.runs.folder import RunFolder, lock_run, read_json
from fedpeft.storage.client_memory import Folder
from fedpeft.storage.files import (
    dump_tensors,
    load_tensors,
    lock_file,
    open_regular,
    write_atomically,
)

posix = pytest.mark.skipif(os.name != "posix", reason="modes, links and pipes of POSIX")


@pytest.fixture(autouse=True)
def open_to_all() -> Iterator[None]:
    """A user whose files everybody may read and write, unless they are made otherwise."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def below(path: Path) -> dict[str, int]:
    return {str(inside.relative_to(path)): mode(inside) for inside in path.rglob("*")}


@posix
def test_what_a_client_remembers_is_its_own(tmp_path: Path) -> None:
    store, job = Folder(tmp_path / "clients"), Job("run", 3, "c000", "fit", 1, None, b"")
    store.save(job, {"left": torch.ones(2)}, b"reply")
    store.keep("c000", b"an update that waits to be masked")
    store.secret("c000")
    own = store.place("c000").name
    assert mode(tmp_path / "clients") == 0o700
    assert below(tmp_path / "clients") == {
        own: 0o700,
        f"{own}/3.safetensors": 0o600,
        f"{own}/note": 0o600,
        "secret": 0o600,
    }


@posix
def test_a_folder_of_an_earlier_version_is_closed(tmp_path: Path) -> None:
    (tmp_path / "clients").mkdir(mode=0o755)
    Folder(tmp_path / "clients").keep("c000", b"note")
    assert mode(tmp_path / "clients") == 0o700


@posix
def test_secrets_tokens_keys_and_contributions(four: Study, tmp_path: Path) -> None:
    secret_at(tmp_path / "new" / "secret")
    token_at(RunFolder(tmp_path))
    private, public = make_signing_key("north", tmp_path)
    assert [mode(tmp_path / name) for name in ("new", "new/secret", "token")] == [
        0o700,
        0o600,
        0o600,
    ]
    assert (mode(private), mode(public)) == (0o600, 0o666)
    out = tmp_path / "c0.safetensors"
    assert fedpeft("contribute", four.path, "--client", 0, "--yes", "-o", out).exit_code == 0
    assert mode(out) == 0o600
    merge(four.path, four.files, tmp_path / "merged", Rules())
    kept = below(tmp_path / "merged")
    assert kept["contributions"] == 0o700 and kept["study/server.key"] == 0o600
    files = [each for name, each in kept.items() if name.startswith("contributions/")]
    assert files == [0o600] * 4


@posix
def test_a_link_in_the_place_of_what_is_written_meanwhile(tmp_path: Path) -> None:
    victim, file = tmp_path / "victim", tmp_path / "file"
    victim.write_text("precious")
    (tmp_path / ".file.part").symlink_to(victim)
    write_atomically(file, b"content")
    assert (victim.read_text(), file.read_bytes()) == ("precious", b"content")
    file.unlink()
    file.symlink_to(victim)
    write_atomically(file, b"content")
    assert victim.read_text() == "precious" and not file.is_symlink()


@posix
def test_a_link_in_the_place_of_a_lock(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(victim)
    with pytest.raises(RunError, match=r"\.lock is a link"), lock_run(RunFolder(tmp_path / "run")):
        pass
    assert victim.read_text() == "precious"
    (tmp_path / "run" / ".lock").unlink()
    (tmp_path / "run" / ".lock").write_text("as it was")
    with lock_run(RunFolder(tmp_path / "run")):
        assert (tmp_path / "run" / ".lock").read_text() == "as it was"


@posix
def test_a_lock_of_a_folder_that_was_exchanged_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the opening of the lock and its taking another process put a new folder there."""
    (tmp_path / "run").mkdir()
    fcntl = pytest.importorskip("fcntl")
    take = fcntl.flock

    def late(*given: object) -> None:
        (tmp_path / "run").rename(tmp_path / "old")
        (tmp_path / "run").mkdir()
        lock_file(tmp_path / "run" / ".lock").close()
        take(*given)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(RunError, match="replaced just now"), lock_run(RunFolder(tmp_path / "run")):
        pass


@posix
@pytest.mark.timeout(20)
def test_a_pipe_is_not_waited_for(four: Study, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for read in (open_regular, load_tensors, read_json, signing_key):
        with pytest.raises(RunError, match=r"pipe is no regular file"):
            read(pipe)
    with pytest.raises(RunError, match="no regular file"):
        Trust.read([pipe])
    with pytest.raises(RunError, match="no regular file"):
        lock_file(pipe)
    with pytest.raises(ContributionError, match=r"damaged or no contribution: .*no regular file"):
        four.read(pipe)
    said = fedpeft("merge", four.path, four.files[0], pipe, "-o", tmp_path / "merged")
    assert said.exit_code == 2 and "no regular file" in said.output
    (tmp_path / "study").mkdir()
    os.mkfifo(tmp_path / "study" / "invitation.json")
    with pytest.raises(RunError, match="no regular file"):
        read_invitation(tmp_path / "study")


def test_a_folder_is_no_contribution(four: Study, tmp_path: Path) -> None:
    with pytest.raises(ContributionError, match="no regular file but a folder"):
        four.read(tmp_path)


def test_of_two_merges_into_one_new_folder_the_later_is_refused(
    four: Study, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    with (
        pytest.raises(RunError, match=r"merged came to be while this one was made .*--add"),
        replace_when_built(out, new=True) as folder,
    ):
        (folder / "late").touch()
        merge(four.path, four.files[:2], out, Rules())
    assert not (out / "late").exists() and (out / "summary.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    change(out, add=four.files[2:])
    assert json.loads((out / "summary.json").read_text())["clients"] == 4


def test_a_new_folder_takes_the_place_of_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with replace_when_built(tmp_path / "out", new=True) as folder:
        (folder / "file").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]


def test_no_message_shows_what_a_key_holds(four: Study, tmp_path: Path) -> None:
    private, public = make_signing_key("north", tmp_path)
    hidden = private.read_text().strip()
    shown = public.read_text().split()[0].removeprefix("ed25519:")
    half = tmp_path / "half.key"
    half.write_text(hidden[:62])
    (tmp_path / "both").write_text(f"{hidden} north\n")
    for options in (
        ["merge", four.path, four.files[0], "-o", tmp_path / "m", "--trust", private],
        ["merge", four.path, four.files[0], "-o", tmp_path / "m", "--trust", tmp_path / "both"],
        ["contribute", four.path, "--client", 0, "-o", tmp_path / "c", "--key", tmp_path / "both"],
        ["contribute", four.path, "--client", 0, "-o", tmp_path / "c", "--key", public],
        ["contribute", four.path, "--client", 0, "-o", tmp_path / "c", "--key", half],
    ):
        said = fedpeft(*options)  # type: ignore[arg-type]
        assert said.exit_code == 2 and not (tmp_path / "m").exists()
        for text in (hidden, hidden[:62], shown):
            assert not any(text[at : at + 12] in said.output for at in range(len(text) - 11))
    assert "the private" in fedpeft("merge", four.path, "f", "-o", "m", "--trust", private).output


def test_a_large_invitation_is_not_read(four: Study, tmp_path: Path) -> None:
    for name in ("invitation.json", "plan.toml"):
        folder = tmp_path / name
        folder.mkdir()
        for file in ("invitation.json", "plan.toml"):
            (folder / file).write_bytes((four.path / file).read_bytes())
        (folder / name).write_bytes(b" " * ((1 << 20) + 1))
        with pytest.raises(RunError, match="1048577 bytes, and at most 1048576 are read"):
            read_invitation(folder, PARTS)
    assert isinstance(four.read(four.files[0]), Contribution)
    assert server_key(four.path).is_file()


def test_a_tensor_file_comes_back(tmp_path: Path) -> None:
    dump_tensors(tmp_path / "x", {"a": torch.ones(2)}, {"b": "c"}, private=True)
    assert load_tensors(tmp_path / "x")[1] == {"b": "c"}
