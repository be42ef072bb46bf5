"""Class means under noise: one release by each client, which hides each example."""

import json
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from rounds import Recording, Tampering, on, points_plan
from running import PLAN, fedpeft
from test_agreement import node_of, said, site_of
from torch import Tensor

from fedpeft.algorithms.noisy_sums import add_noise, check_shortened, shorten
from fedpeft.audits.canaries import hatch
from fedpeft.codecs.dense import Dense
from fedpeft.core.accounting import epsilon
from fedpeft.core.conversation import Message
from fedpeft.core.secrets import Secret
from fedpeft.core.seeds import fold
from fedpeft.core.tensors import equal
from fedpeft.core.types import Event, Failure, Job, Reply
from fedpeft.core.units import say_epsilon
from fedpeft.deploy.consent import consent_to
from fedpeft.deploy.status import keep_facts, read_status
from fedpeft.errors import PlanError
from fedpeft.oneshot.contribution_header import read_header
from fedpeft.plan.calibration import round_seed
from fedpeft.plan.plan import Plan
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.post import encode_start
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Folder
from fedpeft.storage.files import load_tensors
from fedpeft.wire.payloads import encode_answer

SECRET = Secret(bytes(range(32)))
MEANS = {"name": "class_means", "clip_norm": 2.0, "noise_multiplier": 1.5}
PRIVATE: dict[str, Any] = {
    "rounds": 0,
    "weighting": "uniform",
    "delta": 1e-3,
    "accountant": "rdp",
}


def private_plan(**changes: Any) -> Plan:
    means = {**MEANS, **changes.pop("means", {})}
    return points_plan(**{**PRIVATE, "algorithms": [means], **changes})


def pair(x: Tensor, label: Tensor, clip_norm: float) -> Tensor:
    """Sums in units of C, and counts, of 3 classes, without noise, as one vector."""
    sums = torch.zeros(3, x.shape[1], dtype=torch.float64)
    sums.index_add_(0, label, shorten(x.double(), clip_norm))
    counts = torch.bincount(label, minlength=3).double()
    told = add_noise(sums, counts, clip_norm, 0.0, SECRET)
    return torch.cat([told["sums"].flatten() / clip_norm, told["counts"]]).double()


def test_one_example_more_moves_the_pair_by_no_more_than_the_noise_is_made_for() -> None:
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(40, 5, generator=draws) * 3
    label = torch.arange(40) % 3
    steps = []
    for k in range(40):
        without = torch.arange(40) != k
        step = pair(x, label, 2.0) - pair(x[without], label[without], 2.0)
        steps.append(float(step.norm()))
    assert max(steps) == pytest.approx(sqrt(2), abs=1e-5) and min(steps) >= 1
    apart = pair(x, label, 2.0)
    x[0], label[0] = -x[0], (label[0] + 1) % 3
    assert float((pair(x, label, 2.0) - apart).norm()) <= 2 + 1e-5


def test_features_are_shortened_and_those_that_are_no_numbers_count_as_zero() -> None:
    x = torch.tensor([[3.0, 4.0], [0.3, 0.4], [float("nan"), 1.0], [float("inf"), 0.0]])
    short = shorten(x.double(), 1.0)
    wanted = torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(short.float(), wanted, atol=2e-6, rtol=0)
    assert float(short.norm(dim=1).max()) <= 1


def test_the_noise_is_what_the_accountant_is_told() -> None:
    counts = torch.full((400,), 1e4, dtype=torch.float64)
    told = add_noise(torch.zeros(400, 50, dtype=torch.float64), counts, 3.0, 0.5, SECRET)
    assert float(told["sums"].std()) == pytest.approx(sqrt(2) * 0.5 * 3, rel=0.02)
    # rounding adds a twelfth to the variance
    spread = sqrt(2 * 0.5**2 + 1 / 12)
    assert float((told["counts"] - 1e4).std()) == pytest.approx(spread, rel=0.1)
    assert abs(float((told["counts"] - 1e4).mean())) < 0.15
    assert torch.equal(told["counts"], told["counts"].round())


