"""Laws of every registered stage. A new one is tested by being registered."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.core.interfaces import Stage
from fedpeft.core.secrets import Secret
from fedpeft.core.tensors import equal, layout
from fedpeft.core.types import Cohort, Context, Tensors, Update, Weighted
from fedpeft.registry import build, names

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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@given(seed=st.integers(0, 1000))
def test_sent_and_waiting_are_all_that_came(codec: str, dtype: torch.dtype, seed: int) -> None:
    stage = feedback(name=codec)
    memory: Tensors = {}
    came, sent = torch.zeros(4, 5).double(), torch.zeros(4, 5).double()
    for k in range(5):
        given_ = update(seed + k, dtype)
        up, memory = stage.on_client(given_, memory, CONTEXT)
        came, sent = came + given_.delta["a"].double(), sent + up.delta["a"].double()
        codec_ = build("codec", codec)
        # The uplink drops nothing further.
        assert equal(codec_.decode(codec_.encode(up.delta)), up.delta)
    torch.testing.assert_close(sent + memory["a"].double(), came, rtol=0, atol=1e-5)
    assert memory["a"].dtype == (torch.float64 if dtype is torch.float64 else torch.float32)


def test_integers_have_no_residual() -> None:
    delta = {"n": torch.tensor([1, 2**40]), "a": torch.tensor([0.3, 0.1])}
    up, memory = feedback(name="topk", density=0.5).on_client(Update("c0", delta), {}, CONTEXT)
    assert up.delta["n"].tolist() == [1, 2**40] and memory.keys() == {"a"}
