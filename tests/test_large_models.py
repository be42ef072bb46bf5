"""A language model's base in bfloat16, losses without whole logits, micro-batches and
checkpointing: each gives what the plain way gives."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from counting import changes
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.language import MODELS, as_row
from fedpeft import InProcess, PlanError, Site, evaluate, federate, open_site, read_plan, start
from fedpeft.compute.checkpointing import enable_checkpointing
from fedpeft.compute.frozen_linear import WRITTEN, Quantized
from fedpeft.compute.objective import Objective, forward_losses
from fedpeft.compute.token_losses import LARGE, chunked_losses, is_large
from fedpeft.compute.trainable import read
from fedpeft.core.outputs import LOGITS, TOKEN_LOSSES, Outputs
from fedpeft.core.seeds import seed_torch
from fedpeft.core.tensors import equal
from fedpeft.core.types import Batch, Summed
from fedpeft.methods.lora import LoRA
from fedpeft.methods.prefix import Prefix
from fedpeft.runs.environment import check_whole_fits
from fedpeft.tasks.causal_lm import MEASURED_TOKENS, CausalLM

WORDS = 2**17
"""Words of a vocabulary of which few texts have large logits."""
TARGET = ("q_proj", "v_proj")


@pytest.fixture(scope="module")
def half(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Llama that counts, saved in bfloat16."""
    folder = tmp_path_factory.mktemp("half")
    for file in llama.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = folder / "model.safetensors"
    tensors = {name: x.bfloat16() for name, x in load_file(weights).items()}
    save_file(tensors, weights, {"format": "pt"})
    return folder


def settings(model: Path, texts: Path, **other: Any) -> dict[str, Any]:
    """A plan on that model; what `task` says beside the usual goes to the task."""
    task = other.pop("task", {})
    made = changes(model, texts, method={"name": "lora", "target": list(TARGET)}, rounds=2, **other)
    return {**made, "task": {**made["task"], **task}}


def trained(given: Mapping[str, Any]) -> Any:
    site = open_site(read_plan(given))
    *_, (state, ledger) = federate(site.plan, InProcess(site), start(site.plan, site.params()))
    assert not ledger.failed
    return state