def test_of_a_class_whose_noisy_count_is_zero_nothing_is_told() -> None:
    nothing = torch.zeros(300, 4, dtype=torch.float64), torch.zeros(300, dtype=torch.float64)
    told = add_noise(*nothing, 1.0, 1.0, SECRET)
    assert (told["counts"] >= 0).all() and 0 < int((told["counts"] == 0).sum()) < 300
    assert torch.equal(told["sums"].any(1), told["counts"] > 0)


def test_the_ledger_and_the_consent_tell_epsilon_of_one_release(points: Site) -> None:
    plan = private_plan()
    [(_, ledger)] = federate(plan, on(points, plan), start(plan, points.params()))
    spent = epsilon(Event("example", 1.5), 1, 1e-3, "rdp")
    assert ledger.privacy == {
        "epsilon": spent,
        "delta": 1e-3,
        "unit": "example",
        "accountant": "rdp",
    }
    lines = dict(consent_to(replace(points, plan=plan), "c000", points.data.clients).lines)
    assert lines["noise"] == (
        f"hides each example: epsilon = {say_epsilon(spent)} at delta = 0.001; added here"
    )
    assert lines["not hidden"] == "that this site takes part, and when"
    assert lines["leaves here"] == "27 numbers once, and no example"


def test_a_target_is_met() -> None:
    plan = private_plan(means={"noise_multiplier": None}, target_epsilon=2.0)
    site = open_site(plan)
    noise = site.plan.private_part.noise_multiplier
    assert epsilon(Event("example", noise), 1, 1e-3, "rdp") == pytest.approx(2.0, rel=2e-3)
    [(_, ledger)] = federate(site.plan, on(site, site.plan), start(site.plan, site.params()))
    assert ledger.privacy is not None and ledger.privacy["epsilon"] <= 2.0
    with pytest.raises(PlanError, match="not calibrated"):
        next(federate(plan, on(site, plan), start(plan, site.params())))


def test_with_many_examples_it_is_nearly_the_head_without_noise() -> None:
    data = {"name": "parts:Blobs", "examples": 6000}
    split = {"name": "iid", "clients": 2}
    plan = private_plan(
        means={"clip_norm": 50.0, "noise_multiplier": 0.05}, data=data, partition=split
    )
    site, heads = open_site(plan), []
    for each in (
        plan,
        points_plan(rounds=0, algorithms=["class_means"], data=data, partition=split),
    ):
        [(state, _)] = federate(each, on(site, each), start(each, site.params()))
        heads.append(torch.nn.functional.normalize(state.params["head.weight"]))
    assert float((heads[0] * heads[1]).sum(1).min()) > 0.999
    assert not torch.equal(*heads)


def test_the_same_words_get_the_same_noise_and_other_examples_other_noise(tmp_path: Path) -> None:
    plan = private_plan()
    site, store = open_site(plan), Folder(tmp_path)
    engines = [Recording(on(site, plan, store)) for _ in range(2)]
    ends = [next(federate(plan, each, start(plan, site.params())))[0].params for each in engines]
    assert engines[0].replies == engines[1].replies and equal(*ends)
    moved: Any = site.data
    rows = {**moved.train, "point": moved.train["point"] + 1e-4}
    other = Recording(on(replace(site, data=replace(moved, train=rows)), plan, store))
    list(federate(plan, other, start(plan, site.params())))
    first, second = (each.replies[0] for each in (engines[0], other))
    assert isinstance(first, Reply) and isinstance(second, Reply)
    apart = [
        a != b for a, b in zip(first.payload[-12:], second.payload[-12:], strict=True)
    ]  # the counts, which differ by their noise alone
    assert any(apart)


def test_longer_sums_than_clipping_and_noise_allow_are_refused_by_name(points: Site) -> None:
    check_shortened(torch.full((1, 4), 100.0), torch.tensor([100.0]), 2.0, 0.0)
    with pytest.raises(ValueError, match="longer than clip_norm"):
        check_shortened(torch.full((1, 4), 101.0), torch.tensor([100.0]), 2.0, 0.0)
    plan, client = private_plan(), points.data.clients[3]
    told = {"sums": torch.full((3, 8), 1e3), "counts": torch.full((3,), 2.0)}
    lie = Reply(client, encode_answer(Message({"class_means": told}), Dense()))
    engine = Tampering(on(points, plan), {client: lambda reply: lie})
    [(_, ledger)] = federate(plan, engine, start(plan, points.params()))
    assert list(ledger.failed) == [client] and "longer than" in ledger.failed[client]


