"""Questions and their choices as tokens: plain text, or a message by a chat model's template."""

from collections.abc import Callable
from functools import partial
from typing import Any

from fedpeft.plan.plan import Plan
from fedpeft.tasks.conversations import Turn
from fedpeft.tasks.instructions import TEMPLATES
from fedpeft.tasks.language import LanguageTask
from fedpeft.tasks.rendering import Renderer
from fedpeft.tasks.text_classification import tokenizer

Tokens = tuple[list[int], list[int]]
"""What is given, and what may follow."""


def chat_of(plan: Plan) -> str:
    """The name of the chat template by which the plan's model was tuned; empty where texts stand as
    they are, or in a prompt."""
    template = getattr(plan.task, "template", "")
    return "" if template in TEMPLATES else template


def question_encoder(model: Any, plan: Plan) -> Callable[[str, str], Tokens]:
    """How questions become tokens: as a message of a user, by the template of a plan that has one,
    or as plain text.

    Raises:
      PlanError: the tokenizer has no such template.
    """
    if not chat_of(plan):
        return partial(encode_question, model)
    assert isinstance(plan.task, LanguageTask)
    return partial(
        encode_chat_question, Renderer(plan.task.base, chat_of(plan), plan.task.max_length)
    )


def encode_chat_question(render: Renderer, given: str, choice: str) -> Tokens:
    """The question, with its shots, as a user's only message, and a choice as what the assistant
    then says.

    The blank before a choice belongs to plain text: after a template's sign it would be a token
    that no answer begins with.
    """
    read = tokenizer(render.base)
    said = read(choice.lstrip(), add_special_tokens=False, verbose=False)["input_ids"]
    return render.opening((Turn("user", given),)), list(said)


def encode_question(model: Any, given: str, choice: str) -> Tokens:
    if not given:
        return [model.prefix_token_id], model.tok_encode(choice, add_special_tokens=False)
    before, after = model._encode_pair(given, choice)
    return before, after
