"""Templates that make one text of a conversation: the tokenizer's own, and those that come with
fedpeft.

A template is a Jinja text as `transformers` has it: it gets `messages`, `add_generation_prompt`,
`bos_token` and `eos_token`.
"""

from collections.abc import Mapping
from typing import Any

from fedpeft.errors import PlanError
from fedpeft.tasks.text_classification import tokenizer

OWN = "own"
"""The name for the tokenizer's own template."""

CHATML = (
    "{{ bos_token or '' }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token or '' }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
VICUNA = (
    "{{ bos_token or '' }}{% if messages[0]['role'] == 'system' %}"
    "{{ messages[0]['content'] + ' ' }}{% else %}"
    "{{ 'A chat between a curious user and an artificial intelligence assistant. The assistant "
    "gives helpful, detailed, and polite answers to the user\\'s questions. ' }}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ 'USER: ' + message['content'] + ' ' }}{% elif message['role'] == 'assistant' %}"
    "{{ 'ASSISTANT: ' + message['content'] + (eos_token or '') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
ALPACA = (
    "{{ bos_token or '' }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}"
    "{% else %}{{ 'Below is an instruction that describes a task. Write a response that "
    "appropriately completes the request.' }}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '\n\n### Instruction:\n' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '### Response:\n' + message['content'] + (eos_token or '') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
NAMED: Mapping[str, str] = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "vicuna": VICUNA,
    "alpaca": ALPACA,
}
"""By name. ChatML is OpenAI's (github.com/openai/openai-python, chatml.md), llama3 that of Llama
3's model card, vicuna that of FastChat (github.com/lm-sys/FastChat, version 1.1), alpaca that of
Taori et al. (2023), with the headings once more for each further turn. Of tokenizers that have
them, the token that begins a text comes first."""
STOPS: Mapping[str, str] = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}
"""What ends an answer, where that is not the token that ends a text."""


def chat_template(base: str, name: str, reader: Any = None) -> str:
    """The Jinja text of a template's name.

    Args:
      base: the folder or hub name of the model.
      reader: its tokenizer, where that is a part of a processor.

    Raises:
      PlanError: the tokenizer has no template of its own.
    """
    if name != OWN:
        return NAMED[name]
    read: Any = tokenizer(base) if reader is None else reader
    try:
        return str(read.get_chat_template())
    except ValueError:
        raise PlanError(
            f'template = "{OWN}": the tokenizer of {base!r} has no chat template of its own; name '
            f"one of {', '.join(NAMED)}"
        ) from None


def end_tokens(base: str, name: str) -> list[int]:
    """The tokens after which an answer is over: the one that ends a text, and the template's own
    sign where that is one token."""
    read: Any = tokenizer(base)
    sign = read.get_vocab().get(STOPS.get(name, ""))
    return sorted({int(one) for one in (read.eos_token_id, sign) if one is not None})
