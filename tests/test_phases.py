"""Plans that change from round to round: phases and schedules."""

from pathlib import Path
from shutil import rmtree

import pytest
import torch
from rounds import POINTS

from fedpeft.core.tensors import equal
from fedpeft.engines.inprocess import InProcess
from fedpeft.engines.processes import Processes
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.errors import PlanError
from fedpeft.local.descent import Descent
from fedpeft.plan.phases import Schedule, least_rounds
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import plan_at, read_plan
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import open_site
from fedpeft.storage.client_memory import Folder

BIASES_FIRST = [{"until": 2, "set": ["routing=[{name='subset', trains=['*.bias']}]"]}]


def plan_of(**changes: object) -> Plan:
    return read_plan({**POINTS, "method": "full", **changes})


@pytest.mark.parametrize(
    "shape, values",
    [
        ("linear", [1.0, 0.775, 0.55, 0.325, 0.1]),
        ("cosine", [1.0, 0.1 + 0.45 * (1 + 2**-0.5), 0.55, 0.1 + 0.45 * (1 - 2**-0.5), 0.1]),
        ("exponential", [1.0, 10**-0.25, 10**-0.5, 10**-0.75, 0.1]),
    ],
)
def test_a_number_follows_its_shape(shape: str, values: list[float]) -> None:
    one = Schedule("local.lr", 1.0, 0.1, shape)
    assert [one.at(k, 5) for k in range(5)] == pytest.approx(values)
    assert one.at(0, 1) == 1.0


def test_whole_numbers_stay_whole() -> None:
    one = Schedule("cohort", 2, 8)
    assert [one.at(k, 4) for k in range(4)] == [2, 4, 6, 8]
    assert all(isinstance(one.at(k, 9), int) for k in range(9))


def test_a_schedule_is_read_where_the_number_stands_and_written_back() -> None:
    lr = {"from": 0.2, "to": 0.1}
    plan = plan_of(local={"batch_size": 16, "lr": lr}, rounds=3)
    rates = [plan_at(plan, k).local for k in range(3)]
    assert [one.lr for one in rates if isinstance(one, Descent)] == pytest.approx([0.2, 0.15, 0.1])
    assert read_plan(plan.toml()) == plan and read_plan(plan.toml()).run == plan.run


def test_in_a_phase_some_tensors_stand_still() -> None:
    plan = plan_of(phase=BIASES_FIRST, rounds=3)
    site = open_site(plan)
    begun = start(plan, site.params())
    states = [state for state, _ in federate(plan, InProcess(site), begun)]
    for name, x in begun.params.items():
        moved = [not torch.equal(state.params[name], x) for state in states]
        assert moved == ([True] * 3 if name.endswith("bias") else [False, False, True])


def test_phases_send_only_what_is_trained() -> None:
    plan = plan_of(phase=BIASES_FIRST, rounds=3)
    site = open_site(plan)
    first, _, last = [ledger for _, ledger in federate(plan, InProcess(site))]
    assert max(first.up.values()) < min(last.up.values())


@pytest.mark.parametrize("split", [1, 2, 3])
def test_a_resume_in_the_middle_of_phases_and_schedules_is_not_noticed(split: int) -> None:
    lr = {"from": 0.2, "to": 0.01, "shape": "exponential"}
    plan = plan_of(rounds=4, local={"batch_size": 16, "lr": lr}, phase=BIASES_FIRST)
    site = open_site(plan)
    whole = [state for state, _ in federate(plan, InProcess(site))]
    rest = list(federate(plan, InProcess(site), whole[split - 1]))
    assert equal(rest[-1][0].params, whole[-1].params)


def test_engines_agree_on_what_changes(tmp_path: Path) -> None:
    plan = plan_of(rounds=3, phase=BIASES_FIRST)
    site = open_site(plan)
    alone = [state for state, _ in federate(plan, InProcess(site))][-1]
    processes, cohort = Processes(site, Folder(tmp_path), workers=2), Cohort(site)
    for engine in (processes, cohort):
        state = [state for state, _ in federate(plan, engine, start(plan, site.params()))][-1]
        assert equal(state.params, alone.params)
        engine.close()
    assert cohort.alone == "its plan changes from round to round"


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"phase": [{"set": ["method=lora"]}]}, "method is the same in all rounds"),
        ({"phase": [{"set": ["server=adam"]}]}, "server is the same in all rounds"),
        ({"phase": [{"set": ["local.lr=-1"]}]}, "lr must be positive"),
        ({"phase": [{"until": 0, "set": []}]}, "until must be at least 1"),
        ({"phase": {"sets": []}}, "sets"),
        ({"local": {"lr": {"from": 1, "to": 0, "shape": "cubic"}}}, "no shape called 'cubic'"),
        ({"rounds": {"from": 1, "to": 3}}, "rounds is the same in all rounds"),
    ],
)
def test_what_cannot_change_is_refused_when_the_plan_is_read(
    changes: dict[str, object], words: str
) -> None:
    with pytest.raises(PlanError, match=words):
        plan_of(**changes)


