"""What a client sends of a large language model: counted on networks from their configurations, on no device."""

from typing import Any

import pytest
import torch
from method_models import method
from torch import nn

from fedpeft.codecs.float16 import Float16
from fedpeft.core.trainable import tensors_of
from fedpeft.core.types import Update
from fedpeft.core.wire import headers, pack

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


# Kind, configuration, all parameters, and those of LoRA on query and value with ranks 8 and 16. Of a layer LoRA has
# rank * (hidden + query outputs + hidden + value outputs); twice that in float16, which is bytes.
MODELS: dict[str, tuple[str, dict[str, Any], int, dict[int, int]]] = {
    "TinyLlama-1.1B": ("Llama", LLAMA | _sizes(2048, 22, 32, 4, 5632), 1_100_048_384, {8: 1_126_400, 16: 2_252_800}),
    "Llama-7B": ("Llama", LLAMA | _sizes(4096, 32, 32, 32, 11008), 6_738_415_616, {8: 4_194_304, 16: 8_388_608}),
    "Llama-13B": ("Llama", LLAMA | _sizes(5120, 40, 40, 40, 13824), 13_015_864_320, {8: 6_553_600, 16: 13_107_200}),
    "Gemma-2B": ("Gemma", GEMMA | _sizes(2048, 18, 8, 1, 16384), 2_506_172_416, {8: 921_600, 16: 1_843_200}),
    "Gemma-7B": ("Gemma", GEMMA | _sizes(3072, 28, 16, 16, 24576), 8_537_680_896, {8: 3_211_264, 16: 6_422_528}),
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
        model: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**config))
    return model.requires_grad_(False)


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
