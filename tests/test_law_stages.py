"""Laws of every registered stage. A new one is tested by being registered."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from marks import slow_but
from rounds import distance, points_plan, run

from fedpeft.core.interfaces import Coding, Stage
from fedpeft.core.secrets import Secret
from fedpeft.core.tensors import equal, layout
from fedpeft.core.types import Cohort, Context, Tensors, Update, Weighted
from fedpeft.errors import PlanError
from fedpeft.plan.reading import read_plan
from fedpeft.registry import build, names
from fedpeft.rounds.site import open_site
from fedpeft.storage.client_memory import Folder

every = pytest.mark.parametrize("name", sorted(names("stage")))

SECRET = Secret(bytes(32))
CONTEXT = Context("run", 0, 3, "c0", 10, 2, 7, SECRET)
COHORT = Cohort(0, 10, 2, {"c0": 1.0, "c1": 1.0}, 1, SECRET)
NEEDED = {"client_dp": {"noise_multiplier": 1.0}, "local_dp": {"noise_multiplier": 1.0}}
"""What is calibrated before a stage is used."""


def made(name: str) -> Stage:
    stage: Stage = build("stage", {"name": name, **NEEDED.get(name, {})})
    return stage


def update(seed: int, dtype: torch.dtype = torch.float32) -> Update:
    draws = torch.Generator().manual_seed(seed)
    delta = {
        "a": torch.randn(4, 5, generator=draws).to(dtype),
        "b": torch.randn(3, generator=draws).to(dtype),
    }
    return Update("c0", delta, 2.0, {"loss": Weighted(1.0, 2.0)})


@every
def test_names_shapes_and_types_stay_and_arguments_are_not_touched(name: str) -> None:
    stage = made(name)
    memory: Tensors = {}
    for seed in range(3):
        given_ = update(seed)
        olds = [{n: x.clone() for n, x in group.items()} for group in (given_.delta, memory)]
        up, kept = stage.on_client(given_, memory, CONTEXT)
        came = stage.on_arrival(up)
        down = stage.on_server(came, COHORT)
        assert layout(up.delta) == layout(down.delta) == layout(given_.delta)
        assert {n: x.shape for n, x in came.delta.items()} == {
            n: x.shape for n, x in given_.delta.items()
        }
        assert all(x.dtype in (torch.float32, torch.float64) for x in came.delta.values())
        assert equal(given_.delta, olds[0]) and equal(memory, olds[1])
        memory = kept


@every
def test_all_memory_is_in_what_is_returned(name: str) -> None:
    stage = made(name)
    _, memory = stage.on_client(update(0), {}, CONTEXT)
    stage.on_client(update(1), {}, CONTEXT)
    (a, memory_a), (b, memory_b) = (stage.on_client(update(2), memory, CONTEXT) for _ in range(2))
    assert equal(a.delta, b.delta) and equal(memory_a, memory_b)


@every
def test_a_memory_is_announced(name: str) -> None:
    stage = made(name)
    assert stage.remembers == bool(stage.on_client(update(0), {}, CONTEXT)[1])


def feedback(**codec: object) -> Stage:
    stage: Stage = build("stage", {"name": "error_feedback", "codec": codec})
    return stage


def test_error_feedback_sends_everything_in_the_end() -> None:
    stage, sent = feedback(name="topk", density=0.25), torch.zeros(4)
    memory: Tensors = {}
    first, nothing = torch.tensor([4.0, -3.0, 2.0, 1.0]), torch.zeros(4)
    waiting = []
    for delta in (first, nothing, nothing, nothing):
        up, memory = stage.on_client(Update("c0", {"a": delta}), memory, CONTEXT)
        sent = sent + up.delta["a"]
        waiting.append(memory["a"].tolist())
    assert waiting == [[0, -3, 2, 1], [0, 0, 2, 1], [0, 0, 0, 1], [0, 0, 0, 0]] and torch.equal(
        sent, first
    )


def test_what_waits_is_added_to_what_comes() -> None:
    stage = feedback(name="topk", density=0.5)
    up, memory = stage.on_client(Update("c0", {"a": torch.tensor([1.0, 3.0])}), {}, CONTEXT)
    assert up.delta["a"].tolist() == [0, 3] and memory["a"].tolist() == [1, 0]
    up, memory = stage.on_client(Update("c0", {"a": torch.tensor([1.5, 2.0])}), memory, CONTEXT)
    assert up.delta["a"].tolist() == [2.5, 0] and memory["a"].tolist() == [0, 2]


@pytest.mark.parametrize("codec", [{"name": "dense"}, {"name": "topk", "density": 1.0}])
def test_with_a_lossless_codec_it_is_the_identity(codec: dict[str, object]) -> None:
    stage = feedback(**codec)
    memory: Tensors = {}
    for seed in range(3):
        up, memory = stage.on_client(update(seed), memory, CONTEXT)
        assert (
            equal(up.delta, update(seed).delta)
            and up.weight == 2.0
            and up.metrics == update(seed).metrics
        )
        assert all(not x.any() for x in memory.values())


@pytest.mark.parametrize("codec", sorted(names("codec")))
@pytest.mark.parametrize(
    "dtype", slow_but([torch.bfloat16], [torch.float32, torch.bfloat16, torch.float64])
)
@given(seed=st.integers(0, 1000))
def test_sent_and_waiting_are_all_that_came(codec: str, dtype: torch.dtype, seed: int) -> None:
    stage = feedback(name=codec)
    memory: Tensors = {}
    came, sent = torch.zeros(4, 5).double(), torch.zeros(4, 5).double()
    for k in range(5):
        given_ = update(seed + k, dtype)
        up, memory = stage.on_client(given_, memory, CONTEXT)
        came, sent = came + given_.delta["a"].double(), sent + up.delta["a"].double()
        codec_, how = build("codec", codec), Coding("up", CONTEXT.seed, CONTEXT.round)
        # The uplink drops nothing further.
        assert equal(codec_.decode(codec_.encode(up.delta, how), how), up.delta)
    torch.testing.assert_close(sent + memory["a"].double(), came, rtol=0, atol=1e-5)
    assert memory["a"].dtype == (torch.float64 if dtype is torch.float64 else torch.float32)


def test_ef21_by_hand() -> None:
    """The change is always (1, 2) and one entry is sent: 2, then 1, then nothing that is new. The
    server's mean of all is that of the only client, so the change from the second round on."""
    stage: Any = build("stage", {"name": "ef21", "codec": {"name": "topk", "density": 0.5}})
    alone = Cohort(0, 1, 1, {"c0": 1.0}, 1, SECRET)
    memory: Tensors = {}
    kept: Tensors = {}
    sent, steps = [], []
    for _ in range(3):
        came = Update("c0", {"a": torch.tensor([1.0, 2.0])})
        up, memory = stage.on_client(came, memory, CONTEXT)
        down, kept = stage.remember_update(up, kept, alone)
        sent.append(up.delta["a"].tolist())
        steps.append(down.delta["a"].tolist())
    assert sent == [[0, 2], [1, 0], [0, 0]] and steps == [[0, 2], [1, 2], [1, 2]]