@pytest.mark.parametrize(
    ("untils", "words"),
    [
        ([7], r"phase 1 ends with until = 7, and the plan has 4 rounds.*set rounds to 7 or more"),
        ([4, None], r"phase 2 never comes: the one before it has all of the plan's 4 rounds"),
        ([None, 2], "phase 2 never comes: the one before it has all"),
        ([3, 2], r"phase 2 never comes: it ends with until = 2, and the one before it with .* 3"),
        ([2, 2], "phase 2 never comes"),
    ],
)
def test_a_phase_past_the_rounds_is_refused(untils: list[int | None], words: str) -> None:
    phases = [
        {"set": ["local.lr=0.04"], **({} if until is None else {"until": until})}
        for until in untils
    ]
    with pytest.raises(PlanError, match=words):
        plan_of(phase=phases, rounds=4)


@pytest.mark.parametrize("untils", [[4], [1, 4], [2, None], [None]])
def test_phases_that_fill_the_rounds_are_taken(untils: list[int | None]) -> None:
    """And no fewer rounds are, so that a trial of them has that many."""
    phases = [
        {"set": ["local.lr=0.04"], **({} if until is None else {"until": until})}
        for until in untils
    ]
    plan = plan_of(phase=phases, rounds=4)
    least = least_rounds(plan)
    assert least == {1: 1, 2: 3}.get(max(until or 1 for until in untils), 4)
    plan_of(phase=phases, rounds=least)
    if least > 1:
        with pytest.raises(PlanError, match="phase"):
            plan_of(phase=phases, rounds=least - 1)


def test_a_phase_alone_cannot_be_private() -> None:
    """The plan would not know that it is, and tell what a private one hides."""
    noise = "local={ name = 'dp_sgd', noise_multiplier = 1.0, lr = 0.1, batch_size = 8 }"
    once = [{"until": 1, "set": [noise, "delta=1e-5", "weighting=uniform"]}]
    with pytest.raises(PlanError, match="round 0 has another private_part than the plan"):
        plan_of(phase=once, rounds=3)


def test_the_noise_of_a_private_plan_is_the_same_in_all_rounds() -> None:
    private = {"local": {"name": "dp_sgd", "noise_multiplier": 1.0, "lr": 0.1, "batch_size": 8}}
    with pytest.raises(PlanError, match="noise is accounted for"):
        plan_of(
            **private,
            weighting="uniform",
            delta=1e-3,
            phase=[{"until": 2, "set": ["local.noise_multiplier=0.1"]}],
        )


@pytest.mark.parametrize(
    "later",
    [
        ["stages=['error_feedback']", "uplink={name='topk', density=0.1}"],
        ["stages=['ef21']", "uplink={name='topk', density=0.1}"],
        ["personal=['*.bias']"],
        ["local='ditto'"],
    ],
)
def test_clients_remember_from_a_phase_on(later: list[str], tmp_path: Path) -> None:
    """In the first rounds they have nothing to remember, so that nothing is lost afterwards."""
    phases = [{"until": 1, "set": ["local.lr=0.04"]}, {"set": later}]
    plan = plan_of(phase=phases, rounds=3, cohort=24)
    site = open_site(plan)
    begun = start(plan, site.params())
    with pytest.raises(PlanError, match="give the engine a store"):
        list(federate(plan, InProcess(site), begun))
    folder = tmp_path / "clients"
    rounds = federate(plan, InProcess(site, Folder(folder)), begun)
    for _ in range(2):
        _, ledger = next(rounds)
        assert not ledger.failed and len(ledger.weights) == 24
    rmtree(folder)
    _, ledger = next(rounds)
    assert len(ledger.failed) == 24
    assert all("its memory of round 1 is gone" in why for why in ledger.failed.values())


@pytest.mark.parametrize("first", ["scaffold", ""])
def test_no_phase_changes_what_travels_beside_the_parameters(first: str) -> None:
    local = {"batch_size": 16, "lr": 0.05, **({"correction": first} if first else {})}
    other = "local={batch_size=16, lr=0.05" + ("" if first else ", correction='scaffold'") + "}"
    with pytest.raises(PlanError, match="Scaffold sends tensors beside the parameters"):
        plan_of(local=local, phase=[{"until": 2, "set": [other]}], rounds=4)
