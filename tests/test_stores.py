"""Clients' memory in files: whole or not there, and nobody else's."""

import os
from pathlib import Path

import pytest
import torch

from fedpeft.core.tensors import equal
from fedpeft.core.types import Job
from fedpeft.errors import RunError
from fedpeft.storage.client_memory import Folder
from fedpeft.storage.files import (
    AHEAD,
    StoreError,
    ahead,
    check_writable,
    disk_errors,
    dump_tensors,
    load_tensors,
    write_atomically,
)


def job(client: str, run: str = "run") -> Job:
    return Job(run, 0, client, "fit", 1, None, b"")


NAMES = [
    "a",
    "A",
    "..",
    ".",
    "",
    "a/b",
    "a b",
    "a_b",
    "/",
    "con",
    "é",
    "e\u0301",
    "x" * 300,
    "x" * 301,
    "c000",
]


def test_every_name_has_a_folder_of_its_own_inside(tmp_path: Path) -> None:
    places = [Folder(tmp_path).place(name) for name in NAMES]
    assert len({place.name.lower() for place in places}) == len(NAMES)
    assert all(
        place.parent == tmp_path and len(place.name) <= 49 and place.name.isascii()
        for place in places
    )
    assert not any("." in place.name for place in places)
    assert Folder(tmp_path).place("c000").name.startswith("c000-")


def test_what_is_kept_of_each_client_comes_back(tmp_path: Path) -> None:
    store = Folder(tmp_path / "clients")
    for k, name in enumerate(NAMES):
        store.save(job(name), {"x": torch.tensor([float(k)])}, bytes([k]))
    assert [path.name for path in tmp_path.iterdir()] == ["clients"]
    for k, name in enumerate(NAMES):
        assert equal(store.load(name, 0), {"x": torch.tensor([float(k)])})
        assert store.reply(job(name)) == bytes([k])
        assert store.reply(job(name, "another")) is None
        assert store.load(name, None) == {} == store.load(name, 1)


def test_another_clients_memory_is_refused(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    store.save(job("a"), {"x": torch.ones(1)}, b"reply")
    store.place("a").rename(store.place("b"))
    with pytest.raises(RunError, match="is the memory of 'a', not of 'b'"):
        store.load("b", 0)
    with pytest.raises(RunError, match="is the memory of 'a', not of 'b'"):
        store.reply(job("b"))


def test_a_damaged_memory_is_an_error_of_the_run(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    store.save(job("a"), {"x": torch.ones(1)}, b"reply")
    (file,) = store.place("a").iterdir()
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(RunError, match="cannot be read"):
        store.load("a", 0)


def test_a_place_that_cannot_be_used_is_an_error_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "clients").write_text("a file in the way")
    with pytest.raises(StoreError) as caught, disk_errors():
        Folder(tmp_path / "clients").save(job("a"), {"x": torch.ones(1)}, b"reply")
    cause = caught.value.__cause__
    assert (
        isinstance(cause, OSError)
        and str(caught.value) == str(cause)
        and caught.value.errno == cause.errno
    )


def test_a_full_disk_leaves_the_old_file_and_no_part_of_the_new(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # Windows has no limits of files
    file = tmp_path / "file"
    write_atomically(file, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_atomically(file, bytes(1001))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(file)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file.read_bytes() == b"old"


def test_files_are_asked_for_ahead_and_a_pipe_is_left_to_its_reader(tmp_path: Path) -> None:
    files = [tmp_path / str(k) for k in range(12)]
    for file in files:
        file.write_bytes(file.name.encode())
    files[5].unlink()
    files[7].unlink()
    os.mkfifo(files[7])  # opening it would wait for a writer
    assert list(ahead(files)) == files and list(ahead([])) == []


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system cannot be asked")
def test_each_file_is_asked_for_once_and_before_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, asked = [tmp_path / str(k) for k in range(12)], list[str]()
    for file in files:
        file.write_bytes(b"content")

    def advise(number: int, *_: int) -> None:
        asked.append(os.path.basename(os.readlink(f"/proc/self/fd/{number}")))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    for number, file in enumerate(ahead(files)):
        assert not number or file.name in asked
        assert len(asked) == min(number + AHEAD, 11)
    assert asked == [str(k) for k in range(1, 12)]


def test_equal_tensors_give_equal_files(tmp_path: Path) -> None:
    """The library draws the order of metadata anew for each file."""
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, 2, dtype=torch.bfloat16)}
    metadata = {f"key {k} é": str(k) for k in range(20)}
    for k in range(4):
        dump_tensors(tmp_path / f"{k}.safetensors", tensors, dict(metadata))
    files = {path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    assert len(files) == 1
    found, told = load_tensors(tmp_path / "0.safetensors")
    assert equal(found, tensors) and told == metadata
    dump_tensors(tmp_path / "none.safetensors", {}, {})
    assert load_tensors(tmp_path / "none.safetensors") == ({}, {})


def test_what_cannot_be_made_is_told_before_the_work_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    for bad in (tmp_path / "file" / "x", tmp_path / "file" / "x" / "y", Path("/proc/nowhere/x")):
        with pytest.raises(RunError, match=r"cannot be made: .*; name another place$"):
            check_writable(bad)
    for good in (tmp_path / "x", tmp_path / "new" / "and" / "deeper" / "x", tmp_path):
        check_writable(good)
    assert sorted(tmp_path.rglob("*")) == before
