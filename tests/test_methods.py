"""What single methods train and compute: the table of FedPEFT, hand-made forwards, and `peft`'s own
wrapper."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from method_models import Classify, batch_of, injected, logits_of, method, model_of, random_like
from torch import Tensor, nn

from fedpeft.codecs.dense import Dense
from fedpeft.compute.objective import Objective
from fedpeft.compute.trainable import read, tensors_of, write
from fedpeft.core.tensors import equal
from fedpeft.core.types import Update
from fedpeft.errors import PlanError
from fedpeft.methods.peft_tuners import known_warnings_ignored
from fedpeft.optimizers.sgd import SGD
from fedpeft.registry import build
from fedpeft.wire.frames import headers
from fedpeft.wire.payloads import pack

# Trained parameters of a ViT-B/16 with 100, 45 and 2 classes. The first five rows are FedPEFT's
# (arXiv:2210.01708; its 328 MB and 0.68 MB are the first and the third with 100 classes); the
# others follow from the shapes.
TABLE: list[tuple[dict[str, Any], tuple[int, int, int]]] = [
    ({"name": "full"}, (85_875_556, 85_833_261, 85_800_194)),
    ({"name": "head"}, (76_900, 34_605, 1_538)),
    ({"name": "bias"}, (179_812, 137_517, 104_450)),
    ({"name": "adapter", "shared": True}, (225_220, 182_925, 149_858)),
    ({"name": "prompt"}, (169_060, 126_765, 93_698)),
    ({"name": "adapter", "as_published": True}, (225_220, 182_925, 149_858)),
    ({"name": "scratch"}, (85_875_556, 85_833_261, 85_800_194)),
    ({"name": "adapter"}, (1_856_740, 1_814_445, 1_781_378)),
    ({"name": "adapter", "width": 8}, (233_668, 191_373, 158_306)),
    ({"name": "prompt", "deep": False}, (84_580, 42_285, 9_218)),
    ({"name": "layernorm"}, (115_300, 73_005, 39_938)),
]


def _vit_base(classes: int) -> nn.Module:
    """From the configuration, on no device: only the shapes count."""
    from transformers import ViTConfig, ViTForImageClassification

    with torch.device("meta"):
        model: nn.Module = ViTForImageClassification(ViTConfig(num_labels=classes))
    return model.requires_grad_(False)


@pytest.mark.parametrize(
    ("spec", "counts"), TABLE, ids=["-".join(map(str, s.values())) for s, _ in TABLE]
)
def test_the_bytes_of_a_vit_base_are_those_of_the_table(
    spec: Mapping[str, Any], counts: tuple[int, ...]
) -> None:
    made = method(spec)
    for classes, count in zip((100, 45, 2), counts, strict=True):
        model = made.inject(_vit_base(classes))
        every = tensors_of(model)
        tensors = [every[name] for name in made.names(model)]
        assert sum(x.numel() for x in tensors) == count
        assert sum(x.nbytes for x in tensors) == 4 * count


@pytest.mark.parametrize(
    ("spec", "counts"), TABLE[1:6], ids=["-".join(map(str, s.values())) for s, _ in TABLE[1:6]]
)
def test_a_payload_is_the_table_s_bytes_and_headers(
    spec: Mapping[str, Any], counts: tuple[int, ...]
) -> None:
    made = method(spec)
    model = made.inject(_vit_base(100))
    every = tensors_of(model)
    delta = {name: torch.zeros(every[name].shape) for name in made.names(model)}
    payload = pack(Update("a", delta), Dense())
    assert len(payload) - headers(payload) == 4 * counts[0]
    assert headers(payload) < 3_000


def _trained(
    spec: Mapping[str, Any], steps: int
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[float]]:
    """The tensors before and after some steps on one batch, and the losses."""
    model, names = injected(spec, "vit")
    objective, optimizer = Objective(model, Classify()), SGD()  # type: ignore[arg-type]
    first = read(model, names)
    params, memory, losses = dict(first), optimizer.init(first), []
    for _ in range(steps):
        gradient, each, _ = objective.gradient(params, batch_of("vit"))
        losses.append(float(each.mean()))
        params, memory = map(dict, optimizer.step(params, memory, gradient, torch.tensor(0.02)))
    return first, params, losses


def test_the_published_adapter_learns_one_bias_and_the_default_all() -> None:
    _, after, _ = _trained({"name": "adapter", "as_published": True}, 20)
    ends = {name.partition(".adapter.")[2]: x for name, x in after.items() if ".adapter." in name}
    assert sorted(ends) == ["down.bias", "down.weight", "up.bias", "up.weight"]
    for name in ("down.bias", "down.weight", "up.weight"):
        assert torch.equal(ends[name], torch.zeros_like(ends[name]))
    assert bool((ends["up.bias"] != 0).all())
    for shared in (False, True):
        before, after, losses = _trained({"name": "adapter", "shared": shared}, 20)
        assert losses[-1] < losses[0] / 2
        assert all(bool((after[name] != x).any()) for name, x in before.items())


def test_an_adapter_is_the_bottleneck_of_the_paper_between_mlp_and_skip() -> None:
    model, names = injected({"name": "adapter", "width": 5}, "vit")
    write(model, random_like(read(model, names)))
    block = model.get_submodule("vit.layers.0")
    adapter = block.get_submodule("mlp.fc2.adapter")
    down, up = adapter.get_submodule("down"), adapter.get_submodule("up")
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    h = x + block.get_submodule("attention")(block.get_submodule("layernorm_before")(x))[0]
    mlp = block.get_submodule("mlp")
    inner = torch.nn.functional.gelu(
        mlp.get_submodule("fc1")(block.get_submodule("layernorm_after")(h))
    )
    y = mlp.get_submodule("fc2.base")(inner)
    y = y + up(torch.nn.functional.gelu(down(y)))
    assert torch.allclose(block(x), y + h, atol=1e-5)
    assert down.weight.shape == (5, 32)


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("tokens", [1, 4])
def test_prompts_stand_after_the_patches_and_are_cut_off(deep: bool, tokens: int) -> None:
    model, names = injected({"name": "prompt", "deep": deep, "tokens": tokens}, "vit")
    write(model, random_like(read(model, names)))
    prompts = [x for name, x in read(model, names).items() if "prompt" in name]
    assert [tuple(x.shape) for x in prompts] == [(tokens, 32)] * (3 if deep else 1)
    base, batch = model_of("vit"), batch_of("vit")
    write(base, {name: x for name, x in read(model, names).items() if "classifier" in name})
    # (4, 5, 32): the class token and four patches.
    x = base.get_submodule("vit.embeddings")(batch["pixel_values"])
    for k in range(3):
        if deep or k == 0:
            x = torch.cat([x, prompts[k].expand(4, -1, -1)], 1)
        x = base.get_submodule(f"vit.layers.{k}")(x)
        x = x[:, :5] if deep else x
    expected = base.get_submodule("classifier")(base.get_submodule("vit.layernorm")(x)[:, 0])
    assert torch.allclose(logits_of(model, batch), expected, atol=1e-5)


def test_prompts_start_within_their_bound_and_drop_out_in_training_only() -> None:
    model, names = injected({"name": "prompt", "tokens": 50}, "vit")
    x = torch.cat([x for name, x in read(model, names).items() if "prompt" in name])
    bound = (6 / (3 * 4 * 4 + 32)) ** 0.5  # patches of 4x4, width 32
    assert 0.95 * bound < float(x.abs().max()) <= bound
    batch = batch_of("vit")
    assert torch.equal(logits_of(model, batch), logits_of(model, batch))
    model.train()
    assert not torch.equal(logits_of(model, batch), logits_of(model, batch))


def test_bias_trains_biases_and_the_head() -> None:
    model, names = injected("bias", "vit")
    assert "vit.embeddings.patch_embeddings.projection.bias" in names
    assert "vit.layers.1.layernorm_before.bias" in names
    assert [name for name in names if not name.endswith("bias")] == ["classifier.weight"]
    assert sum(name.endswith("bias") for name, _ in model.named_parameters()) == len(names) - 1


def test_vera_sends_vectors_and_every_site_makes_the_same_projections() -> None:
    model, names = injected({"name": "vera", "rank": 5}, "vit")
    assert sorted({name.split(".")[-2] for name in names if "vera" in name}) == [
        "vera_lambda_b",
        "vera_lambda_d",
    ]
    made = {name.split(".")[-2]: x for name, x in model.named_buffers()}
    torch.rand(3)  # what else was drawn does not matter
    other = method({"name": "vera", "rank": 5}).inject(model_of("vit"))
    assert equal(made, {name.split(".")[-2]: x for name, x in other.named_buffers()})
    seed = method({"name": "vera", "rank": 5, "projection_seed": 1}).inject(model_of("vit"))
    assert not torch.equal(
        made["vera_A"], next(x for name, x in seed.named_buffers() if ".vera_A." in name)
    )


def test_a_language_model_s_output_layer_is_trained_only_by_name() -> None:
    _, names = injected("lora", "lm")
    assert not any("lm_head" in name for name in names)
    _, names = injected({"name": "lora", "head": "lm_head"}, "lm")
    assert "lm_head.weight" in names
    assert injected({"name": "head", "head": "lm_head"}, "lm")[1] == ["lm_head.weight"]
    _, names = injected({"name": "lora", "head": ""}, "vit")
    assert not any("classifier" in name for name in names)


def _peft_configs() -> dict[str, tuple[str, dict[str, Any], Any]]:
    """Kind of model, the plan's spec, and what a user of `peft` would write for the same."""
    import peft

    qv, norms = ["q_proj", "v_proj"], ["layernorm_before", "layernorm_after", "layernorm"]
    low = {"r": 3, "lora_alpha": 5}
    ours = {"rank": 3, "alpha": 5.0}
    feed = {"feedforward_modules": ["fc2"], "target_modules": ["k_proj", "v_proj", "fc2"]}
    return {
        "lora": ("vit", ours, peft.LoraConfig(target_modules=qv, **low)),
        "dora": ("vit", ours, peft.LoraConfig(target_modules=qv, use_dora=True, **low)),
        "rslora": ("vit", ours, peft.LoraConfig(target_modules=qv, use_rslora=True, **low)),
        "ia3": ("vit", {}, peft.IA3Config(**feed)),
        "layernorm": ("vit", {}, peft.LNTuningConfig(target_modules=norms)),
        "vera": ("vit", {"rank": 6}, peft.VeraConfig(r=6, target_modules=qv)),
        "prefix": (
            "llama",
            {"tokens": 4},
            peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="SEQ_CLS"),
        ),
    }


