"""A second file of a private plan is another release: it is refused, or counted."""

import json
import stat
from pathlib import Path

import pytest
from contributions import ONE_ROUND, Study, study
from running import PLAN, fedpeft

from fedpeft import RunError, read_plan
from fedpeft.core.units import say_epsilon
from fedpeft.oneshot.invitation import invite
from fedpeft.oneshot.releases import FILE, Release, Releases, words

PRIVATE = (
    "stages=[{name='local_dp',noise_multiplier=2.0}]",
    "weighting=uniform",
    "delta=1e-3",
    "accountant=rdp",
)


@pytest.fixture
def private(tmp_path: Path) -> Path:
    invite(read_plan(PLAN, [*ONE_ROUND, *PRIVATE]), tmp_path / "study")
    return tmp_path / "study"


def made(folder: Path, out: Path, memory: Path, *flags: str | int) -> tuple[int, str]:
    said = fedpeft("contribute", folder, "-o", out, "--memory", memory, "--yes", *flags)
    return said.exit_code, said.output


def test_a_second_file_is_refused_and_with_again_counted(private: Path, tmp_path: Path) -> None:
    memory, first = tmp_path / "memory", tmp_path / "a"
    assert made(private, first, memory, "--client", 0)[0] == 0
    [kept] = Releases(memory)._read()
    assert kept.client == "c000" and kept.delta == 1e-3 and kept.epsilon is not None
    one, two = (f"epsilon {say_epsilon(times * kept.epsilon)}" for times in (1, 2))
    code, said = made(private, tmp_path / "b", memory, "--client", 0)
    assert code == 2 and not (tmp_path / "b").exists()
    assert (
        f"a file for this study already, {one} at delta 0.001." in said
        and f"{two} at delta 0.002" in said
    )
    assert "--again" in said and len(Releases(memory)._read()) == 1
    code, said = made(private, tmp_path / "b", memory, "--client", 0, "--again")
    assert code == 0 and f"with the 1 made before: {two} at delta 0.002" in said
    assert f"privacy: {one}, delta 0.001, " in said
    code, said = made(private, tmp_path / "c", memory, "--client", 0)
    assert code == 2 and "2 files for this study already" in said and "at delta 0.003" in said
    assert made(private, tmp_path / "d", memory, "--client", 1)[0] == 0


def test_a_plan_without_noise_counts_nothing(four: Study, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert made(four.path, tmp_path / name, tmp_path / "memory", "--client", 0)[0] == 0
    assert not (tmp_path / "memory" / FILE).exists()


def test_a_copy_of_the_invitation_is_the_same_study(private: Path, tmp_path: Path) -> None:
    assert made(private, tmp_path / "a", tmp_path / "memory", "--client", 0)[0] == 0
    private.rename(tmp_path / "copy")
    assert made(tmp_path / "copy", tmp_path / "b", tmp_path / "memory", "--client", 0)[0] == 2
    assert study(tmp_path / "other").invitation.terms.study


def test_they_are_their_owner_s_alone(tmp_path: Path) -> None:
    releases = Releases(tmp_path / "data" / "fedpeft")
    releases.add("s", "c", {"epsilon": 1.0, "delta": 1e-5}, again=False)
    modes = [
        stat.S_IMODE(path.stat().st_mode) for path in (releases.folder, releases.folder / FILE)
    ]
    assert modes == [0o700, 0o600]
    with pytest.raises(RunError, match="already"):
        releases.add("s", "c", {}, again=False)
    assert len(releases.add("s", "c", {}, again=True)) == 2
    assert len(releases.add("s", "d", {}, again=False)) == 1


def test_they_lie_in_the_user_s_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert Releases.usual().folder == tmp_path / "fedpeft"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Releases.usual().folder == tmp_path / ".local" / "share" / "fedpeft"


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"releases": [{"study": 1}]}'])
def test_damaged_ones_are_not_written_over(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(RunError, match="is damaged"):
        Releases(tmp_path).add("s", "c", {}, again=True)
    assert (tmp_path / FILE).read_text() == text


def test_what_guarantees_add_up_to() -> None:
    two = [Release("s", "c", 1.5, 1e-5), Release("s", "c", 2.0, 3e-5)]
    assert words(two) == "epsilon 3.5 at delta 4e-05"
    assert words([*two, Release("s", "c", None, None)]) == "which guarantees nothing"
    assert json.dumps(words([])) == '"epsilon 0 at delta 0"'
