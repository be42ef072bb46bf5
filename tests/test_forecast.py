"""What is planned against what then happens: bytes to the byte, operations and memory by hand."""

import json
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from rounds import POINTS, run
from running import PLAN, fedpeft, strict
from torch import nn

from fedpeft.core.signatures import KIND, public_of
from fedpeft.errors import PlanError
from fedpeft.evaluation.measure import full_payloads
from fedpeft.forecasts.advice import warn
from fedpeft.forecasts.blueprint import draw_blueprint, fill_trained
from fedpeft.forecasts.forecast import Forecast, forecast
from fedpeft.forecasts.links import read_link
from fedpeft.forecasts.memory import MemoryNeed
from fedpeft.forecasts.step_cost import Live, cost_of
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import read_plan
from fedpeft.registry import build, names
from fedpeft.rounds.ledger import Ledger
from fedpeft.rounds.site import open_site
from fedpeft.storage.client_memory import Folder

UPLINKS = [n for n in names("codec") if not getattr(build("codec", n), "follows", False)]
LOW_RANK: dict[str, Any] = {
    "task": {"name": "parts:Points", "network": "hidden"},
    "method": {"name": "lora", "rank": 4, "target": ["first"], "head": "head"},
}
LOCAL: Any = POINTS["local"]
PARTS: dict[str, dict[str, Any]] = {
    **{f"codec {name}": {"uplink": name, "downlink": "dense"} for name in UPLINKS},
    "down int8": {"downlink": "int8"},
    "owners": {
        "evaluate_at": ["owners"],
        "partition": {**cast(dict[str, Any], POINTS["partition"]), "held_out": 0.3},
    },
    "feedback": {"uplink": {"name": "topk", "density": 0.1}, "stages": ["error_feedback"]},
    "scaffold": {"local": {**LOCAL, "correction": "scaffold"}},
    "personal": {"personal": ["*.bias"]},
    "turns": {"routing": [{"name": "alternate", "turns": ["*.bias", "*.weight"]}]},
    "ranks": {**LOW_RANK, "aggregator": "fedit", "routing": [{"name": "ranks", "ranks": [2, 4]}]},
    "flora": {**LOW_RANK, "aggregator": "flora"},
    "class_means": {"method": "head", "algorithms": ["class_means"]},
    "momentum": {"server": {"name": "momentum"}},
    "secure": {"exchange": {"name": "secure", "threshold": 3}, "weighting": "uniform"},
    "one round": {"rounds": 1},
    "more than there are": {"cohort": 50, "rounds": 1},
}


def plan_of(**changes: Any) -> Plan:
    return read_plan({**POINTS, "method": "full", "rounds": 3, "cohort": 4, **changes})


def bytes_of(ledgers: list[Ledger]) -> tuple[int, int, int]:
    """Down, up but for headers, and headers."""
    headers = sum(ledger.up_headers for ledger in ledgers)
    up = sum(ledger.bytes_up for ledger in ledgers)
    return sum(ledger.bytes_down for ledger in ledgers), up - headers, headers


@pytest.mark.parametrize("name", PARTS)
def test_planned_bytes_are_those_of_the_run(name: str, tmp_path: Path) -> None:
    plan = plan_of(**PARTS[name])
    planned = forecast(plan).traffic
    site = open_site(plan)
    ledgers = [ledger for _, ledger in run(site, site.plan, Folder(tmp_path))]
    assert not any(ledger.failed for ledger in ledgers)
    down, body, headers = bytes_of(ledgers)
    # the keys of a secure sum are drawn at random, and written in headers that are deflated
    assert abs(planned.total(0) - down) <= (4 * planned.answers if name == "secure" else 0)
    assert planned.whole
    if "up" not in planned.varies:
        assert planned.total(1) - planned.up_headers == body
    # of each answer the digits of its loss are not known
    assert abs(planned.up_headers - headers) <= 8 * planned.answers


@pytest.mark.parametrize(("codec", "varies"), [("dense", {}), ("ternary", {"up": "ternary"})])
def test_a_codec_whose_sizes_depend_on_numbers_is_found(codec: str, varies: object) -> None:
    found = forecast(plan_of(uplink=codec, rounds=1))
    assert found.traffic.varies == varies
    assert any("about so" in note for note in found.notes) == bool(varies)


def test_each_client_has_the_bytes_of_its_own_rank(tmp_path: Path) -> None:
    plan = plan_of(**PARTS["ranks"])
    planned = forecast(plan).traffic
    for one, (_, ledger) in zip(
        planned.rounds, run(open_site(plan), plan, Folder(tmp_path)), strict=True
    ):
        assert {client: pair[0] for client, pair in one.items()} == ledger.down


