"""A method on a small model of a family, as a run would open it: built, tuned, one batch forwards
and backwards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedpeft.core.outputs import LOGITS, Outputs, head_input
from fedpeft.core.types import Batch
from fedpeft.errors import PlanError
from fedpeft.plan.models import build_model
from fedpeft.registry import build
from fedpeft.tasks.fit import find_new, note_new, note_output, output_layers
from fedpeft.tasks.pixels import sides
from fedpeft.tasks.pretrained import NOTHING, check_causal
from tools.models.small import config_for

MAPPINGS = {
    "image-classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    "text-classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "causal-lm": "MODEL_FOR_CAUSAL_LM_MAPPING",
}
LARGEST = 15_000_000
"""Parameters of a small model; families that do not get smaller are left out."""
CLASSES = ("a", "b", "c")


@dataclass(frozen=True)
class Outcome:
    """What came of it: "yes", "key" for what needs a key of the plan, "no" for what is refused, and
    "raises" for what is an error of ours."""

    sign: str
    reason: str = ""


@dataclass(frozen=True)
class Small:
    """As much of a task as a model needs."""

    kind: str
    config: Any
    made: type

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        model: nn.Module = self.made(self.config)
        if self.kind == "causal-lm":
            note_output(model)
            check_causal(type(model).__name__, model)
        else:
            note_new(model, find_new(model, output_layers(model, self.config), NOTHING))
        return model

    def example(self) -> Batch:
        label = torch.zeros(1, dtype=torch.long)
        if self.kind == "image-classification":
            seen = getattr(self.config, "vision_config", self.config)
            height, width = sides(getattr(seen, "image_size", None)) or (64, 64)
            channels = int(getattr(seen, "num_channels", 3))
            return {"pixel_values": torch.zeros(1, channels, height, width), "label": label}
        ids = torch.tensor([[4, 5, 6, 7, 8, 2]])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "label": label}

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        with head_input(model, head) as seen:
            logits = model(**{name: x for name, x in batch.items() if name != "label"}).logits
        return {LOGITS: logits, **seen}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        logits = outputs[LOGITS]
        pooled = logits if logits.ndim == 2 else logits.mean(1)
        return cross_entropy(pooled, batch["label"], reduction="none")

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": self.losses(outputs, batch)}


def small_model(kind: str, family: str) -> Small | str:
    """The task of a family, or why no small model of it can be made here."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto

    try:
        chosen = getattr(modeling_auto, MAPPINGS[kind])[CONFIG_MAPPING[family]]
        made = chosen[0] if isinstance(chosen, tuple) else chosen
        config = _labelled(family)
        with torch.device("meta"):
            size = sum(x.numel() for x in made(config).parameters())
    except Exception as error:  # a library that is not installed, numbers that do not fit together
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:90]}"
    if size > LARGEST:
        return f"{size / 1e6:.0f} million parameters even with small numbers"
    return Small(kind, config, made)


def try_method(task: Small, method: str) -> Outcome:
    """Build the model with the method in it, as every plan does."""
    plan = SimpleNamespace(
        task=task, method=build("method", method), seed=1, local=SimpleNamespace(event=None)
    )
    try:
        model = build_model(plan, CLASSES)
    except PlanError as error:
        text = str(error)
        ours = "does not go through the model" in text
        return Outcome("raises" if ours else "key" if "key `" in text else "no", text)
    except Exception as error:  # what a user would see as a traceback
        return Outcome("raises", f"{type(error).__name__}: {error}".splitlines()[0])
    return Outcome("yes" if plan.method.names(model) else "no", "trains nothing")


def _labelled(family: str) -> Any:
    try:
        config = config_for(family)
    except Exception:  # some configurations check their numbers against each other
        from transformers import CONFIG_MAPPING

        config = CONFIG_MAPPING[family]()
    config.id2label = dict(enumerate(CLASSES))
    if getattr(config, "is_encoder_decoder", False):
        config.decoder_start_token_id = 0
    return config