def decoder(kind: str, words: int, **other: Any) -> nn.Module:
    """A decoder of one narrow layer."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=words,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        **{"tie_word_embeddings": True, **other},
    )
    with seed_torch(0):
        model: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(config)
        return model.requires_grad_(False)


@dataclass(frozen=True)
class Chunked:
    """The task, which takes few logits in chunks of 7 tokens too."""

    task: CausalLM = CausalLM()

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        return self.task.forward(model, batch, head)

    def forward_losses(self, model: nn.Module, batch: Batch) -> Outputs:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        each = chunked_losses(model, inputs, batch["labels"][:, 1:], -100, 7)
        assert each is not None
        return {TOKEN_LOSSES: each}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        return self.task.losses(outputs, batch)

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Summed]:
        return self.task.metrics(outputs, batch)


def batch_of(rows: int, tokens: int, words: int = WORDS) -> Batch:
    """Texts of which the last is short, and the first counts by its second half alone."""
    draws = torch.Generator().manual_seed(1)
    ids = torch.randint(3, words, (rows, tokens), generator=draws)
    seen = torch.ones(rows, tokens, dtype=torch.bool)
    seen[-1, tokens // 3 :] = False
    labels = ids.masked_fill(~seen, -100)
    labels[0, : tokens // 2] = -100
    mask = torch.ones(rows)
    return {"input_ids": ids, "attention_mask": seen, "labels": labels, "mask": mask}


def close(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], far: float) -> None:
    assert found.keys() == wanted.keys()
    largest = max(float(x.abs().max()) for x in wanted.values())
    assert largest > 0
    for name, x in found.items():
        assert float((x - wanted[name]).abs().max()) <= far * largest, name


def whole_gradient(objective: Objective, params: Mapping[str, Tensor], batch: Batch) -> Any:
    """The gradient by one pass with all logits."""
    leaves = {name: x.clone().requires_grad_() for name, x in params.items()}
    losses = objective(leaves, batch)
    mean = (losses * batch["mask"]).sum() / batch["mask"].sum()
    grads = torch.autograd.grad(mean, list(leaves.values()))
    return dict(zip(leaves, grads, strict=True)), losses.detach()


@pytest.mark.parametrize(
    ("kind", "other", "method"),
    [
        ("Llama", {}, LoRA(target=TARGET)),
        # the output layer is trained too, and called anew with what it was called with
        ("Llama", {"tie_word_embeddings": False}, LoRA(target=("q_proj", "lm_head"))),
        # the logits are capped behind the output layer
        ("Gemma2", {"final_logit_softcapping": 0.5}, LoRA(target=TARGET)),
        ("Llama", {}, Prefix(tokens=2)),
    ],
    ids=["llama", "trained-head", "capped", "prefix"],
)
def test_losses_and_gradient_without_whole_logits_are_those_with_them(
    kind: str, other: Mapping[str, Any], method: Any
) -> None:
    task, batch = Chunked(), batch_of(2, 40, words=50)
    with seed_torch(1):
        model = method.inject(decoder(kind, 50, **other))
    names = method.names(model)
    params = {name: x + 0.1 for name, x in read(model, names).items()}
    objective = Objective(model, task)  # type: ignore[arg-type]  # as much of a task as it needs
    wanted, losses = whole_gradient(objective, params, batch)
    found, each, _ = objective.gradient(params, batch)
    assert torch.allclose(each, losses, rtol=1e-5)
    close(found, wanted, 1e-5)
    with torch.no_grad():
        assert torch.allclose(objective(params, batch), losses, rtol=1e-5)
    measured = evaluate(task, model, params, [batch])["loss"]  # type: ignore[arg-type]
    counts = (batch["labels"][:, 1:] != -100).sum(1)
    assert measured.weight == counts.sum()
    assert measured.value == pytest.approx(float((losses * counts).sum() / counts.sum()), rel=1e-5)


def test_few_logits_are_made_as_ever_and_no_token_may_count() -> None:
    task, model = CausalLM(), decoder("Llama", WORDS)
    few, many = batch_of(1, 64), batch_of(2, 140)
    assert few["input_ids"].numel() * WORDS <= LARGE
    assert LOGITS in forward_losses(task)(model, few)
    assert is_large(model, many["input_ids"])
    outputs = forward_losses(task)(model, many)
    whole = task.losses(task.forward(model, many), many)
    assert torch.allclose(task.losses(outputs, many), whole, rtol=1e-5)
    assert outputs.keys() == {TOKEN_LOSSES}
    assert outputs[TOKEN_LOSSES].shape == (2, 139)
    nothing = {**many, "labels": torch.full_like(many["labels"], -100)}
    with torch.no_grad():
        assert task.losses(forward_losses(task)(model, nothing), nothing).tolist() == [0.0, 0.0]


def test_long_texts_are_measured_a_few_at_a_time() -> None:
    batch = batch_of(5, MEASURED_TOKENS // 2, words=9)
    assert [len(part["labels"]) for part in CausalLM().chunks(batch)] == [2, 2, 1]


@pytest.mark.parametrize("size", [1, 3, 5, 8])
def test_micro_batches_have_the_gradient_of_the_whole_batch(size: int, llama: Path) -> None:
    """Of texts of several lengths, one of which does not count."""
    task = CausalLM(str(llama), max_length=32)
    model = task.build([]).requires_grad_(False)
    with seed_torch(1):
        model = LoRA(target=TARGET).inject(model)
    params = {n: x + 0.1 for n, x in read(model, LoRA().names(model)).items()}
    batch = {**batch_of(5, 12, words=9), "mask": torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])}
    wanted, losses, _ = Objective(model, task).gradient(params, batch)
    found, each, _ = Objective(model, task, micro_batch=size).gradient(params, batch)
    close(found, wanted, 1e-6)
    assert torch.allclose(each, losses, rtol=1e-6)


def test_a_run_in_micro_batches_with_checkpointing_ends_where_the_plain_one_does(
    llama: Path, texts: Path
) -> None:
    plain = trained(settings(llama, texts))
    spared = trained(settings(llama, texts, compute={"micro_batch": 3, "checkpointing": True}))
    begun = open_site(read_plan(settings(llama, texts))).params()
    moved = max(float((plain.params[n] - x).abs().max()) for n, x in begun.items())
    for name, x in spared.params.items():
        assert float((x - plain.params[name]).abs().max()) < 1e-3 * moved, name


def test_checkpointing_takes_the_gradient_of_what_was_swapped_in(llama: Path) -> None:
    """Not of the model's own tensors, which it has again after the call."""
    task = CausalLM(str(llama), max_length=32)
    with seed_torch(1):
        model = LoRA(target=TARGET).inject(task.build([]).requires_grad_(False))
    names, batch = LoRA().names(model), batch_of(3, 12, words=9)
    params = {n: x + 0.1 for n, x in read(model, names).items()}
    model.train()
    wanted, _, _ = Objective(model, task).gradient(params, batch)
    enable_checkpointing(task, model, names, batch)
    assert any(getattr(layer, "gradient_checkpointing", False) for layer in model.modules())
    found, _, _ = Objective(model, task).gradient(params, batch)
    close(found, wanted, 1e-6)