def test_ef21_keeps_the_mean_of_all_clients_whoever_answers() -> None:
    """Four clients, two a round: the mean is of what each has sent so far."""
    stage: Any = build("stage", {"name": "ef21", "codec": {"name": "topk", "density": 0.25}})
    memories: dict[str, Tensors] = {f"c{k}": {} for k in range(4)}
    kept: Tensors = {}
    for round in range(6):
        pair = [f"c{(round + k) % 4}" for k in (0, 1)]
        ups = []
        for client in pair:
            came = Update(client, update(hash_of(client, round)).delta)
            up, memories[client] = stage.on_client(came, memories[client], CONTEXT)
            ups.append(up.delta)
        mean = {n: (ups[0][n] + ups[1][n]) / 2 for n in ups[0]}
        cohort = Cohort(round, 4, 2, dict.fromkeys(pair, 1.0), 1, SECRET)
        down, kept = stage.remember_update(Update("", mean), kept, cohort)
        for name, x in down.delta.items():
            every = sum(m[name] for m in memories.values() if m)
            torch.testing.assert_close(x, every / 4)


def test_ef21_with_a_lossless_codec_is_federated_averaging(tmp_path: Path) -> None:
    changes = {"cohort": 24, "rounds": 3, "weighting": "uniform"}
    site = open_site(points_plan())
    plain = run(site, points_plan(**changes))[-1][0]
    ef21 = run(site, points_plan(**changes, stages=["ef21"]), Folder(tmp_path))[-1][0]
    assert distance(ef21.params, plain.params) < 1e-6
    assert layout(ef21.memory["stage0"]) == layout(plain.params)


def hash_of(client: str, round: int) -> int:
    return 10 * round + int(client[1:])


def test_ef21_lets_statistics_and_integers_pass() -> None:
    delta = {"n": torch.tensor([7]), "bn.running_mean": torch.tensor([0.5]), "a": torch.ones(1)}
    stage: Any = build("stage", {"name": "ef21", "codec": "dense"})
    up, memory = stage.on_client(Update("c0", delta), {}, CONTEXT)
    up, memory = stage.on_client(Update("c0", delta), memory, CONTEXT)
    down, kept = stage.remember_update(up, {}, COHORT)
    assert down.delta["n"].tolist() == [7] and down.delta["bn.running_mean"].tolist() == [0.5]
    assert up.delta["a"].tolist() == [0] and memory.keys() == kept.keys() == {"a"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"aggregator": "median"}, 'with ef21 set aggregator = "mean"'),
        ({"stages": ["ef21", "error_feedback"]}, "take ef21 or error_feedback"),
        ({"local": {"correction": "scaffold"}}, "leave out Scaffold, or ef21"),
        ({"exchange": {"name": "secure", "threshold": 2}}, "a secure sum drops nothing"),
        ({"stages": ["ef21", "local_dp"], "weighting": "uniform"}, "for ever: leave it out"),
    ],
)
def test_what_ef21_does_not_go_with(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        read_plan({"uplink": "dense", "stages": ["ef21"], **changes})


def test_integers_have_no_residual() -> None:
    delta = {"n": torch.tensor([1, 2**40]), "a": torch.tensor([0.3, 0.1])}
    up, memory = feedback(name="topk", density=0.5).on_client(Update("c0", delta), {}, CONTEXT)
    assert up.delta["n"].tolist() == [1, 2**40] and memory.keys() == {"a"}
