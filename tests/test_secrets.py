"""Keys and what is drawn from them."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedpeft.core.secrets import Secret, secret_at
from fedpeft.errors import RunError
from fedpeft.storage.client_memory import Folder

KEY = Secret(bytes(32))


def test_draws_have_the_moments_of_their_distribution() -> None:
    uniform, normal = KEY.uniform(200_000), KEY.normal((200_000,))
    assert float(uniform.min()) >= 0 and float(uniform.max()) < 1
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.005)
    assert float(uniform.var()) == pytest.approx(1 / 12, rel=0.01)
    assert float(normal.mean()) == pytest.approx(0, abs=0.01)
    assert float(normal.std()) == pytest.approx(1, rel=0.01)
    assert float((normal.abs() > 1.959964).double().mean()) == pytest.approx(0.05, rel=0.05)
    assert float((normal.abs() > 3.290527).double().mean()) == pytest.approx(0.001, rel=0.2)
    assert abs(float((normal[:100_000] * normal[100_000:]).mean())) < 0.02  # both halves of a pair


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0, 4)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    drawn = KEY.normal(shape)
    assert drawn.shape == shape and drawn.dtype == torch.float64 and bool(drawn.isfinite().all())


def test_every_path_has_a_stream_of_its_own_and_the_same_each_time() -> None:
    paths: list[tuple[str | int | None, ...]] = [
        (),
        ("a",),
        ("a", "b"),
        ("a/b",),
        ('a", "b',),
        (1,),
        ("1",),
        (None,),
    ]
    keys = [KEY.at(*path) for path in paths]
    assert len({key.root for key in keys} | {KEY.root}) == len(paths) + 1
    assert torch.equal(KEY.at("a", 3).normal((9,)), KEY.at("a", 3).normal((9,)))
    assert not torch.equal(KEY.at("a").uniform(9), KEY.at("b").uniform(9))


def test_a_key_is_bound_to_values_and_names() -> None:
    x, y = torch.zeros(3), torch.tensor([0.0, 0.0, 1e-30])
    keys = [KEY.bound(tensors).root for tensors in ({"a": x}, {"a": y}, {"b": x}, {"a": x, "b": x})]
    assert len(set(keys)) == 4 and KEY.bound({"a": x.clone()}).root == keys[0]


def test_a_key_does_not_show_itself() -> None:
    key = Secret(b"0123456789abcdef0123456789abcdef")
    assert "0123" not in repr(key) and "0123" not in str(key)
    assert key.commitment == Secret(key.root).commitment != KEY.commitment
    assert key.commitment not in key.root.hex()


def test_fresh_keys_differ() -> None:
    assert len({Secret.fresh().root for _ in range(10)}) == 10


def test_a_file_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "secret"
    first = secret_at(path)
    assert secret_at(path) == first and path.read_bytes() == first.root
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["secret"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"short")
    with pytest.raises(RunError, match="32 bytes, not 5"):
        secret_at(tmp_path / "secret")


def test_clients_of_a_folder_have_keys_of_their_own(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert (
        folder.secret("a")
        == folder.secret("a")
        == Folder(tmp_path).secret("a")
        != folder.secret("b")
    )


AT_ONCE = """
import sys
from multiprocessing import get_context
from pathlib import Path
from fedpeft.core.secrets import secret_at

def root(path):
    return secret_at(path).root

with get_context("fork").Pool(8) as pool:
    print(len(set(pool.map(root, [Path(sys.argv[1])] * 32))))
"""


def test_processes_that_come_at_once_agree(tmp_path: Path) -> None:
    """They are forked of a process of their own: one with threads, as that of the tests may be, can
    hand on a lock that nobody will open."""
    command = [sys.executable, "-c", AT_ONCE, str(tmp_path / "secret")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    assert ended.stdout.strip() == "1"
