"""The memory of a language model of half a billion parameters, in fresh processes, and that of
larger ones by their configurations.

    python -m benchmarks.language                         # some minutes; 2 GB on the disk
    python -m benchmarks.language --tokens 256 --only "bfloat16"
    python -m benchmarks.language --only computed --out benchmarks/results

The model is a decoder of Qwen2.5-0.5B's shape with random weights, which is written to the disk in
bfloat16 once. Of each way of holding it, two processes are measured:

step      opens a plan with LoRA r = 8 on query and value and lets one client take one step on one
          text of so many tokens, and its answer become the next state
evaluate  opens the plan and measures one held-out text of 2,048 tokens

Counted is what a process has at its peak more than when it had imported the libraries and read the
texts; the file's mapped pages count. "kept" is what a forward pass keeps for the way back, counted
by its tensors. Wanted, of the base in bfloat16 with checkpointing: a step of at most 1.3 times the
weights and what is kept without it, and an evaluation of at most 3 GB above the weights.

computed  Of models that are not here, from their published configurations, on no device: what the
          base takes, and what a client sends
"""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from string import ascii_lowercase
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import machine
from benchmarks.overhead import peak, resident
from fedpeft import InProcess, Plan, Site, federate, open_site, read_plan, start
from fedpeft.compute.device_memory import measure_activations
from fedpeft.compute.frozen_linear import prepare_half
from fedpeft.compute.objective import forward_losses
from fedpeft.core.interfaces import Added
from fedpeft.core.types import Batch, Tensors
from fedpeft.evaluation.measure import measure
from fedpeft.methods.lora import LoRA

EVALUATED = 2048
LETTERS = ascii_lowercase
QWEN: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Way:
    """How the base is held and a step is taken."""

    task: Mapping[str, Any] = field(default_factory=dict)
    compute: Mapping[str, Any] = field(default_factory=dict)


HALF = {"quantize": "bfloat16"}
WAYS = {
    "bfloat16, checkpointing": Way(HALF, {"checkpointing": True}),
    "bfloat16": Way(HALF),
    "float32": Way(compute={"pack": False}),
    "float32, packed": Way(),
}


