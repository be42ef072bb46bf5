"""What stands before an answer: the text that an instruction-tuned model is given."""

from collections.abc import Callable, Mapping

ALPACA = (
    "Below is an instruction that describes a task{paired}. "
    "Write a response that appropriately completes the request."
)
PAIRED = ", paired with an input that provides further context"


def alpaca(instruction: str, context: str | None = None) -> str:
    """The prompt of Stanford Alpaca (Taori et al., 2023, github.com/tatsu-lab/stanford_alpaca).

    As in alpaca-lora and in the instruction tuning of FedIT (arXiv:2305.05644), a line end follows
    the last heading.
    """
    parts = [ALPACA.format(paired=PAIRED if context else ""), f"### Instruction:\n{instruction}"]
    parts += [f"### Input:\n{context}"] if context else []
    return "\n\n".join([*parts, "### Response:\n"])


TEMPLATES: Mapping[str, Callable[..., str]] = {"none": lambda text: text, "alpaca": alpaca}
"""By name: what makes a prompt of an instruction and of a context, which may be missing."""
