"""Which methods work on which families of models.

python -m tools.models                    writes docs/models.md
python -m tools.models --only bert t5     prints the rows of some families, of the page or not
"""

import argparse
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tools.models.trying import MAPPINGS, Outcome, small_model, try_method

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
METHODS = (
    *("full", "head", "bias", "layernorm", "lora", "dora", "ia3", "vera"),
    *("adapter", "prompt", "prefix"),
)
USUAL = (
    *("vit", "deit", "beit", "dinov2", "swin", "convnext", "resnet", "mobilevit", "mobilenet_v2"),
    *("levit", "swiftformer", "hiera", "pvt", "segformer", "clip", "siglip"),
    *("bert", "roberta", "distilbert", "deberta", "deberta-v2", "albert", "electra", "modernbert"),
    *("xlnet", "t5", "bart", "gpt2", "gpt_bigcode", "gpt_neox", "bloom", "opt", "phi", "phi3"),
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_next", "gemma2", "deepseek_v3"),
    *("mamba", "falcon_h1", "lfm2", "stablelm"),
)
"""The families of the page."""
SIGNS = {"yes": "yes", "key": "key", "no": "–", "raises": "**!**"}
TOP = """# Families of models by methods

`python -m tools.models` writes this page, here with transformers {version} and peft {peft}.
For each family it makes a small model from a configuration with random weights, puts the method in
with its default keys, and lets one example through it, forwards and backwards, as each run does at
its start.

*yes*: works with the defaults. *key*: is refused until a key of the method says where, mostly
`target`. *–*: is refused; the reason stands below. `rslora` and `ffa` go where `lora` goes,
`scratch` where `full` does. `target = ["all-linear"]` means every linear layer outside the
head. **!** is an error of the model's own code with these small numbers.
"""


def main() -> None:
    """Write the page, or print rows."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.models",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--only", nargs="*", default=[], metavar="FAMILY")
    only = parser.parse_args().only
    warnings.filterwarnings("ignore")
    lines = list(_lines(only or USUAL))
    if only:
        print("\n".join(lines))
        return
    import peft
    import transformers

    top = TOP.format(version=transformers.__version__, peft=peft.__version__)
    PAGE.write_text("\n".join([top, *lines]) + "\n", encoding="utf-8")


def _lines(only: Sequence[str]) -> Iterator[str]:
    from transformers.models.auto import modeling_auto

    reasons: dict[str, list[str]] = {}
    for kind, mapping in MAPPINGS.items():
        families = [f for f in getattr(modeling_auto, f"{mapping}_NAMES") if f in only]
        yield from (f"## {kind}", "", f"| family | {' | '.join(METHODS)} |")
        yield f"|---|{'---|' * len(METHODS)}"
        left = []
        for family in families:
            task = small_model(kind, family)
            if isinstance(task, str):
                left.append(f"{family} ({task})")
                continue
            found = {method: try_method(task, method) for method in METHODS}
            yield f"| {family} | {' | '.join(SIGNS[one.sign] for one in found.values())} |"
            _note(reasons, family, found)
        yield ""
        if left:
            yield f"Not tried: {'; '.join(left)}.\n"
    yield "## Reasons\n"
    yield from (f"- {reason} ({', '.join(where)})" for reason, where in sorted(reasons.items()))


def _note(reasons: dict[str, list[str]], family: str, found: dict[str, Outcome]) -> None:
    """Collect why something is refused, with where."""
    for method, one in found.items():
        if one.sign != "yes":
            reasons.setdefault(_general(one.reason), []).append(f"{family}: {method}")


def _general(reason: str) -> str:
    """A reason without the names of one model."""
    text = reason.split(";")[0].split(" (linear layers")[0].split(" (stacks of")[0]
    words = ["..." if word.startswith("'") or "For" in word else word for word in text.split()]
    return " ".join(words)[:160]


if __name__ == "__main__":
    main()
