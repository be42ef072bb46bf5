"""Models of four kinds, small enough to build in milliseconds, and what the tests of methods do
with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedpeft.compute import further
from fedpeft.core.interfaces import Method
from fedpeft.core.outputs import LOGITS, Outputs, head_input
from fedpeft.core.seeds import seed_torch
from fedpeft.core.types import Batch, Tensors
from fedpeft.registry import build

KINDS = ("vit", "bert", "llama", "lm")


def model_of(kind: str, **settings: Any) -> nn.Module:
    """A model with weights of its own kind, the same ones every time, none of them zero."""
    with seed_torch(7):
        model = _built(kind, settings)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval().requires_grad_(False)


def _built(kind: str, settings: dict[str, Any]) -> nn.Module:
    import transformers as hf

    size = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    size |= {"num_labels": 3, **settings}
    if kind == "vit":
        config = hf.ViTConfig(image_size=8, patch_size=4, num_channels=1, **size)
        model: nn.Module = hf.ViTForImageClassification(config)
    elif kind == "bert":
        config = hf.BertConfig(
            vocab_size=64, max_position_embeddings=16, hidden_dropout_prob=0.0, **size
        )
        model = hf.BertForSequenceClassification(config)
    else:
        config = hf.LlamaConfig(vocab_size=64, num_key_value_heads=2, pad_token_id=0, **size)
        model = (hf.LlamaForCausalLM if kind == "lm" else hf.LlamaForSequenceClassification)(config)
    return model


def batch_of(kind: str, size: int = 4) -> dict[str, Tensor]:
    """Inputs, labels and mask."""
    draws = torch.Generator().manual_seed(3)
    batch = {"label": torch.arange(size) % 3, "mask": torch.ones(size)}
    if kind == "vit":
        return {"pixel_values": torch.randn(size, 1, 8, 8, generator=draws), **batch}
    ids = torch.randint(1, 64, (size, 6), generator=draws)
    seen = torch.ones_like(ids)
    ids[0, 4:], seen[0, 4:] = 0, 0  # the first text is shorter
    return {"input_ids": ids, "attention_mask": seen, **batch}


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """The logits of a classifier, (batch, classes), or of a language model, (batch, length,
    vocabulary)."""
    out: Tensor = model(
        **{name: x for name, x in batch.items() if name not in ("label", "mask")}
    ).logits
    return out


@dataclass(frozen=True)
class Classify:
    """As much of a task as an objective needs; a language model's classes are the first of its
    vocabulary."""

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        with head_input(model, head) as seen:
            logits = logits_of(model, batch)
        return {LOGITS: logits, **seen}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        logits = outputs[LOGITS]
        return cross_entropy(
            logits if logits.ndim == 2 else logits.mean(1), batch["label"], reduction="none"
        )

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": self.losses(outputs, batch)}


def losses_of(task: Any, model: nn.Module, batch: Batch) -> Tensor:
    """The task's losses of a forward pass."""
    return further.losses_of(task, task.forward(model, batch), batch)


def method(spec: Mapping[str, Any] | str) -> Method:
    built: Method = build("method", spec)
    return built


def injected(
    spec: Mapping[str, Any] | str, kind: str, **settings: Any
) -> tuple[nn.Module, list[str]]:
    """A model of the kind with the method in it, and the names of what is trained."""
    made = method(spec)
    with seed_torch(11):
        model = made.inject(model_of(kind, **settings))
    return model.eval(), list(made.names(model))


def random_like(tensors: Tensors) -> dict[str, Tensor]:
    """Other values of the same shapes, none of them zero, near the old ones."""
    draws = torch.Generator().manual_seed(5)
    return {n: x + 0.1 + 0.2 * torch.rand(x.shape, generator=draws) for n, x in tensors.items()}
