"""`fedpeft audit --canaries` on the command line."""

import json
from pathlib import Path

from running import fedpeft

PLAN = """
name = "blobs"
task = {name = "parts:Points", features = 100}
data = {name = "parts:Blobs", features = 100}
method = "full"
rounds = 2
cohort = 4
weighting = "uniform"
partition = {name = "iid", clients = 4}
privacy = {target_epsilon = 8, delta = 1e-5, accountant = "rdp"}
local = {lr = 0.1}
stages = [{name = "client_dp", clip_norm = 0.5}]
"""


def test_the_command_audits_a_plan_and_a_run(tmp_path: Path) -> None:
    plan, run = tmp_path / "plan.toml", tmp_path / "run"
    plan.write_text(PLAN)
    told = fedpeft("audit", plan, "--canaries", 100, "--seed", 3)
    assert told.exit_code == 0, told.output
    for words in (
        "client_dp, noise multiplier",
        "100 canaries, each one client",
        "epsilon at delta = 1e-05",
        "at least",
        "by the accountant (rdp), the same rounds",
        "an audit never proves privacy",
    ):
        assert words in told.output
    assert fedpeft("run", plan, "--out", run, "--quiet").exit_code == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    told = fedpeft("audit", run, "--canaries", 100, "--json")
    found = json.loads(told.stdout)
    assert found["unit"] == "client" and found["rounds"] == 2 and found["holds"]
    assert 7.8 < found["epsilon_upper"] <= 8 and 0 < found["epsilon_lower"] < 8
    assert json.loads((run / "audit.json").read_text()) == found
    assert all(path.read_bytes() == content for path, content in before.items())
    old = fedpeft("attack", run, "--canaries", 100, "--json", "--allow-code=parts")
    assert old.exit_code == 0 and json.loads(old.stdout) == found


def test_a_promise_that_is_refuted_ends_the_command_with_1(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    broken = '"test_audit_canaries:WeakClientDp", far = 1e6'
    text = PLAN.replace("target_epsilon = 8", "target_epsilon = 1")
    plan.write_text(text.replace('"client_dp"', broken))
    given = ("--canaries", 300, "--rounds", 1, "--allow-code=parts")
    told = fedpeft("audit", plan, *given, "--allow-code=test_audit_canaries")
    assert told.exit_code == 1 and "gives away more than it promises" in told.output


def test_what_the_command_is_not_given(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN)
    assert "messages are those of a run" in fedpeft("audit", plan).stderr
    assert "give --canaries too" in fedpeft("audit", plan, "--rounds", 2).stderr
    assert "is not a run's folder" in fedpeft("audit", tmp_path / "none", "--canaries", 99).stderr
