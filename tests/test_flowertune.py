"""The plans for FlowerTune's boards: what a client would send, as the page says."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from method_models import method
from test_bytes_of_language_models import _network

from fedpeft import read_plan
from fedpeft.compute.trainable import tensors_of
from fedpeft.core.interfaces import Coding
from fedpeft.core.types import Update
from fedpeft.registry import build
from fedpeft.tasks.causal_lm import CausalLM
from fedpeft.wire.payloads import pack

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "results" / "flowertune.md").read_text(encoding="utf-8").splitlines()
BOARDS = {"nlp": (20, 2), "finance": (50, 5), "medical": (20, 2), "code": (10, 2)}
QWEN: dict[str, Any] = {
    "hidden_size": 1536,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}
MISTRAL: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 32_768,
    "tie_word_embeddings": False,
}


@cache
def _messages(kind: str, made: Any, up: Any, down: Any) -> tuple[int, int, int]:
    """The numbers that are trained, and the bytes of a message up and of one down."""
    model = made.inject(_network(kind, {"Qwen2": QWEN, "Mistral": MISTRAL}[kind]))
    shapes = tensors_of(model)
    delta = {name: torch.zeros(shapes[name].shape) for name in made.names(model)}
    count = sum(x.numel() for x in delta.values())
    return count, len(pack(Update("", delta), up)), len(down.encode(delta, Coding("down")))


def _cells(name: str) -> list[str]:
    [line] = [line for line in PAGE if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def _row(clients: int, cohort: int, rounds: int, up: int, down: int) -> list[str]:
    whole = (up + down) * cohort * rounds / 2**30
    digits = 3 if whole < 1 else 2
    one = [f"{up / 1e6:.2f} MB", f"{down / 1e6:.2f} MB"]
    return [f"{clients}, {cohort}", *one, f"{whole:.{digits}f} GiB"]


@pytest.mark.parametrize("board", BOARDS)
def test_the_page_has_what_a_plan_would_send(board: str) -> None:
    plan: Any = read_plan(ROOT / "plans" / f"flowertune-{board}.toml")
    assert isinstance(plan.task, CausalLM) and plan.task.model == "Qwen/Qwen2.5-1.5B-Instruct"
    clients, cohort = BOARDS[board]
    assert (vars(plan.partition)["clients"], plan.cohort) == (clients, cohort)
    count, up, down = _messages("Qwen2", plan.method, plan.uplink, plan.downlink)
    # 28 layers, rank 8, of query 1536 + 1536 and of value 1536 + 256
    assert count == 28 * 8 * (1536 + 1536 + 1536 + 256) == 1_089_536
    assert _cells(f"flowertune-{board}") == _row(clients, cohort, plan.rounds, up, down)


@pytest.mark.parametrize(("clients", "cohort"), [(20, 2), (50, 5)])
def test_the_page_has_what_the_boards_template_sends(clients: int, cohort: int) -> None:
    """Of two clients a round it is the 40.7 GB that the boards print, to a tenth."""
    lora: Any = method({"name": "lora", "rank": 32, "target": ["q_proj", "v_proj"]})
    dense: Any = build("codec", "dense")
    count, up, down = _messages("Mistral", lora, dense, dense)
    assert count == 32 * 32 * (4096 + 4096 + 4096 + 1024)
    name = f"the boards' template, {clients} clients, {cohort} a round, 200 rounds"
    assert _cells(name) == _row(clients, cohort, 200, up, down)
