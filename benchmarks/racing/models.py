"""The models of the benchmarks, from their configs: random weights, since only time and memory are
measured."""

from typing import Any

from torch import Tensor, nn


def vit(classes: int, **settings: Any) -> nn.Module:
    """A ViT of 5.4 M parameters for 32x32 pixels, unless `settings` ask for another."""
    from transformers import ViTConfig, ViTForImageClassification

    tiny = dict(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=32,
        patch_size=4,
    )
    model: nn.Module = ViTForImageClassification(
        ViTConfig(**{**tiny, **settings}, num_labels=classes)
    )
    return model


def bert(classes: int) -> nn.Module:
    """A BERT of MiniLM's size, without dropout."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=classes,
    )
    model: nn.Module = BertForSequenceClassification(config)
    return model


class Head(nn.Module):
    """One linear layer, under the name that heads have."""

    def __init__(self, classes: int, features: int = 192) -> None:
        super().__init__()
        self.classifier = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(x)
        return out


MODELS = {"vit": vit, "bert": bert, "head": Head}


def forward(model: nn.Module, x: Tensor) -> Tensor:
    """The logits: of pictures, of tokens, of features."""
    if isinstance(model, Head):
        return model(x)  # type: ignore[no-any-return]
    return model(**{"pixel_values" if x.is_floating_point() else "input_ids": x}).logits  # type: ignore[no-any-return]
