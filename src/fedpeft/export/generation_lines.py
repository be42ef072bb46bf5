"""The lines of a card that let a language model go on from a text, or answer a chat."""

import json
from typing import Any

from fedpeft.tasks.chat_templates import end_tokens
from fedpeft.tasks.instructions import TEMPLATES
from fedpeft.tasks.language import LanguageTask


def generation_lines(task: LanguageTask) -> list[str]:
    """The lines that let the model go on from what it was trained to go on from."""
    if task.template not in TEMPLATES:
        return _chat_lines(task)
    start = TEMPLATES[task.template]("...") if task.template != "none" else "..."
    return [
        f'text = (tokenizer.bos_token or "") + {literal(start)}',
        'inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0]))",
    ]


def _chat_lines(task: LanguageTask) -> list[str]:
    """The lines that let the model answer by the chat template that it was trained with."""
    ends = end_tokens(task.base, task.template)
    return [
        'messages = [{"role": "user", "content": "..."}]',
        "inputs = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
        ")",
        f"out = model.generate(**inputs, max_new_tokens=100, eos_token_id={ends or None})",
        "print(tokenizer.decode(out[0]))",
    ]


def literal(value: Any) -> str:
    """A plain value as Python has it, text in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
