"""What a model that writes makes of held-out prompts, before its tuning and after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedpeft.core.types import State
from fedpeft.errors import PlanError
from fedpeft.evaluation.measure import with_params
from fedpeft.rounds.site import Site, threads
from fedpeft.tasks.chat_templates import STOPS, end_tokens
from fedpeft.tasks.text_classification import padding_token, tokenizer


@dataclass(frozen=True)
class Sample:
    """One held-out example.

    Attributes:
      given: the prompt, or how the text begins.
      before, after: how the untuned and the tuned model go on, always with the likeliest token.
      truth: how the example goes on.
    """

    given: str
    before: str
    after: str
    truth: str


LENGTH = 60
"""Tokens of an answer, where the task says nothing."""


def sample_answers(site: Site, state: State, number: int, length: int = LENGTH) -> list[Sample]:
    """The first `number` held-out examples, continued by `length` tokens at most; a task with
    `max_answer` tokens has these.

    Raises:
      PlanError: the plan's models do not write, or there is no one model, since tensors are
        personal.
    """
    plan = site.plan
    task: Any = plan.task
    if not hasattr(task, "openings") or plan.personal:
        raise PlanError(
            "samples are of a language or text-to-image model that all clients share; leave out "
            "--sample"
        )
    held_out = plan.examples().test
    pairs = task.openings(held_out, number)
    beside: list[dict[str, Any]] = [{}] * len(pairs)
    if hasattr(task, "opening_inputs"):
        beside = task.opening_inputs(held_out, number)
    begun = [(ids, more) for (ids, _), more in zip(pairs, beside, strict=True)]
    most = getattr(task, "max_answer", length)
    model: Any = plan.model(site.classes).eval()
    with threads(plan.compute.threads):
        before = [_continue_text(model, task, ids, more, most) for ids, more in begun]
        with_params(plan, model, state.flat)
        after = [_continue_text(model, task, ids, more, most) for ids, more in begun]
    read = tokenizer(task.base)
    return [
        Sample(str(read.decode(ids, skip_special_tokens=True)), first, then, truth)
        for (ids, truth), first, then in zip(pairs, before, after, strict=True)
    ]


def are_answers(task: Any) -> bool:
    """Whether what a model writes has a true answer, and is not just how a text goes on."""
    return hasattr(task, "openings") and getattr(task, "template", "") != "none"


def _continue_text(
    model: Any, task: Any, ids: Sequence[int], more: Mapping[str, Any], length: int
) -> str:
    prompt, template = torch.tensor([ids]), getattr(task, "template", "")
    # a decoder of its own does not say again what the encoder has read
    given = 0 if model.config.is_encoder_decoder else len(ids)
    out = model.generate(
        **more,
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=length,
        do_sample=False,
        pad_token_id=padding_token(task.base),
        eos_token_id=end_tokens(task.base, template) or None,
    )
    said = str(tokenizer(task.base).decode(out[0, given:], skip_special_tokens=True))
    stop = STOPS.get(template)
    return said.partition(stop)[0] if stop else said
