"""Where tuners go in models of many families, and what one batch tells before training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import change_config
from torch import nn

from fedpeft import read_plan
from fedpeft.compute.first_pass import notes_on
from fedpeft.core.types import Table
from fedpeft.errors import DataError, PlanError
from fedpeft.methods.adapter import Adapted
from fedpeft.methods.targets import attention_projections, find_targets
from fedpeft.methods.transformer_layout import mlp_outputs
from fedpeft.tasks.causal_lm import CausalLM
from fedpeft.tasks.text_classification import TextClassification, longest_text
from tools.models.folders import save_family, save_tokenizer
from tools.models.small import config_for

HYBRID: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention"]}
MAMBA: dict[str, Any] = {
    "layer_types": ["mamba", "attention"],
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
}
WIDTHS = {"in_features": 5, "out_features": 10}
LM = "AutoModelForCausalLM"
TEXTS = "AutoModelForSequenceClassification"
PICTURES = "AutoModelForImageClassification"


def empty(family: str, auto: str, **settings: Any) -> nn.Module:
    """A model of the family whose weights take no memory."""
    import transformers

    config = config_for(family, **settings)
    config.architectures = None
    model_class = getattr(transformers, auto)._model_mapping[type(config)]
    chosen = model_class[0] if isinstance(model_class, tuple) else model_class
    with torch.device("meta"):
        model: nn.Module = chosen(config)
    return model


@pytest.mark.parametrize(
    ("family", "auto", "names"),
    [
        ("gpt2", LM, ["c_attn"]),
        ("gpt_bigcode", LM, ["c_attn"]),
        ("gpt_neox", LM, ["query_key_value"]),
        ("bloom", LM, ["query_key_value"]),
        ("phi3", LM, ["qkv_proj"]),
        ("mamba", LM, ["in_proj"]),
        ("deepseek_v3", LM, ["q_b_proj", "kv_b_proj"]),
        ("deberta", TEXTS, ["in_proj"]),
        ("deberta-v2", TEXTS, ["query_proj", "value_proj"]),
        ("modernbert", TEXTS, ["Wqkv"]),
        ("t5", TEXTS, ["q", "v"]),
        ("convnext", PICTURES, ["pwconv1"]),
        ("hiera", PICTURES, ["qkv"]),
        ("levit", PICTURES, ["queries_keys_values.linear", "keys_values.linear"]),
    ],
)
def test_the_projections_of_a_family(family: str, auto: str, names: list[str]) -> None:
    model = empty(family, auto)
    assert set(attention_projections(model, "qv")) <= set(names)
    assert find_targets(model, tuple(attention_projections(model, "qv")))


@pytest.mark.parametrize(
    ("family", "settings", "names"),
    [
        ("qwen3_next", HYBRID, {"in_proj_qkvz", "q_proj", "v_proj"}),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, {"in_proj", "q_proj", "v_proj"}),
        ("falcon_h1", {}, {"in_proj", "q_proj", "v_proj"}),
        ("granitemoehybrid", MAMBA, {"in_proj", "q_proj"}),
    ],
)
def test_all_kinds_of_blocks_of_a_hybrid_are_tuned(
    family: str, settings: Any, names: set[str]
) -> None:
    assert names <= set(attention_projections(empty(family, LM, **settings), "qv"))


@pytest.mark.parametrize(
    ("family", "auto", "layers"),
    [
        # two blocks a tower, query and value; a decoder has them twice, for itself and the encoder
        ("t5", "AutoModelForSeq2SeqLM", {"encoder.": 4, "decoder.": 8}),
        ("bart", TEXTS, {"model.encoder.": 4, "model.decoder.": 8}),
        ("clip", "AutoModel", {"text_model.": 4, "vision_model.": 4}),
        ("siglip", "AutoModel", {"text_model.": 4, "vision_model.": 4}),
        ("mixtral", LM, {"model.layers.": 4}),
    ],
)
def test_every_tower_is_tuned_or_the_one_that_is_named(
    family: str, auto: str, layers: dict[str, int]
) -> None:
    model = empty(family, auto)
    tuned = tuned_layers(model, ())
    assert {tower: sum(n.startswith(tower) for n in tuned) for tower in layers} == layers
    assert len(tuned) == sum(layers.values())
    for tower, number in layers.items():
        last = tuned[-1].rpartition(".")[2]
        named = tuned_layers(model, (f"{tower}*.{last}",))
        assert len(named) == number / 2 and all(n.startswith(tower) for n in named)


def tuned_layers(model: nn.Module, target: tuple[str, ...]) -> list[str]:
    """The layers that LoRA goes into, by their whole names."""
    names = find_targets(model, target, "") or attention_projections(model, "qv")
    return [
        n for n, _ in model.named_modules() if any(n == t or n.endswith(f".{t}") for t in names)
    ]


def test_a_model_with_a_block_of_unknown_names_is_refused() -> None:
    class Attention(nn.Module):
        def __init__(self, *names: str) -> None:
            super().__init__()
            for name in names:
                self.add_module(name, nn.Linear(2, 2))

    model = nn.Module()
    model.blocks = nn.ModuleList()
    for names in (("q_proj", "v_proj"), ("mine", "yours")):
        block = nn.Module()
        block.attention = Attention(*names)
        model.blocks.append(block)
    with pytest.raises(PlanError, match=r"of 'blocks.1.attention' .*all-linear.*mine, q_proj"):
        attention_projections(model, "qv")


def test_all_linear_is_every_layer_but_the_head_and_the_output() -> None:
    bert = find_targets(empty("distilbert", TEXTS), ("all-linear",))
    assert len(bert) == 2 * 6 + 1  # six a block, and the pre-classifier
    gpt2 = find_targets(empty("gpt2", LM), ("all-linear",))
    assert len(gpt2) == 2 * 4 and "transformer.h.1.mlp.c_fc" in gpt2


def test_a_pattern_names_a_tower() -> None:
    model = empty("bart", TEXTS)
    assert find_targets(model, ("*.encoder.*.q_proj",)) == [
        f"model.encoder.layers.{k}.self_attn.q_proj" for k in range(2)
    ]
    with pytest.raises(PlanError, match=r"no linear layer has a name like 'x\*'.*such as 'model"):
        find_targets(model, ("x*",))


def test_a_target_in_the_head_is_refused_and_one_that_also_means_it_passes_over_it() -> None:
    model = empty("roberta", TEXTS)
    with pytest.raises(PlanError, match=r"'out_proj' means 'classifier\.out_proj' alone"):
        find_targets(model, ("out_proj",))
    method: Any = read_plan({"method": {"name": "lora", "target": ["dense"]}}).method
    assert method.config(model).exclude_modules == ["classifier.dense"]


def test_experts_in_one_tensor_are_named_as_such() -> None:
    with pytest.raises(PlanError, match=r"'gate_up_proj' is a parameter and no layer"):
        find_targets(empty("mixtral", LM), ("gate_up_proj",))


def test_an_adapter_stands_behind_gpt2_s_transposed_linear_layer() -> None:
    model = empty("gpt2", LM)
    assert mlp_outputs(model)[0] == "transformer.h.0.mlp.c_proj"
    adapted = read_plan({"method": {"name": "adapter", "head": ""}}).method.inject(model)
    layer = adapted.get_submodule("transformer.h.0.mlp.c_proj")
    assert isinstance(layer, Adapted) and layer.adapter.down.in_features == 32


def test_what_no_gradient_reaches_is_left_out_and_named(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "dinov2", use_mask_token=True)
    plan = read_plan(
        {"task": {"name": "image-classification", "model": str(folder)}, "method": "full"}
    )
    model = plan.model(["a", "b"])
    names = plan.method.names(model)
    assert "dinov2.embeddings.mask_token" not in names
    assert "dinov2.embeddings.cls_token" in names


@pytest.fixture
def two_towers(tmp_path: Path) -> dict[str, Any]:
    """The task of a text model that may look at pictures, and here gets none."""
    seen = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "image_size": 32}
    vision = {**seen, "num_attention_heads": 4, "patch_size": 16, "projection_dim": 32}
    return {
        "name": "causal-lm",
        "model": str(save_family(tmp_path, "git", LM, vision_config=vision)),
        "max_length": 8,
    }


def test_a_tower_that_the_task_does_not_use_is_left_out_and_named(
    two_towers: dict[str, Any],
) -> None:
    plan = read_plan({"task": two_towers, "method": "lora"})
    model = plan.model([])
    names = plan.method.names(model)
    assert names and not [name for name in names if "image_encoder" in name]
    assert "left out, since the task's loss does not depend on it: git.image_encoder" in str(
        notes_on(model)
    )


def test_a_method_that_no_loss_depends_on_is_refused(two_towers: dict[str, Any]) -> None:
    plan = read_plan({"task": two_towers, "method": {"name": "lora", "target": ["q_proj"]}})
    with pytest.raises(PlanError, match="LoRA on GitForCausalLM: the task's loss depends on noth"):
        plan.model([])


def test_what_a_forward_raises_is_one_line_before_training() -> None:
    from fedpeft.rounds.site import open_site

    plan = read_plan(
        {
            "task": {"name": "module", "module": "torch.nn:Linear", "arguments": WIDTHS},
            "data": {"name": "digits", "subset": 200},
            "partition": {"name": "iid", "clients": 2},
            "method": {"name": "full"},
        }
    )
    with pytest.raises(
        PlanError, match=r"Full on Linear: a batch does not go through .*x \[2, 1, 8, 8"
    ):
        open_site(plan)


@pytest.mark.parametrize("method", ["head", "bias", {"name": "lora", "target": ["classifier.1"]}])
def test_statistics_of_a_frozen_batchnorm_stay(tmp_path: Path, method: Any) -> None:
    folder = save_family(
        tmp_path, "resnet", embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic"
    )
    task = {"name": "image-classification", "model": str(folder), "size": 32}
    if isinstance(method, dict):
        method = {**method, "head": ""}
    plan = read_plan({"task": task, "method": method})
    model = plan.model(["a", "b"]).train()
    before = {name: x.clone() for name, x in model.named_buffers()}
    x = torch.randn(4, 3, 32, 32)
    whole, alone = model(x).logits, model(x[:1]).logits
    assert all(torch.equal(x, before[name]) for name, x in model.named_buffers())
    assert torch.allclose(whole[:1], alone, atol=1e-5)
    full = read_plan({"task": task, "method": "full"}).model(["a", "b"]).train()
    full(x)
    assert any(not torch.equal(x, before[n]) for n, x in full.named_buffers())


def test_an_empty_or_foreign_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "bert")
    table = Table({"text": ["one two", "three foreign"], "label": torch.tensor([0, 1])})
    TextClassification(str(folder), 16).prepare(table)  # one of four words is unknown
    foreign = Table({"text": ["ein zwei", "drei vier"], "label": torch.tensor([0, 1])})
    with pytest.raises(DataError, match="100% of the tokens of these texts are unknown"):
        TextClassification(str(folder), 16).prepare(foreign)
    empty = save_family(tmp_path / "empty", "bert")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (empty / file).unlink()
    with pytest.raises(PlanError, match="knows no word: its vocabulary is empty except for"):
        TextClassification(str(empty), 16).prepare(table)


@pytest.mark.parametrize("task", [TextClassification, CausalLM])
def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path, task: Any) -> None:
    folder = save_family(tmp_path, "llama", vocab_size=8)
    table = Table({"text": ["eight one"], "label": torch.tensor([0])})
    with pytest.raises(PlanError, match=r"makes the token 11, and the model has 8 rows, 0 to 7"):
        task(str(folder), max_length=16).prepare(table)


@pytest.mark.parametrize(
    ("family", "limit"), [("roberta", 63), ("bert", 64), ("xlnet", 0), ("mamba", 0)]
)
def test_the_usable_length_of_a_family(tmp_path: Path, family: str, limit: int) -> None:
    config_for(family).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    assert longest_text(str(tmp_path)) == limit


def test_the_padding_token_of_an_old_conversion_is_the_tokenizer_s(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "llama", pad_token_id=None)
    model: Any = TextClassification(str(folder)).build(["a", "b"])
    assert model.config.pad_token_id == 0


def test_a_language_model_that_sees_what_follows_is_refused(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "bert", "AutoModelForMaskedLM")
    with pytest.raises(PlanError, match=r"does not read left to right.*is_decoder"):
        CausalLM(str(folder)).build([])
    change_config(folder, is_decoder=True)
    assert CausalLM(str(folder)).build([]) is not None