@pytest.mark.parametrize("name", ["lora", "dora", "rslora", "ia3", "layernorm", "vera", "prefix"])
def test_the_logits_are_those_of_peft_s_own_wrapper(name: str) -> None:
    import peft

    kind, settings, config = _peft_configs()[name]
    model, names = injected({"name": name, **settings}, kind)
    values = random_like(read(model, names))
    write(model, values)
    with known_warnings_ignored():
        wrapper = peft.get_peft_model(model_of(kind), config).eval()
    own = dict(wrapper.named_parameters())
    for key, value in values.items():
        with torch.no_grad():
            own[key if key in own else f"base_model.model.{key}"].copy_(value)
    marked = {n.removeprefix("base_model.model.") for n, p in own.items() if p.requires_grad}
    assert marked == {n for n in names if not n.startswith("classifier.")}
    batch = batch_of(kind)
    assert torch.allclose(logits_of(model, batch), logits_of(wrapper, batch), atol=1e-6)


def test_prefix_on_a_language_model_is_peft_s_too() -> None:
    import peft

    model, names = injected({"name": "prefix", "tokens": 3}, "lm")
    assert names == ["prompt_encoder.default.embedding.weight"]
    values = random_like(read(model, names))
    write(model, values)
    # Keys and values, 3 layers, 2 key-value heads of 8.
    assert values[names[0]].shape == (3, 2 * 3 * 2 * 8)
    config = peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    with known_warnings_ignored():
        wrapper = peft.get_peft_model(model_of("lm"), config).eval()
    write(wrapper, values)
    batch = batch_of("lm")
    assert torch.equal(logits_of(model, batch), logits_of(wrapper, batch))


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "lora", "rank": 0},
        {"name": "dora", "alpha": 0.0},
        {"name": "rslora", "dropout": 1.0},
        {"name": "vera", "rank": 0},
        {"name": "vera", "dropout": -0.1},
        {"name": "adapter", "reduction": 0},
        {"name": "adapter", "width": -1},
        {"name": "prompt", "tokens": 0},
        {"name": "prompt", "dropout": 1.0},
        {"name": "prefix", "tokens": 0},
    ],
    ids=lambda spec: "-".join(map(str, spec.values())),
)
def test_a_value_out_of_range_is_named(spec: Mapping[str, Any]) -> None:
    key, value = list(spec.items())[1]
    with pytest.raises(PlanError, match=rf"{key} .*{value}"):
        build("method", spec)