def test_owners_that_sign_are_planned_without_their_keys() -> None:
    private = {f"c{k:03}": blake2b(bytes([k]), digest_size=32).digest() for k in range(24)}
    lines = [f"{KIND}{public_of(key)} {name}" for name, key in private.items()]
    secure = {"name": "secure", "threshold": 3, "keys": lines}
    found = forecast(plan_of(exchange=secure, weighting="uniform", rounds=1))
    assert found.traffic.whole
    assert any("signatures are not counted" in note for note in found.notes)
    assert found.plan.exchange.signers  # what is told is told of the plan as it is


def test_rounds_beyond_the_limit_count_as_the_mean_of_the_others() -> None:
    planned = forecast(plan_of(rounds=6), seconds=0).traffic
    assert len(planned.rounds) == 3
    assert planned.total(0) == 2 * sum(pair[0] for one in planned.rounds for pair in one.values())


def test_what_is_planned_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    forecast(plan_of(**PARTS["feedback"]))
    assert not list(tmp_path.iterdir())


def test_operations_and_memory_of_a_product_by_hand() -> None:
    a, b = torch.empty(3, 5, device="meta"), torch.empty(5, 7, device="meta")
    cost = cost_of(lambda: a @ b)
    assert cost.flop == 2 * 3 * 5 * 7
    assert cost.peak == 4 * 3 * 7


def test_memory_that_is_let_go_counts_once() -> None:
    x = torch.empty(1000, device="meta")

    def work() -> None:
        for _ in range(5):
            _ = x + 1

    assert cost_of(work).peak in (4000, 8000)  # the last one lives until the next is there


def test_a_block_that_goes_back_to_the_system_counts_once() -> None:
    x = torch.empty(1000, device="meta")
    assert cost_of(lambda: x + 1, reused=4001).resident == 2 * 4000  # kept, with its like beside it
    assert cost_of(lambda: x + 1, reused=4000).resident == 4000


def test_a_mask_without_numbers_is_told_to_have_holes() -> None:
    with Live():
        assert not torch.ones(3, device="meta").bool().all()


def steps_of(plan: Plan) -> Forecast:
    return forecast(plan)


