"""Merges that are killed: the folder is as before, or as after, and never between."""

import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from contributions import Study, change, killed_before, merge, tree

import fedpeft.oneshot.replace_folder as swap
from fedpeft.errors import RunError
from fedpeft.oneshot.rules import Rules

RENAMES = ("os.rename",)
ALL = (*RENAMES, "open", "os.remove", "os.mkdir", "os.rmdir")


@pytest.mark.slow
@pytest.mark.parametrize(
    "exchange",
    [True, False],
    ids=["exchanged", "one-after-another"],
)
@pytest.mark.parametrize("events", [RENAMES, ALL], ids=["renames", "all"])
def test_a_kill_leaves_the_old_merge_or_the_new_one(
    events: tuple[str, ...], exchange: bool, four: Study, tmp_path: Path
) -> None:
    out, after = tmp_path / "here" / "merged", tmp_path / "after"
    merge(four.path, four.files[:2], out, Rules())
    merge(four.path, four.files[:3], after, Rules())
    old, new = tree(out), tree(after)
    command = [sys.executable, __file__, str(out), str(four.files[2]), str(exchange), *events]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    ends = [tree(Path(line)) for line in done.stdout.splitlines()]
    assert len(ends) > 5
    assert sorted(path.name for path in out.parent.iterdir()) == sorted(
        [out.name, *(f"copy{moment}" for moment in range(len(ends)))]
    )
    assert all(end in (old, new) for end in ends)
    assert ends[0] == old and ends[-1] == new


def test_what_a_kill_left_is_cleared_and_what_is_at_work_is_not(
    four: Study, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    others = [tmp_path / name for name in (".merged.mine", ".merged.abcdefgh", ".other.abcdefgh")]
    for other in others:
        (other / "something").mkdir(parents=True)
    others.append(tmp_path / ".merged.00000000")
    others[-1].write_text("a file")
    left = tmp_path / ".merged.a_b0c1d2" / "merged"
    left.mkdir(parents=True)
    (left / "server.key").write_text("secret")
    with swap.replace_when_built(out) as folder:
        swap.clear(out)
        assert not left.parent.exists() and folder.is_dir()
    assert sorted(tmp_path.iterdir()) == sorted([*others, out])


def kill_everywhere(out: Path, file: Path, exchange: bool, events: tuple[str, ...]) -> None:
    """Copy the merge, kill a change of the copy before each of its file events in turn, and print
    where it lies."""
    if not exchange:
        swap._exchange = lambda one, other: False  # as on a system that cannot
    moment, status = 0, 1
    while status != 0:
        copy = out.with_name(f"copy{moment}")
        shutil.copytree(out, copy)
        status = killed_before(moment, copy.name, events, lambda: change(copy, add=[file]))  # noqa: B023
        assert status in (0, 9), status
        with suppress(RunError):  # the next command, which changes nothing
            change(copy, remove=["nobody"])
        sys.stdout.write(f"{copy}\n")
        moment += 1


if __name__ == "__main__":
    kill_everywhere(
        Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "True", tuple(sys.argv[4:])
    )
