"""What a client sends of a large language model: counted on networks from their configurations, on
no device."""

from pathlib import Path
from typing import Any

import pytest
import torch
from method_models import method
from torch import nn

from fedpeft.codecs.float16 import Float16
from fedpeft.codecs.narrowing import narrow_dtype
from fedpeft.compute.trainable import tensors_of
from fedpeft.core.types import Update
from fedpeft.wire.frames import headers
from fedpeft.wire.payloads import pack

LLAMA: dict[str, Any] = {"vocab_size": 32_000, "tie_word_embeddings": False}
GEMMA: dict[str, Any] = {"vocab_size": 256_000, "head_dim": 256, "tie_word_embeddings": True}


def _sizes(hidden: int, layers: int, heads: int, groups: int, between: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "intermediate_size": between,
    }


# Kind, configuration, all parameters, and those of LoRA on query and value with ranks 8 and 16. Of
# a layer LoRA has rank * (hidden + query outputs + hidden + value outputs); twice that in float16,
# which is bytes.
MODELS: dict[str, tuple[str, dict[str, Any], int, dict[int, int]]] = {
    "TinyLlama-1.1B": (
        "Llama",
        LLAMA | _sizes(2048, 22, 32, 4, 5632),
        1_100_048_384,
        {8: 1_126_400, 16: 2_252_800},
    ),
    "Llama-7B": (
        "Llama",
        LLAMA | _sizes(4096, 32, 32, 32, 11008),
        6_738_415_616,
        {8: 4_194_304, 16: 8_388_608},
    ),
    "Llama-13B": (
        "Llama",
        LLAMA | _sizes(5120, 40, 40, 40, 13824),
        13_015_864_320,
        {8: 6_553_600, 16: 13_107_200},
    ),
    "Gemma-2B": (
        "Gemma",
        GEMMA | _sizes(2048, 18, 8, 1, 16384),
        2_506_172_416,
        {8: 921_600, 16: 1_843_200},
    ),
    "Gemma-7B": (
        "Gemma",
        GEMMA | _sizes(3072, 28, 16, 16, 24576),
        8_537_680_896,
        {8: 3_211_264, 16: 6_422_528},
    ),
    "Qwen2.5-0.5B": (
        "Qwen2",
        {"vocab_size": 151_936, "tie_word_embeddings": True} | _sizes(896, 24, 14, 2, 4864),
        494_032_768,
        {8: 540_672, 16: 1_081_344},
    ),
}


def _network(kind: str, config: dict[str, Any]) -> nn.Module:
    import transformers

    with torch.device("meta"):
        model: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(
            getattr(transformers, f"{kind}Config")(**config)
        )
    return model.requires_grad_(False)


ROUNDS = 3
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "one-shot.md"


def _row(name: str) -> list[str]:
    """What the page says of a model."""
    [line] = [
        one
        for one in RESULTS.read_text(encoding="utf-8").splitlines()
        if one.startswith(f"| {name} |")
    ]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.parametrize("name", MODELS)
def test_the_page_has_the_bytes_of_both_ways(name: str) -> None:
    """One message is two bytes for each parameter, or each number of the factors; a round has one
    down and one up."""
    kind, config, every, ranks = MODELS[name]
    model = _network(kind, config)
    whole = method("full")
    shapes = tensors_of(whole.inject(model))
    sent = [shapes[one] for one in whole.names(model)]
    full, low = (
        sum(x.numel() * narrow_dtype(x.dtype, torch.float16).itemsize for x in sent),
        2 * ranks[16],
    )
    assert full == 2 * every
    both = [f"{full * 2 * rounds / 1e9:.1f} GB" for rounds in (ROUNDS, 1)]
    both += [f"{low * 2 * rounds / 1e6:.1f} MB" for rounds in (ROUNDS, 1)]
    one = [
        f"{every:,}",
        f"{full / 1e9:.2f} GB",
        *(f"{2 * ranks[rank] / 1e6:.2f} MB" for rank in (8, 16)),
    ]
    assert _row(name) == one + both


@pytest.mark.parametrize("name", MODELS)
def test_a_client_sends_two_bytes_for_each_number_of_its_factors(name: str) -> None:
    kind, config, every, ranks = MODELS[name]
    for rank, count in ranks.items():
        model = _network(kind, config)
        assert sum(x.numel() for x in model.parameters()) == every
        made = method({"name": "lora", "rank": rank, "target": ["q_proj", "v_proj"]})
        shapes = tensors_of(made.inject(model))
        delta = {one: torch.zeros(shapes[one].shape) for one in made.names(model)}
        payload = pack(Update("a", delta), Float16())
        assert len(payload) - headers(payload) == 2 * count
        assert headers(payload) < 6_000