def test_operations_of_a_client_by_hand() -> None:
    """A linear layer of 8 points and 3 classes: one product forward, one for the weight's
    gradient."""
    found = forecast(plan_of(local={"batch_size": 4, "lr": 0.1, "epochs": 2}))
    client = found.training.client
    site = open_site(found.plan)
    size = site.data.size(client)
    assert found.training.steps == 2 * -(-size // 4)
    assert found.training.step_flop <= 2 * 2 * 4 * 8 * 3
    whole = min(4, size)
    assert found.training.step_flop >= 2 * 2 * (whole // 2) * 8 * 3


def test_epsilon_is_the_one_that_the_run_tells(tmp_path: Path) -> None:
    local = {"name": "dp_sgd", "steps": 2, "rate": 0.5, "noise_multiplier": 1.5}
    private = {"weighting": "uniform", "privacy": {"delta": 1e-3, "accountant": "rdp"}}
    plan = plan_of(local=local, **private)
    found = forecast(plan)
    site = open_site(plan)
    _, ledger = run(site, site.plan, Folder(tmp_path))[-1]
    assert found.privacy == ledger.privacy
    assert found.training.step_flop > 0


def test_without_examples_so_many_are_assumed() -> None:
    plan = read_plan({"rounds": 2, "cohort": 2, "classes": ["a", "b", "c"]})
    found = forecast(plan, examples_each=20)
    assert found.clients == 32
    assert found.training.steps == 1
    assert any("20 examples" in note for note in found.notes)


@pytest.mark.parametrize(
    "changes", [LOW_RANK, {"task": {"name": "parts:Points", "network": "convolution"}}]
)
def test_the_base_has_as_many_numbers_as_a_run_says(changes: dict[str, Any]) -> None:
    """With running statistics, which are trained too, and without what the method puts in."""
    plan = plan_of(**changes)
    site = open_site(plan)
    assert forecast(plan).base.parameters == full_payloads(site.plan, site.classes).params


def test_a_configuration_is_base_enough(tmp_path: Path) -> None:
    from importlib.resources import files

    config = files("fedpeft") / "assets" / "micro-vit" / "config.json"
    (tmp_path / "config.json").write_bytes(config.read_bytes())
    values = {"rounds": 2, "cohort": 2, "classes": ["a", "b"]}
    task = {"name": "image-classification", "model": "micro-vit"}
    whole = forecast(read_plan({**values, "task": task}), examples_each=8)
    bare = forecast(read_plan({**values, "task": {**task, "model": str(tmp_path)}}), 8)
    assert whole.base.here and not bare.base.here
    assert bare.traffic.total(0) == whole.traffic.total(0)
    assert bare.base.parameters == whole.base.parameters
    assert any("weights are not here" in note for note in bare.notes)


def test_trained_tensors_have_numbers_and_the_base_has_none() -> None:
    plan = read_plan({"method": "bias"})
    model = draw_blueprint(plan, ["a", "b"]).model
    trained = list(plan.method.names(model))
    fill_trained(model, trained, 1)
    for name, x in model.named_parameters():
        assert x.is_meta == (name not in trained)


@pytest.mark.parametrize(
    ("text", "rate"), [("10mbit", 1e7), ("500 kbit/s", 5e5), ("1.5Gbit", 1.5e9), ("8bit", 8)]
)
def test_links_are_read(text: str, rate: float) -> None:
    assert read_link(text).rate == rate
    assert read_link(text).seconds(rate / 8) == 1


@pytest.mark.parametrize("text", ["fast", "10", "0mbit", "10MB", "-1mbit", ""])
def test_a_link_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="500kbit"):
        read_link(text)


@pytest.fixture(scope="module")
def small() -> Forecast:
    return forecast(plan_of())


def told(found: Forecast, **changes: Any) -> Iterator[str]:
    from dataclasses import replace

    return (f"{one.what}: {one.remedy}" for one in warn(replace(found, **changes)))


def test_what_fits_is_no_concern(small: Forecast) -> None:
    assert not list(told(small))


def test_what_does_not_fit_is_told_with_what_to_change(small: Forecast) -> None:
    need = MemoryNeed({"libraries": 10, "a step of one client": 10**12})
    [line] = told(small, memory={"client": need})
    assert line.startswith("client: about 931.3 GiB of memory are needed")
    assert "local.batch_size" in line


def test_a_cohort_of_more_than_all_is_told(small: Forecast) -> None:
    [line] = told(small, clients=3)
    assert "cohort = 4 is more than the 3 clients" in line


def test_a_slow_link_is_told() -> None:
    [one] = warn(forecast(plan_of(rounds=1)), read_link("1bit"))
    assert "link is busy" in one.what


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


def test_the_command_tells_lines(plan_file: Path) -> None:
    result = fedpeft("plan", plan_file, "--link", "1mbit", "--measure")
    assert result.exit_code == 0, result.stderr
    labels = ("down, in all", "up, in all", "link of a client", "time here", "memory, server")
    assert all(any(line.startswith(x) for line in result.stdout.splitlines()) for x in labels)
    assert "blobs: 3 rounds, 2 of 4 clients" in result.stdout


def test_json_has_the_bytes_of_the_run(plan_file: Path, tmp_path: Path) -> None:
    result = fedpeft("plan", plan_file, "--json")
    found = json.loads(result.stdout)
    fedpeft("run", plan_file, "--out", tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert found["bytes_down"] == summary["bytes_down"]
    assert found["memory"]["client"]["total"] > found["memory"]["client"]["weights"]
    assert found["time"] is None and found["link"] is None


def test_a_plan_of_somebody_else_names_no_code(plan_file: Path) -> None:
    result = strict("plan", plan_file)
    assert result.exit_code == 2
    assert "--allow-code" in result.stderr


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (['data={name="table",path="nowhere"}'], "--examples"),
        (["task.model=nowhere"], "neither a folder"),
        (['personal=["nothing"]'], "matches no trained tensor"),
    ],
)
def test_what_keeps_a_plan_from_being_planned_is_one_line(settings: list[str], words: str) -> None:
    given = [word for one in settings for word in ("--set", one)]
    result = strict("plan", *given)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_examples_must_be_some() -> None:
    result = strict("plan", "--examples", 0)
    assert result.exit_code == 2 and "at least 1" in result.stderr


def test_a_model_that_decides_by_its_numbers_is_planned_without_operations() -> None:
    class Decides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.head(x[torch.nonzero(x.sum(1) > -1e9)[:, 0]])
            return found

    from fedpeft.tasks.module import ModuleTask

    plan = plan_of(task=ModuleTask(Decides, column="point"))
    found = forecast(plan)
    assert found.traffic.whole
    assert found.training.error
    assert any("could not be told" in note for note in found.notes)
