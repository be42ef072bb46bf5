"""What an owner agrees to is shown on one screen, is what then leaves, and is asked for once."""

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from contributions import ONE_ROUND, Study, own_data
from rounds import SCAFFOLD, points_plan
from running import PLAN, fedpeft
from test_releases import PRIVATE
from typer.testing import CliRunner

from fedpeft import read_plan
from fedpeft.cli.app import app
from fedpeft.core.seeds import fold
from fedpeft.core.types import Job, Reply
from fedpeft.deploy.consent import FILE, TELLS, Consent, consent_to
from fedpeft.oneshot.invitation import invite
from fedpeft.plan.calibration import round_seed
from fedpeft.registry import find, names
from fedpeft.rounds.client import Worker
from fedpeft.rounds.loop import start
from fedpeft.rounds.post import encode_start
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Folder
from fedpeft.wire.frames import layout_of, unframe

NOISY = {"weighting": "uniform", "delta": 1e-3, "accountant": "rdp"}
LOCAL_DP = {"stages": [{"name": "local_dp", "noise_multiplier": 2.0}], **NOISY}
SECURE = {"exchange": {"name": "secure", "threshold": 3}, "weighting": "uniform"}


def site_of(**changes: Any) -> Site:
    return open_site(points_plan(**changes))


def told(site: Site, **terms: Any) -> dict[str, str]:
    return dict(consent_to(site, "c000", site.data.clients, **terms).lines)


def said(*words: object, answer: str = "") -> Result:
    """A command with somebody or nobody at the keyboard."""
    given = [*map(str, words), "--allow-code=parts"]
    return CliRunner().invoke(app, given, input=answer)


@pytest.mark.parametrize("changes", [{}, SCAFFOLD, LOCAL_DP], ids=["plain", "scaffold", "noise"])
def test_as_many_numbers_leave_as_the_screen_says(changes: dict[str, Any], tmp_path: Path) -> None:
    site = site_of(**changes)
    plan = site.plan
    seed = fold(round_seed(plan, 0), "client", "c000")
    payload = encode_start(plan, start(plan, site.params()))
    reply = Worker(site, Folder(tmp_path))(Job(plan.run, 0, "c000", "fit", seed, None, payload))
    assert isinstance(reply, Reply)
    sent = layout_of(unframe(reply.payload, nested=True)[1])
    numbers = sum(prod(shape) for _, shape, _ in sent)
    assert told(site)["leaves here"].startswith(f"{numbers:,} numbers a round")


def test_the_screen_says_what_stays_visible() -> None:
    plain, noisy, summed = site_of(), site_of(**LOCAL_DP), site_of(**SECURE)
    assert "how many examples" in told(plain)["not hidden"]
    assert "the mean loss" in told(plain)["not hidden"]
    for site in (noisy, summed):
        assert told(site)["not hidden"] == "that this site takes part, and when"
    assert told(plain)["noise"] == "none: the server sees the change as it is"
    assert told(summed)["noise"].endswith("only added to those of others")
    assert "shares" in told(summed)["messages"] and "vote" not in told(summed)["messages"]
    first = told(site_of(head_start="class_means"))
    assert "sum of its examples' features" in first["not hidden"]
    # the head of 3 classes and 8 features, and a count for each class
    assert f"{3 * 8 + 3} more before the first, and no example" in first["leaves here"]


def test_the_screen_says_what_any_phase_lets_the_server_see() -> None:
    """An owner who reads of sums alone must not find later that one phase has none."""
    later = {"until": 2, "set": ["exchange='plain'", "algorithms=['fisher']"]}
    phases = [{"until": 1, "set": ["local.lr=0.04"]}, later]
    screen = told(site_of(phase=phases, **SECURE))
    assert screen["noise"].endswith("only added to those of others in some rounds")
    assert "fisher" in screen["messages"] and "shares" in screen["messages"]
    assert "the squared gradient" in screen["not hidden"]
    assert "the mean loss in training" in screen["not hidden"]
    less = [{"until": 1, "set": ["routing=[{name='subset', trains=['*.bias']}]"]}]
    assert told(site_of(phase=less))["leaves here"].startswith("at most 27 numbers")


@pytest.mark.parametrize("kind", ["algorithm", "aggregator", "evaluation"])
def test_what_a_part_reveals_is_told_in_words(kind: str) -> None:
    revealing = {n: part for n in names(kind) if (part := find(kind, n)) and _facts(part)}
    assert revealing
    for name, part in revealing.items():
        for fact in _facts(part):
            assert len(TELLS.get(fact, fact).split()) > 3, f"{name} reveals {fact!r}"


def _facts(part: type) -> frozenset[str]:
    found: object = getattr(part, "reveals", frozenset())
    return found if isinstance(found, frozenset) else frozenset()


