"""The cohort engine on a GPU, which one client's small batch leaves idle: wanted is 3 times the
loop at batch 4.

    python -m benchmarks.gpu                             # ViT-B/16 and a Llama of 1 B parameters
    python -m benchmarks.gpu --only vit-b --clients 8 --batch 4
    python -m benchmarks.gpu --device cpu --tiny         # whether the script works

Both engines of `benchmarks.cohort` run whole rounds of two steps a client, LoRA r=8, passes in
bfloat16 with frozen weights cast once.
`of_peak` is the share of the chip's matrix peak, measured here on squares of 8192, that the
cohort's rounds reach; the operations are those of a client's step as torch counts them. Wanted:
0.45.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import cohort
from benchmarks.machine import machine
from benchmarks.racing.models import vit
from benchmarks.work import Noise, TinyViT, Tokens
from fedpeft import Plan, open_site
from fedpeft.compute.objective import Objective
from fedpeft.core.outputs import LOGITS, Outputs
from fedpeft.core.types import Batch
from fedpeft.forecasts.step_cost import Untold
from fedpeft.local.descent import Descent
from fedpeft.methods.lora import LoRA
from fedpeft.partitions.iid import IID
from fedpeft.plan.tables import Compute

STEPS = 2
SQUARE = 8192
B16 = {
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 16,
}
LLAMA = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
}
MICRO = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@dataclass(frozen=True)
class Pictures(TinyViT):
    """A ViT-B/16 at 224 pixels, or one for a test."""

    tiny: bool = False

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        return vit(
            len(classes), **({**MICRO, "image_size": 32, "patch_size": 16} if self.tiny else B16)
        )


@dataclass(frozen=True)
class Texts(Tokens):
    """A Llama of 1.2 B parameters, or one for a test; the loss is that of the next token."""

    tiny: bool = False

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        from transformers import LlamaConfig, LlamaForCausalLM

        shape = MICRO if self.tiny else {**LLAMA, "num_key_value_heads": 8}
        model: nn.Module = LlamaForCausalLM(
            LlamaConfig(vocab_size=self.words, tie_word_embeddings=True, **shape)
        )
        return model

    @property
    def words(self) -> int:
        return 128 if self.tiny else 128_256

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        logits = outputs[LOGITS][:, :-1]
        return cross_entropy(logits.float().mT, batch["x"][:, 1:], reduction="none").mean(1)

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": self.losses(outputs, batch)}


def plan_of(name: str, clients: int, batch: int, tiny: bool) -> Plan:
    task: Pictures | Texts
    if name == "vit-b":
        side = 32 if tiny else 224
        task, data, method = (
            Pictures(tiny),
            Noise(clients, STEPS * batch, (3, side, side)),
            LoRA(rank=8),
        )
    else:
        task = Texts(tiny)
        data, method = (
            Noise(clients, STEPS * batch, (16 if tiny else 128,), task.words),
            LoRA(rank=8, head=""),
        )
    return Plan(
        task=task,
        data=data,
        partition=IID(clients=clients),
        method=method,
        local=Descent(lr=0.01, batch_size=batch, precision="bfloat16"),
        cohort=clients,
        compute=Compute(base_dtype="bfloat16", features=False),
    )


def measured(plan: Plan, batch: int, device: str, peak: float, repeats: int) -> dict[str, float]:
    """Both engines' client steps per second, the share of the peak and the most memory."""
    operations = of_a_step(plan, batch, device)
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    found = cohort.race(plan, repeats, device)
    found["of_peak"] = round(found["cohort_steps_per_second"] * operations / peak, 3)
    if on_gpu:
        found["memory_mb"] = round(torch.cuda.max_memory_allocated() / 1e6)
    return found


def of_a_step(plan: Plan, batch: int, device: str) -> int:
    """Floating-point operations of one client's forward and backward pass."""
    site = open_site(plan, device)
    rows = site.on_device(
        next(iter(site.data.batches(site.data.clients[0], batch, 1, torch.Generator())))
    )
    params = {name: x.to(device) for name, x in site.params().items()}
    counter: Any = FlopCounterMode(display=False)
    counter.mod_tracker = Untold()  # its hooks on modules do not go with torch.autograd.grad
    with counter:
        Objective(site.model, site.task, "bfloat16").gradient(params, rows)
    return int(counter.get_total_flops())


def matrix_peak(device: str, square: int) -> float:
    """Operations per second of bfloat16 products of squares."""
    a, b = (torch.randn(square, square, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        waiting(device)
        began = time.perf_counter()
        for _ in range(5):
            a @ b
        waiting(device)
        best = min(best, time.perf_counter() - began)
    return 5 * 2 * square**3 / best


def waiting(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def race(
    only: Sequence[str] = ("vit-b", "llama"),
    clients: Sequence[int] = (8, 16, 32, 64),
    batches: Sequence[int] = (4, 8, 16),
    device: str = "cuda",
    tiny: bool = False,
    repeats: int = 3,
) -> dict[str, Any]:
    """On a GPU; with a reason where there is none."""
    what = "ViT-B/16 at 224 pixels and a Llama of 1 B parameters on a GPU, LoRA r=8 in bfloat16"
    if device == "cuda" and not torch.cuda.is_available():
        return {"what": what, "skipped": "there is no CUDA device here"}
    peak = matrix_peak(device, 256 if tiny else SQUARE)
    found: dict[str, Any] = {"what": what, "peak_tflops": round(peak / 1e12, 3)}
    if device == "cuda":
        found["device"] = torch.cuda.get_device_name()
    for name in only:
        for count in clients:
            for batch in batches:
                key = f"{name}, {count} clients, batch {batch}"
                try:
                    found[key] = measured(
                        plan_of(name, count, batch, tiny), batch, device, peak, repeats
                    )
                except torch.OutOfMemoryError as error:  # the loop's; the cohort splits itself
                    found[key] = {"skipped": str(error).partition(". ")[0]}
                print(f"{key}: {found[key]}", flush=True, file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=["vit-b", "llama"], default=["vit-b", "llama"])
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="models of a test's size")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a folder for gpu.json")
    args = parser.parse_args()
    results = {
        "machine": machine(torch.get_num_threads()),
        **race(args.only, args.clients, args.batch, args.device, args.tiny, args.repeats),
    }
    print(json.dumps(results, indent=2))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "gpu.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
