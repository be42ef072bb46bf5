"""A base that does not fit its weights is refused; what is new in it is trained and named."""

from pathlib import Path
from typing import Any

import pytest
import torch
from chatting import save_chatter
from families import change_config, change_weights
from torch import nn

from fedpeft import read_plan
from fedpeft.compute.first_pass import notes_on
from fedpeft.compute.trainable import head_of, new_layers
from fedpeft.errors import PlanError
from tools.models.folders import save_family

CLASSES = ["a", "b", "c"]
DISTILLED: dict[str, Any] = {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 8, 8], "drop_path": 0.0}


def text_model(folder: Path, method: Any = "head", **task: Any) -> tuple[nn.Module, list[str]]:
    return _model({"name": "text-classification", "model": str(folder), **task}, method)


def image_model(folder: Path, method: Any = "head") -> tuple[nn.Module, list[str]]:
    return _model({"name": "image-classification", "model": str(folder)}, method)


def _model(task: Any, method: Any) -> tuple[nn.Module, list[str]]:
    plan = read_plan({"task": task, "method": method})
    model = plan.model(CLASSES)
    return model, list(plan.method.names(model))


def test_weights_under_other_names_are_refused(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "bert")
    change_weights(folder, lambda saved: {f"wrapped.{name}": x for name, x in saved.items()})
    with pytest.raises(
        PlanError,
        match=r"not those of a BertForSequenceClassification: \d+ of \d+ tensors are missing, "
        r"first 'bert\..*first 'wrapped\..*They would be random. Rename",
    ):
        text_model(folder)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "gpt2")
    config = save_family(tmp_path / "bert", "bert") / "config.json"
    (folder / "config.json").write_text(config.read_text())
    with pytest.raises(PlanError, match=r"tensors are missing, first 'bert.*'h.0.attn"):
        text_model(folder)


@pytest.mark.parametrize("key", ["intermediate_size", "vocab_size"])
def test_weights_of_another_width_are_refused(tmp_path: Path, key: str) -> None:
    folder = save_family(tmp_path, "bert")
    change_config(folder, **{key: 48})
    with pytest.raises(PlanError, match=r"another shape, first 'bert\..*is saved, .* is wanted"):
        text_model(folder)


def test_blocks_that_are_not_saved_are_refused(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "bert")
    change_config(folder, num_hidden_layers=3)
    with pytest.raises(PlanError, match=r"missing, first 'bert.encoder.layer.2\."):
        text_model(folder)


def test_a_language_model_without_its_output_layer_is_refused(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "llama", tie_word_embeddings=False)
    with pytest.raises(PlanError, match=r"1 of \d+ tensors are missing, first 'lm_head.weight'"):
        _model({"name": "causal-lm", "model": str(folder)}, "lora")


@pytest.mark.parametrize(
    ("family", "beside"),
    [
        ("distilbert", "pre_classifier"),
        ("deberta-v2", "pooler.dense"),
        ("modernbert", "head"),
        ("eurobert", "dense"),
        ("xlnet", "sequence_summary"),
    ],
)
@pytest.mark.parametrize("method", ["head", "full", {"name": "lora", "target": ["all-linear"]}])
def test_new_layers_before_the_head_are_trained_and_named(
    tmp_path: Path, family: str, beside: str, method: Any
) -> None:
    model, names = text_model(save_family(tmp_path, family), method)
    new = [name for name, _ in model.named_parameters() if name.startswith(f"{beside}.")]
    assert new and set(new) <= set(names)
    assert set(new_layers(model).beside) == set(new)
    assert beside in notes_on(model)[0]


@pytest.mark.parametrize("method", ["lora", "bias", "adapter", "layernorm", "ia3", "vera", "ffa"])
def test_every_method_trains_them(tmp_path: Path, method: str) -> None:
    _, names = text_model(save_family(tmp_path, "distilbert"), method)
    assert {"pre_classifier.weight", "pre_classifier.bias", "classifier.weight"} <= set(names)


def test_they_stay_as_they_are_where_no_head_is_trained(tmp_path: Path) -> None:
    _, names = text_model(save_family(tmp_path, "distilbert"), {"name": "lora", "head": ""})
    assert not [name for name in names if "classifier" in name]


def test_a_pooler_that_was_saved_is_not_new(tmp_path: Path) -> None:
    model, names = text_model(save_family(tmp_path, "bert"))
    assert names == ["classifier.weight", "classifier.bias"]
    assert notes_on(model) == []
    masked = save_family(tmp_path / "masked", "bert", "AutoModelForMaskedLM")
    assert "bert.pooler.dense.weight" in text_model(masked)[1]


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("t5", "classification_head"),
        ("bart", "classification_head"),
        ("xlnet", "logits_proj"),
        ("flaubert", "sequence_summary"),
        ("roberta", "classifier"),
        ("gpt2", "score"),
    ],
)
def test_the_head_is_what_has_a_row_for_each_class(tmp_path: Path, family: str, head: str) -> None:
    own: dict[str, Any] = {"decoder_start_token_id": 0} if family == "t5" else {}
    model, names = text_model(save_family(tmp_path, family, **own))
    assert head_of(model) == head
    rows = [x for name, x in model.named_parameters() if name in names and len(x) == len(CLASSES)]
    assert rows and all(not x.any() for x in rows if x.ndim == 1)  # renewed


def test_of_two_heads_both_are_new(tmp_path: Path) -> None:
    folder = save_family(
        tmp_path, "swiftformer", "AutoModelForImageClassification", num_labels=3, **DISTILLED
    )
    model, names = image_model(folder)
    assert {"head.weight", "dist_head.weight"} <= set(names)
    assert not model.get_parameter("dist_head.bias").any()
    saved = torch.nn.Linear(8, 3).weight  # the checkpoint's row count is the task's: still renewed
    assert saved.shape == model.get_parameter("dist_head.weight").shape


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(PlanError, match=r"saved adapter and no model: .*method.init = "):
        text_model(tmp_path)


@pytest.mark.parametrize("method", ["lora", "layernorm", "named"])
def test_a_head_that_is_the_embedding_is_not_left_out_in_silence(
    method: str, tmp_path: Path
) -> None:
    """A tied output layer goes by the embedding's name, under which these methods train nothing."""
    task = {"name": "causal-lm", "model": str(save_chatter(tmp_path))}
    own: dict[str, Any] = {"trains": ["*q_proj*"]} if method == "named" else {}
    words = r'head = "lm_head" would train nothing .* are .model.embed_tokens.weight. \(tied'
    with pytest.raises(PlanError, match=words) as refused:
        _model(task, {"name": method, "head": "lm_head", **own})
    assert ("target = " in str(refused.value)) == (method == "lora")
    assert _model(task, {"name": method, **own})[1]  # without it, as ever


def test_a_tied_head_may_be_trained_as_the_embedding_or_by_factors(tmp_path: Path) -> None:
    task = {"name": "causal-lm", "model": str(save_chatter(tmp_path))}
    _, names = _model(task, {"name": "head", "head": "lm_head"})
    assert names == ["model.embed_tokens.weight"]
    _, names = _model(task, {"name": "lora", "target": ["lm_head"]})
    assert [name.split(".")[0] for name in names] == ["lm_head", "lm_head"]
