"""How an exported language model is served, and by which server it is not.

What vLLM takes of an adapter is what its loader checks (`vllm/lora/peft_helper.py` and `utils.py`):
LoRA without DoRA, biases, modules that are saved whole, or ranks that differ from layer to layer.
"""

import json
from collections.abc import Iterator, Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

from fedpeft.export.model_card import base_name
from fedpeft.results.result import Result
from fedpeft.tasks.language import LanguageTask

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's `--max-lora-rank` may be in all its versions."""


def serving_section(result: Result, folder: Path, out: Path) -> str:
    """The part of a card that says it; "" for models that write no texts. The log says where an
    adapter cannot be served as it is.

    Args:
      folder: where the export lies now.
      out: what it is called in the lines.
    """
    if not isinstance(result.plan.task, LanguageTask) or (folder / "modeling_fedpeft.py").exists():
        return ""
    file = folder / "adapter_config.json"
    if not file.exists():
        return _section(_whole_lines(out))
    config = json.loads(file.read_text(encoding="utf-8"))
    faults = list(vllm_faults(config))
    if not faults:
        return _section(_adapter_lines(config, base_name(result), out))
    # a prefix stands beside the input, and nothing can merge it
    merges = "num_virtual_tokens" not in config
    remedy = "export with --merge to serve it" if merges else "peft alone runs it"
    why = f"vLLM takes no adapter {' or '.join(faults)}: {remedy}"
    getLogger("fedpeft").warning("%s", why)
    return f"\n\n## How to serve it\n\n{why}.\n"


def vllm_faults(config: Mapping[str, Any]) -> Iterator[str]:
    """What of an adapter's configuration vLLM refuses or passes over, in words after "adapter".

    Args:
      config: what adapter_config.json holds.
    """
    kind = str(config.get("peft_type"))
    if kind != "LORA":
        yield f"of the kind {kind}"
        return
    if config.get("use_dora"):
        yield "of DoRA"
    if whole := config.get("modules_to_save"):
        yield f"with {', '.join(whole)} trained whole"
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        yield "with biases"
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        yield "of several ranks"  # it reads one rank for all, and would scale the others wrongly
    if config["r"] > RANKS[-1]:
        yield f"of a rank above {RANKS[-1]}"


def _adapter_lines(config: Mapping[str, Any], base: str, out: Path) -> list[str]:
    most = next(rank for rank in RANKS if rank >= config["r"])
    return [
        f"vllm serve {base} --enable-lora --max-lora-rank {most} --lora-modules tuned={out}",
        f"python llama.cpp/convert_lora_to_gguf.py {out} --base {base}  # a folder with the base",
    ]


def _whole_lines(out: Path) -> list[str]:
    return [
        f"vllm serve {out}",
        f"python llama.cpp/convert_hf_to_gguf.py {out} --outfile {out}.gguf",
    ]


def _section(lines: list[str]) -> str:
    """Each line is a way of its own."""
    text = "\n".join(lines)
    return (
        "\n\n## How to serve it\n\nWith vLLM, or with llama.cpp and what reads its GGUF files:\n\n"
        f"```sh\n{text}\n```\n"
    )