def test_what_a_model_lacks_is_named() -> None:
    for name in ("lora", "vera", "ia3"):
        with pytest.raises(PlanError, match=r"no layer called 'q_prok'.*'q_proj'.*fc1.*v_proj"):
            injected({"name": name, "target": ("v_proj", "q_prok")}, "vit")
    convolutions = nn.Sequential()
    convolutions.add_module("features", nn.Conv2d(1, 4, 3))
    convolutions.add_module("fc", nn.Linear(4, 3))
    for name, hint in {
        "adapter": "transformer blocks",
        "lora": "target",
        "layernorm": "LayerNorm",
        "prompt": "ViT",
    }.items():
        with pytest.raises(PlanError, match=hint):
            method(name).inject(convolutions)
    assert method("bias").names(method("bias").inject(convolutions)) == [
        "features.bias",
        "fc.weight",
        "fc.bias",
    ]


@pytest.mark.parametrize("name", ["adapter", "dora", "ia3", "layernorm", "lora", "prefix", "vera"])
def test_real_language_model_weights(name: str, real_data: Path) -> None:
    from transformers import AutoModelForCausalLM

    base: nn.Module = (
        AutoModelForCausalLM.from_pretrained(real_data / "stories260k").eval().requires_grad_(False)
    )
    ids = torch.tensor([[1, 403, 407, 261]])
    before = base(input_ids=ids).logits
    made = method(name)
    model = made.inject(base).eval()
    after = model(input_ids=ids).logits
    assert name == "prefix" or torch.allclose(before, after, atol=1e-4)
    every = tensors_of(model)
    assert 0 < sum(every[n].numel() for n in made.names(model)) < 30_000  # of 260,032
