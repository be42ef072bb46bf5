"""Which methods work on which families of models.

python -m tools.models                    writes docs/models.md
python -m tools.models --only bert t5     prints the rows of some families, of the page or not
"""

import argparse
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tools.models.opened import KINDS, open_small
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
"""The families of the first three tasks; those of the others stand beside them."""
SIGNS = {"yes": "yes", "key": "key", "no": "–", "raises": "**!**"}
TOP = """# Families of models by methods

`python -m tools.models` writes this page, here with transformers {version} and peft {peft}.
For each family it makes a small model from a configuration with random weights, puts the method in
with its default keys, and lets one example through it, forwards and backwards, as each run does at
its start. Families of image-text-to-text are those whose processors it can make too.

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
    _silence()
    lines = list(_lines(only))
    if only:
        print("\n".join(lines))
        return
    import peft
    import transformers

    top = TOP.format(version=transformers.__version__, peft=peft.__version__)
    PAGE.write_text("\n".join([top, *lines]) + "\n", encoding="utf-8")


def _silence() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _lines(only: Sequence[str]) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for kind in (*MAPPINGS, *KINDS):
        yield from (f"## {kind}", "", f"| family | {' | '.join(METHODS)} |")
        yield f"|---|{'---|' * len(METHODS)}"
        left = []
        for family in _families(kind, only):
            with tempfile.TemporaryDirectory() as folder:
                task = _open(kind, family, Path(folder))
                if isinstance(task, str):
                    left.append(f"{family} ({task})")
                    continue
                found = {method: try_method(task, method) for method in METHODS}
            yield f"| {family} | {' | '.join(SIGNS[one.sign] for one in found.values())} |"
            _note(reasons, f"{kind}, {family}", found)
        yield ""
        if left:
            yield f"Not tried: {'; '.join(left)}.\n"
    yield "## Reasons\n"
    yield from (f"- {reason} ({'; '.join(where)})" for reason, where in sorted(reasons.items()))


def _families(kind: str, only: Sequence[str]) -> list[str]:
    from transformers.models.auto import modeling_auto

    if kind in KINDS:
        return [family for family in KINDS[kind].families if not only or family in only]
    known = getattr(modeling_auto, f"{MAPPINGS[kind]}_NAMES")
    return [family for family in known if family in (only or USUAL)]


def _open(kind: str, family: str, folder: Path) -> Any:
    """The task of a small model, or why there is none."""
    return open_small(kind, family, folder) if kind in KINDS else small_model(kind, family)


def _note(reasons: dict[str, list[str]], where: str, found: dict[str, Outcome]) -> None:
    """Collect why something is refused, with the methods that are, by task and family."""
    refused: dict[str, list[str]] = {}
    for method, one in found.items():
        if one.sign != "yes":
            refused.setdefault(_general(one.reason), []).append(method)
    for reason, methods in refused.items():
        reasons.setdefault(reason, []).append(f"{where}: {', '.join(methods)}")


def _general(reason: str) -> str:
    """A reason without the names of one model."""
    text = reason.split(";")[0].split(" (linear layers")[0].split(" (stacks of")[0]
    words = ["..." if word.startswith("'") or "For" in word else word for word in text.split()]
    return " ".join(words)[:160]


if __name__ == "__main__":
    main()