def test_a_file_tells_what_it_guarantees_and_not_how_many_examples(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    settings = ["rounds=0", "weighting=uniform", "delta=1e-3", "accountant=rdp"]
    settings.append("algorithms=[{name='class_means', clip_norm=2.0, noise_multiplier=1.5}]")
    made, memory = tmp_path / "study", tmp_path / "memory"
    flags = [flag for setting in settings for flag in ("--set", setting)]
    assert fedpeft("invite", tmp_path / "plan.toml", "-o", made, *flags).exit_code == 0
    files = [tmp_path / f"{k}.safetensors" for k in range(3)]
    for k, file in enumerate(files):
        given = ("contribute", made, "--client", k, "-o", file, "--memory", memory, "--yes")
        told = fedpeft(*given)
        assert told.exit_code == 0, told.output
        assert "hides each example: epsilon = " in told.output
    header = read_header(load_tensors(files[0])[1]["header"], files[0])
    assert header.examples is None and header.privacy is not None
    assert header.privacy["epsilon"] == epsilon(Event("example", 1.5), 1, 1e-3, "rdp")
    another = [tmp_path / "another" if word == files[2] else word for word in given]
    again = fedpeft(*another)
    assert again.exit_code == 2 and "another release of the same examples" in again.output
    out = tmp_path / "merged"
    assert fedpeft("merge", made, *files, "-o", out).exit_code == 0
    line = json.loads((out / "rounds.jsonl").read_text())
    assert line["privacy"]["epsilon"] == header.privacy["epsilon"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": 1}, "would train on them without noise"),
        ({"weighting": "examples"}, 'weighting = "uniform"'),
        ({"delta": None}, "needs delta"),
        ({"means": {"clip_norm": None}}, "give class_means a clip_norm too"),
        ({"means": {"clip_norm": 0.0}}, "clip_norm must be positive"),
        ({"means": {"noise_multiplier": -1.0}}, "at least 0"),
        ({"local": {"name": "dp_sgd", "noise_multiplier": 1.0}}, "one of them"),
        ({"evaluate_at": ["owners"], "task": "parts:ClassedPoints"}, "without noise"),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        private_plan(**changes)


def test_an_audit_by_canaries_says_that_it_has_none(points: Site) -> None:
    plan = private_plan()
    with pytest.raises(PlanError, match="nobody trains: there is no audit of it"):
        hatch(replace(points, plan=plan), 20, 1, seed=1)


def test_a_nodes_owner_reads_of_the_release(tmp_path: Path) -> None:
    site = site_of(**PRIVATE, algorithms=[MEANS])
    plan, node = site.plan, node_of(site, tmp_path)
    keep_facts(tmp_path, plan, "c000")
    payload = encode_start(plan, start(plan, site.params()))
    seed = fold(round_seed(plan, 0), "client", "c000")
    job = Job(plan.run, 0, "c000", "class_means", seed, None, payload)
    assert [said(node, job).head["kind"] for _ in range(2)] == ["reply"] * 2
    [status] = read_status(tmp_path)
    spent = epsilon(Event("example", 1.5), 1, 1e-3, "rdp")
    told = f"{say_epsilon(spent)} at delta = 0.001 for one example, after 1 round of noisy sums"
    assert (status.trained, status.released, status.spent) == (0, 1, told)


def test_a_client_whose_noise_is_not_known_sends_nothing(points: Site) -> None:
    plan = private_plan(means={"noise_multiplier": None}, target_epsilon=2.0)
    payload = encode_start(plan, start(plan, points.params()))
    job = Job(plan.run, 0, "c000", "class_means", 1, None, payload)
    [reply] = on(points, plan).run([job])
    assert isinstance(reply, Failure) and "not calibrated" in reply.reason