def test_what_checkpointing_would_lose_is_refused(llama: Path, texts: Path) -> None:
    given = settings(llama, texts, compute={"checkpointing": True})
    with pytest.raises(PlanError, match=r"changes the gradient.*prefix.*micro_batch"):
        open_site(read_plan({**given, "method": {"name": "prefix", "tokens": 2}}))
    layers = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(PlanError, match="Sequential has no blocks that can be computed again"):
        enable_checkpointing(Points(), layers, ["0.weight"], Points.some())  # type: ignore[arg-type]


class Points:
    """As much of a task as it needs."""

    @staticmethod
    def some() -> Batch:
        return {"x": torch.ones(2, 2), "mask": torch.ones(2)}

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Any:
        return {"logits": model(batch["x"])}

    def losses(self, outputs: Any, batch: Batch) -> Tensor:
        losses: Tensor = outputs["logits"].square().sum(1)
        return losses


def test_defaults_are_written_in_no_plan_and_what_cannot_be_is_refused(
    llama: Path, texts: Path
) -> None:
    plan = read_plan(settings(llama, texts))
    asked = settings(llama, texts, compute={"micro_batch": 0, "checkpointing": False})
    assert read_plan(asked).fingerprint == plan.fingerprint
    with pytest.raises(PlanError, match="micro_batch must be at least 1"):
        read_plan(settings(llama, texts, compute={"micro_batch": -1}))
    other = read_plan(settings(llama, texts, compute={"micro_batch": 2}))
    assert other.fingerprint != plan.fingerprint


def test_a_base_in_bfloat16_computes_what_the_same_numbers_in_float32_do(
    half: Path, texts: Path
) -> None:
    """Of a checkpoint in bfloat16 nothing is lost, and what is trained is float32."""
    wide = open_site(read_plan(settings(half, texts, compute={"pack": False})))
    held = open_site(read_plan(settings(half, texts, task={"quantize": "bfloat16"})))
    assert {x.dtype for x in held.params().values()} == {torch.float32}
    narrow = [x for x in held.model.parameters() if x.dtype == torch.bfloat16]
    assert sum(x.numel() for x in narrow) > 0.9 * sum(
        x.numel() for n, x in held.model.named_parameters() if "lora" not in n
    )
    batch = next(iter(held.data.held_out()))
    outputs = [_logits(site, batch) for site in (held, wide)]
    assert torch.equal(*outputs)
    params = {n: x + 0.1 for n, x in held.params().items()}
    found, wanted = (
        Objective(site.model, site.task).gradient(params, batch)[0] for site in (held, wide)
    )
    close(found, wanted, 1e-6)


