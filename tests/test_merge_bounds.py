"""How long an update may be and how much a file may count, of one file, of two and of more."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from contributions import Study, change, merge, tree
from running import fedpeft

from fedpeft.core.tensors import norm, scale
from fedpeft.errors import RunError
from fedpeft.oneshot.rejections import ContributionError, Rejection
from fedpeft.oneshot.rules import Rules


def long(four: Study, out: Path, times: float, number: int = 0) -> Path:
    return four.forged(out, lambda u: replace(u, delta=scale(u.delta, times)), number)


def heavy(four: Study, out: Path, examples: int, number: int = 0) -> Path:
    return four.forged(out, lambda u: replace(u, weight=float(examples)), number, examples=examples)


def test_a_lone_file_is_held_to_what_training_starts_from(four: Study, tmp_path: Path) -> None:
    """27 numbers, of a length below √27: 1000·√27 = 5196 at most."""
    start = four.invitation.state.params
    assert sum(x.numel() for x in start.values()) == 27 and float(norm(start)) < 27**0.5
    own = four.read(four.files[0]).length
    merge(four.path, [long(four, tmp_path / "x", 5190 / own)], tmp_path / "a", Rules())
    for times in (5200 / own, 1e30):
        bad = long(four, tmp_path / "y", times)
        with pytest.raises(
            ContributionError, match="at most 5196 is allowed, 1000 times"
        ) as caught:
            merge(four.path, [bad], tmp_path / "b", Rules())
        assert caught.value.reason is Rejection.NORM and str(bad) in str(caught.value)
        assert not (tmp_path / "b").exists()
    merge(four.path, [bad], tmp_path / "b", Rules(max_norm=float("inf")))


def test_of_two_files_the_longer_is_held_to_the_shorter(four: Study, tmp_path: Path) -> None:
    own, other = (four.read(four.files[k]).length for k in (0, 1))
    fits = long(four, tmp_path / "fits", 99 * other / own)
    merge(four.path, [fits, four.files[1]], tmp_path / "a", Rules())
    bad = long(four, tmp_path / "bad", 101 * other / own)
    words = f"the only other one is {other:.4g}, and at most 100 times that"
    with pytest.raises(ContributionError, match=words) as caught:
        merge(four.path, [bad, four.files[1]], tmp_path / "b", Rules())
    assert str(bad) in str(caught.value) and "raise --norm-factor" in str(caught.value)
    merge(four.path, [bad, four.files[1]], tmp_path / "b", Rules(norm_factor=11))


def test_an_update_of_nothing_bounds_no_other(four: Study, tmp_path: Path) -> None:
    nothing = long(four, tmp_path / "nothing", 0.0, 1)
    merge(four.path, [four.files[0], nothing], tmp_path / "a", Rules())


def test_a_client_of_2_to_the_53_examples(four: Study, tmp_path: Path) -> None:
    """Of three with 25, 30 and 35 examples or the like, it would be the model."""
    bad, out = heavy(four, tmp_path / "bad", 2**53), tmp_path / "merged"
    for files in (four.files[1:], four.files[1:2]):
        with pytest.raises(ContributionError, match="it counts as 9007199254740992 exa") as caught:
            merge(four.path, [bad, *files], out, Rules())
        assert caught.value.reason is Rejection.EXAMPLES and str(bad) in str(caught.value)
        assert not out.exists()


def test_the_most_that_a_file_may_count(four: Study, tmp_path: Path) -> None:
    counts = sorted(four.read(file).weight for file in four.files[1:])
    most = 100 * int(counts[1])
    merge(
        four.path,
        [heavy(four, tmp_path / "fits", most), *four.files[1:]],
        tmp_path / "a",
        Rules(),
    )
    bad = heavy(four, tmp_path / "bad", most + 1)
    words = (
        f"{most + 1} examples, at most {most} are allowed, 100 times the median .* of the others"
    )
    with pytest.raises(ContributionError, match=words):
        merge(four.path, [bad, *four.files[1:]], tmp_path / "b", Rules())
    merge(four.path, [bad, *four.files[1:]], tmp_path / "b", Rules(max_weight=most + 1))
    assert torch.isfinite(torch.tensor(float(most)))


def test_a_lone_file_may_count_what_it_likes_until_another_comes(
    four: Study, tmp_path: Path
) -> None:
    """Alone it is the mean, whatever its weight."""
    out = tmp_path / "merged"
    merge(four.path, [heavy(four, tmp_path / "x", 2**53)], out, Rules())
    before = tree(out)
    with pytest.raises(ContributionError, match="'c000' was merged before: take it out"):
        change(out, add=[four.files[1]])
    assert tree(out) == before
    change(out, add=[four.files[1]], remove=["c000"])


def test_the_command_takes_the_bound_and_keeps_it(four: Study, tmp_path: Path) -> None:
    bad, out = heavy(four, tmp_path / "bad", 100_000), tmp_path / "merged"
    begin: list[str | int | Path] = ["merge", four.path, bad, *four.files[1:], "-o", out]
    said = fedpeft(*begin)
    assert said.exit_code == 2 and "if that is true give --max-examples 100000" in said.output
    assert fedpeft(*begin, "--max-examples", 100_000).exit_code == 0
    assert fedpeft("merge", out, "--remove", "c001").exit_code == 0
    said = fedpeft("merge", out, "--max-examples", 1000)
    assert said.exit_code == 2 and "at most 1000 are allowed" in said.output


def test_rules_come_back_from_their_file() -> None:
    for rules in (Rules(), Rules({"a": "b"}, 3.0, float("inf"), 7.0)):
        assert Rules.of(rules.values()) == rules
    earlier = {"trust": {}, "norm_factor": 10.0, "max_norm": "inf"}
    assert Rules.of(earlier) == Rules(max_norm=float("inf"))
    for bad in (0.0, -1.0, float("nan")):
        for key in ("max_norm", "max_weight"):
            with pytest.raises(RunError, match="positive"):
                Rules(**{key: bad})  # type: ignore[arg-type]