def save_model(folder: Path) -> Path:
    """A random decoder in bfloat16, and a tokenizer of a token a letter."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

    vocabulary = {"<|endoftext|>": 0, **{letter: k for k, letter in enumerate(LETTERS, 1)}}
    Qwen2Tokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    Qwen2ForCausalLM(Qwen2Config(**QWEN, dtype="bfloat16")).save_pretrained(folder)
    return folder


def save_texts(folder: Path, trained: int) -> Path:
    """A text to train on and one to measure on."""
    draws = torch.Generator().manual_seed(0)
    for name, length in (("train", trained), ("test", EVALUATED)):
        drawn = torch.randint(len(LETTERS), (length - 1,), generator=draws).tolist()
        row = json.dumps({"text": "".join(LETTERS[k] for k in drawn)})
        (folder / f"{name}.jsonl").write_text(row + "\n")
    return folder


def plan_of(folder: Path, way: str, threads: int) -> Plan:
    chosen = WAYS[way]
    return read_plan(
        {
            "rounds": 1,
            "cohort": 1,
            "task": {
                "name": "causal-lm",
                "model": str(folder / "model"),
                "max_length": EVALUATED,
                **chosen.task,
            },
            "data": {"name": "table", "path": str(folder / "texts"), "label": "none"},
            "partition": {"name": "iid", "clients": 1},
            "method": {"name": "lora", "rank": 8, "target": ["q_proj", "v_proj"]},
            "local": {"batch_size": 1, "lr": 0.001, "optimizer": "adamw"},
            "compute": {"threads": threads, **chosen.compute},
        }
    )


def loaded(plan: Plan) -> int:
    """Bytes in memory with all libraries that opening a plan imports, and with the texts read."""
    import peft
    from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

    assert peft and AutoModelForCausalLM and Qwen2ForCausalLM
    plan.task.prepare(plan.data.load().train)
    return resident()


def step(folder: Path, way: str, threads: int) -> dict[str, Any]:
    plan = plan_of(folder, way, threads)
    before = loaded(plan)
    site = open_site(plan)
    ready, began = peak(), time.perf_counter()
    _, ledger = next(federate(site.plan, InProcess(site), start(site.plan, site.params())))
    assert not ledger.failed, ledger.failed
    seconds, most = time.perf_counter() - began, peak()
    return {
        "opened_gb": _gb(ready - before),
        "peak_gb": _gb(most - before),
        "kept_gb": _gb(kept(site)),
        "seconds": round(seconds, 1),
    }


def kept(site: Site) -> int:
    """Bytes that a forward pass of the step keeps for the way back."""
    [batch] = site.data.training(site.data.clients[0])
    forward = forward_losses(site.task)

    def losses(params: Tensors, batch: Batch, added: Added | None = None) -> Tensor:
        return site.task.losses(forward(site.model, batch), batch)

    return measure_activations(losses, site.model.train(), site.params(), batch)  # type: ignore[arg-type]


def evaluation(folder: Path, way: str, threads: int) -> dict[str, Any]:
    plan = plan_of(folder, way, threads)
    before = loaded(plan)
    site = open_site(plan)
    began = time.perf_counter()
    metrics = measure(site, site.params())
    return {
        "peak_gb": _gb(peak() - before),
        "loss": round(metrics["loss"], 4),
        "seconds": round(time.perf_counter() - began, 1),
    }


def _gb(number: float) -> float:
    return round(number / 1e9, 3)


QWEN3 = {"vocab_size": 151_936, "head_dim": 128, "num_key_value_heads": 8}
LLAMA3 = {"vocab_size": 128_256, "num_key_value_heads": 8}
GEMMA3 = {"vocab_size": 262_144, "head_dim": 256, "num_key_value_heads": 1}
SMOL = {"vocab_size": 49_152}


def _sizes(hidden: int, layers: int, heads: int, between: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": between,
        "tie_word_embeddings": True,
    }


APART = {"tie_word_embeddings": False}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "SmolLM2-135M": ("Llama", SMOL | _sizes(576, 30, 9, 1536) | {"num_key_value_heads": 3}),
    "SmolLM2-360M": ("Llama", SMOL | _sizes(960, 32, 15, 2560) | {"num_key_value_heads": 5}),
    "SmolLM2-1.7B": ("Llama", SMOL | _sizes(2048, 24, 32, 8192) | {"num_key_value_heads": 32}),
    "Qwen3-0.6B": ("Qwen3", QWEN3 | _sizes(1024, 28, 16, 3072)),
    "Qwen3-1.7B": ("Qwen3", QWEN3 | _sizes(2048, 28, 16, 6144)),
    "Qwen3-4B": ("Qwen3", QWEN3 | _sizes(2560, 36, 32, 9728)),
    "Qwen3-8B": ("Qwen3", QWEN3 | _sizes(4096, 36, 32, 12_288) | APART),
    "Gemma-3-270M": ("Gemma3", GEMMA3 | _sizes(640, 18, 4, 2048)),
    "Gemma-3-1B": ("Gemma3", GEMMA3 | _sizes(1152, 26, 4, 6912)),
    "Llama-3.2-1B": ("Llama", LLAMA3 | _sizes(2048, 16, 32, 8192)),
    "Llama-3.2-3B": ("Llama", LLAMA3 | _sizes(3072, 28, 24, 8192)),
    "Llama-3.1-8B": ("Llama", LLAMA3 | _sizes(4096, 32, 32, 14_336) | APART),
}
"""By name the kind and the shape, after the published configurations."""


def computed(name: str) -> dict[str, Any]:
    """What a base takes by how it is held, and what a client sends, in bytes."""
    import transformers

    kind, shape = MODELS[name]
    text = "Text" if kind == "Gemma3" else ""
    with torch.device("meta"):
        config = getattr(transformers, f"{kind}{text}Config")(**shape)
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
    model = model.to(torch.bfloat16).requires_grad_(False)
    numbers = sum(x.numel() for x in model.parameters())
    prepare_half(model)
    output = model.get_output_embeddings()
    coded = sum(
        layer.weight.numel()
        for layer in model.modules()
        if isinstance(layer, torch.nn.Linear) and layer is not output
    )
    half = sum(x.nbytes for x in model.parameters())
    method = LoRA(rank=16, target=("q_proj", "v_proj"))
    model = method.inject(model)
    trained = dict(model.named_parameters())
    return {
        "parameters": numbers,
        "float32": 4 * numbers,
        "bfloat16": half,
        "nf4": 4 * (numbers - coded) + coded * 9 // 16,
        "message": 2 * sum(trained[one].numel() for one in method.names(model)),
        "inputs": 4 * config.hidden_size * config.num_hidden_layers * EVALUATED,
        "logits": 4 * config.vocab_size * EVALUATED,
    }


def as_row(name: str) -> str:
    """A model's line of the table in docs/guide/large-models.md."""
    found = computed(name)
    sizes = [f"{found[key] / 1e9:.2f} GB" for key in ("float32", "bfloat16", "nf4")]
    message = f"{found['message'] / 1e6:.2f} MB"
    step = [f"{found[key] / 1e9:.2f} GB" for key in ("inputs", "logits")]
    return f"| {name} | {found['parameters']:,} | {' | '.join([*sizes, message, *step])} |"


def measured(tokens: int, threads: int, ways: list[str]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    with TemporaryDirectory() as made:
        folder = Path(made)
        apart(save_model, folder / "model")
        (folder / "texts").mkdir()
        save_texts(folder / "texts", tokens)
        weights = sum(x.stat().st_size for x in (folder / "model").glob("*.safetensors"))
        results["weights_gb"] = _gb(weights)
        for way in ways:
            taken = apart(step, folder, way, threads)
            seen = apart(evaluation, folder, way, threads)
            results[way] = {f"step of {tokens} tokens": taken, f"evaluation of {EVALUATED}": seen}
            print(f"{way}: {json.dumps(results[way])}", flush=True)
    return results


def apart(function: Any, *arguments: Any) -> Any:
    """The function in a process of its own."""
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return pool.apply(function, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=(*WAYS, "computed"), default=[*WAYS, "computed"]
    )
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a folder for language.json")
    chosen = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(chosen.threads)}
    ways = [one for one in chosen.only if one in WAYS]
    if ways:
        results |= measured(chosen.tokens, chosen.threads, ways)
    if "computed" in chosen.only:
        results["computed"] = {name: computed(name) for name in MODELS}
        print("\n".join(map(as_row, MODELS)))
    if chosen.out:
        (chosen.out / "language.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