def _logits(site: Site, batch: Batch) -> Tensor:
    site.model.eval()
    with torch.no_grad():
        return site.task.forward(site.model, batch)[LOGITS]


@pytest.mark.parametrize(
    "method",
    ["lora", "dora", "rslora", "vera", "ffa", "ia3", "layernorm", "prefix", "adapter", "bias"],
)
def test_methods_train_on_a_base_in_bfloat16(method: str, half: Path, texts: Path) -> None:
    given = settings(half, texts, task={"quantize": "bfloat16"})
    if method == "bias":
        pytest.skip("a Llama has no biases")
    state = trained({**given, "rounds": 1, "method": method})
    begun = open_site(read_plan({**given, "method": method})).params()
    assert {x.dtype for x in state.params.values()} == {torch.float32}
    assert not equal(state.params, begun)


def test_what_needs_the_numbers_of_the_base_is_refused_in_bfloat16(half: Path, texts: Path) -> None:
    given = settings(half, texts, task={"quantize": "bfloat16"})
    with pytest.raises(PlanError, match=r"Full cannot train .*held in bfloat16.*leave out"):
        open_site(read_plan({**given, "method": "full"}))
    with pytest.raises(PlanError, match="trained whole"):
        open_site(read_plan({**given, "method": "scratch"}))
    with pytest.raises(PlanError, match="FLoRA adds to frozen weights"):
        read_plan({**given, "aggregator": "flora"})


def test_a_model_of_other_layers_cannot_be_held_in_bfloat16(
    half: Path, texts: Path, tmp_path: Path
) -> None:
    """GPT-2's matrices are in layers of its own."""
    from transformers import GPT2Config, GPT2LMHeadModel

    for file in half.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = GPT2Config(vocab_size=9, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(PlanError, match=r'quantize = "bfloat16".*only \d+%.*leave it out'):
        open_site(read_plan(settings(tmp_path, texts, task={"quantize": "bfloat16"})))


def test_a_large_weight_is_multiplied_some_rows_at_a_time() -> None:
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(WRITTEN // 64 + 5, 96, generator=draws).bfloat16()
    assert weight.numel() > WRITTEN
    x = torch.randn(3, 96, generator=draws)
    forth = Quantized(weight, torch.float32)
    assert torch.allclose(forth(x), x @ weight.float().T, rtol=1e-5, atol=1e-4)
    g = torch.randn(3, len(weight), generator=draws)
    wanted = g @ weight.float()
    assert float((forth.back(g) - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())


def test_the_cohort_engine_says_why_it_trains_one_after_another(llama: Path, texts: Path) -> None:
    from fedpeft.engines.vectorized.engine import unfit

    site = open_site(read_plan(settings(llama, texts)))
    assert not unfit(site)
    compute = replace(site.plan.compute, micro_batch=2)
    spared = replace(site, plan=replace(site.plan, compute=compute))
    assert "one client at a time" in unfit(spared)


QUICK = ("SmolLM2-135M", "Gemma-3-270M", "Qwen3-8B")
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name not in QUICK]


@pytest.mark.parametrize("name", [*QUICK, *OTHERS])
def test_the_page_has_the_bytes_of_larger_models(name: str) -> None:
    page = Path(__file__).parents[1] / "docs" / "guide" / "large-models.md"
    assert as_row(name) in page.read_text(encoding="utf-8").splitlines()


def test_a_comparison_that_does_not_fit_in_is_refused_before_it_is_made() -> None:
    with torch.device("meta"):
        large = nn.Linear(2**20, 2**20)
    with pytest.raises(MemoryError, match=r"13194\.2 GB in float32, and .* are free"):
        check_whole_fits(large)
    check_whole_fits(nn.Linear(2, 2))