def test_the_epsilon_is_of_all_rounds_and_of_all_runs() -> None:
    site = site_of(cohort=24, **LOCAL_DP)

    def epsilon(words: str) -> float:
        return float(words.partition("epsilon = ")[2].split()[0])

    one, two = told(site)["noise"], told(site, earlier=1)["noise"]
    assert "added here" in one and "hides each client" in one
    assert epsilon(two) > epsilon(one) > 0
    assert "after 2 runs" in two and "after 2 files" in told(site, earlier=1, by_file=True)["noise"]


def test_a_changed_term_is_asked_for_anew(tmp_path: Path) -> None:
    first, other = Consent((("noise", "none"),)), Consent((("noise", "some"),))
    assert not first.given_at(tmp_path / "a")
    first.keep(tmp_path / "a")
    assert first.given_at(tmp_path / "a") and not other.given_at(tmp_path / "a")
    assert (tmp_path / "a").stat().st_mode & 0o077 == 0
    assert (tmp_path / "a" / FILE).stat().st_mode & 0o077 == 0
    (tmp_path / "a" / FILE).write_text("[")
    assert not first.given_at(tmp_path / "a")


def test_contribute_asks_before_it_trains(four: Study, tmp_path: Path) -> None:
    out, memory = tmp_path / "c0", tmp_path / "memory"
    words = ["contribute", four.path, "--client", 0, "-o", out, "--memory", memory]
    nobody = said(*words)
    assert nobody.exit_code == 2 and not out.exists() and not memory.exists()
    assert "nobody is there to agree" in nobody.output and "--yes" in nobody.output
    assert "numbers a round" in nobody.output and "no server asks anything" in nobody.output
    agreed = said(*words, "--yes")
    assert agreed.exit_code == 0 and out.exists()
    again = said(*words[:-4], "-o", tmp_path / "c1", "--memory", memory)
    assert again.exit_code == 0 and "You agreed to this before" in again.output
    other = said("contribute", four.path, "--client", 1, "-o", tmp_path / "c", "--memory", memory)
    assert other.exit_code == 2 and "nobody is there to agree" in other.output


def test_a_second_private_file_is_agreed_to_with_the_epsilon_of_both(tmp_path: Path) -> None:
    invite(read_plan(PLAN, [*ONE_ROUND, *PRIVATE]), tmp_path / "study")
    words = ["contribute", tmp_path / "study", "--client", 0, "--memory", tmp_path / "memory"]
    assert said(*words, "--yes", "-o", tmp_path / "a").exit_code == 0
    asked = said(*words, "--again", "-o", tmp_path / "b")
    assert asked.exit_code == 2 and "nobody is there to agree" in asked.output
    assert "after 2 files" in asked.output and not (tmp_path / "b").exists()


OWN = """
name = "own"
data = {name = "arrays", path = "server.npz"}
task.name = "module"
task.module = "torch.nn:Linear"
task.arguments = {in_features = 2, out_features = 3}
method = "full"
rounds = 2
cohort = 2
nodes = ["north", "south"]
classes = ["c", "b", "a"]
local = {lr = 0.1, batch_size = 8}
"""


def test_the_doctor_shows_the_terms_of_a_node_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.toml").write_text(OWN)
    data = own_data(tmp_path / "north.npz", "ab")
    before = sorted(tmp_path.rglob("*"))
    shown = fedpeft("doctor", tmp_path / "plan.toml", "--data", data, "--name", "north")
    assert "`fedpeft node` asks you to agree to:" in shown.output
    assert "9 numbers a round (of 9 in the model), and no example" in shown.output
    assert "2 of 2, as the plan draws them" in shown.output
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "data-report.txt"])
    assert "agree" not in fedpeft("doctor", tmp_path / "plan.toml").output


def test_the_doctor_shows_the_terms_of_an_invitation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own_data(tmp_path / "server.npz", "abc")
    invite(
        read_plan(OWN.replace('nodes = ["north", "south"]', ""), ["rounds=1"]), tmp_path / "study"
    )
    data = own_data(tmp_path / "north.npz", "ab")
    shown = fedpeft("doctor", "study", "--data", data, "--name", "north")
    assert shown.exit_code == 0, shown.output
    assert "`fedpeft contribute` asks you to agree to:" in shown.output
    assert "you train once, and send the file yourself" in shown.output
    bad = fedpeft("doctor", "study", "--data", "nowhere.npz", "--name", "north")
    assert bad.exit_code == 1 and "NO  DataError" in bad.output


def test_what_was_agreed_to_is_written_down(four: Study, tmp_path: Path) -> None:
    words = ("contribute", four.path, "--client", 0, "-o", tmp_path / "c", "--memory", tmp_path)
    assert said(*words, "--yes").exit_code == 0
    [kept] = tmp_path.glob(f"agreements/*/{FILE}")
    lines = dict(json.loads(kept.read_text())["lines"])
    assert set(lines) == {"model", "leaves here", "rounds", "messages", "noise", "not hidden"}
