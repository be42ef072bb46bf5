"""A conversation as the tokens that a template makes of it, and which of them the assistant
says."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from logging import getLogger
from typing import Any

from fedpeft.errors import PlanError
from fedpeft.tasks.chat_templates import OWN, chat_template
from fedpeft.tasks.conversations import Conversation, NotUnderstood, Turn
from fedpeft.tasks.text_classification import tokenizer

MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""How a template says itself what the assistant says."""
DAY = "26 Jul 2024"
"""What templates that tell the date (Llama 3's) are told, so that a run does not depend on the day.
It is the day that these templates have where they are told none."""
TRIED = tuple(
    Turn(role, text)
    for role, text in (
        ("user", "One?"), ("assistant", "Two."), ("user", "Three?"), ("assistant", "Four."),
    )
)  # fmt: skip


@dataclass(frozen=True)
class Rendered:
    """One conversation.

    Attributes:
      ids: its tokens.
      said: of each token whether it is the assistant's.
      left: how many tokens lie beyond the length that is kept, and how many of them are the
        assistant's.
    """

    ids: Sequence[int]
    said: Sequence[bool]
    left: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Renderer:
    """Conversations to tokens.

    What the assistant says is what the template marks with `{% generation %}`. Without such marks
    it is what an answer adds to the conversation that ends with its question: the text of the first
    messages must be the beginning of the text of all. A token that lies on both sides of such a
    border is not the assistant's, as a user's prompt would end with another one.

    Attributes:
      base: the folder or hub name of the model.
      name: of the template.
      max_length: tokens that are kept; what is beyond is cut off.
      reader: the model's tokenizer, where that is a part of a processor.
    """

    base: str
    name: str
    max_length: int
    reader: Any = field(default=None, repr=False, compare=False)
    _read: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        read = tokenizer(self.base) if self.reader is None else self.reader
        object.__setattr__(self, "_read", read)

    @cached_property
    def template(self) -> str:
        """The template's Jinja text.

        Raises:
          PlanError: there is none, or nobody can tell what the assistant says.
        """
        if not self._read.is_fast:
            raise PlanError(
                f"the tokenizer of {self.base!r} does not tell where in a text its tokens lie "
                "(it is no fast one), so that the assistant's cannot be told: convert it to a "
                "tokenizer.json"
            )
        text = chat_template(self.base, self.name, self.reader)
        if not MARKED.search(text):
            self._check_beginnings(text)
        return text

    def __call__(self, turns: Conversation, after: int = 0) -> Rendered:
        """The tokens of a conversation, and which are the assistant's.

        Args:
          after: how many of the first turns are not counted as the assistant's.

        Raises:
          NotUnderstood: the template refuses it, or nobody can tell what the assistant says.
        """
        text, spans = self.spans(turns)
        spans = spans[sum(turn.role == "assistant" for turn in turns[:after]) :]
        made = self._read(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids = list(made["input_ids"])
        said = inside(made["offset_mapping"], spans)
        most = self.max_length
        return Rendered(ids[:most], said[:most], (len(ids[most:]), sum(said[most:])))

    def opening(self, turns: Conversation) -> list[int]:
        """The tokens after which the assistant is to speak."""
        text = self.opening_text(turns)
        return list(self._read(text, add_special_tokens=False, verbose=False)["input_ids"])

    def opening_text(self, turns: Conversation) -> str:
        """The text after which the assistant is to speak."""
        return self._text(turns, self.template, open_=True)

    def spans(self, turns: Conversation) -> tuple[str, list[tuple[int, int]]]:
        """The text, and where in it the assistant speaks, from and to.

        Raises:
          NotUnderstood: the template refuses it, or nobody can tell what the assistant says.
        """
        template = self.template
        if MARKED.search(template):
            return self._marked(turns, template)
        text, spans = self._text(turns, template), []
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before = self._text(turns[:number], template, open_=True)
            after = self._text(turns[: number + 1], template)
            if not (text.startswith(after) and after.startswith(before)):
                raise NotUnderstood(
                    "the template changes as they go on, so that nobody can tell what the "
                    "assistant says"
                )
            spans.append((len(before), len(after)))
        return text, spans

    def _marked(self, turns: Conversation, template: str) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        given: dict[str, Any] = {
            "conversations": [[turn.plain for turn in turns]],
            "chat_template": template,
            "return_assistant_tokens_mask": True,
            "date_string": DAY,
            **self._read.special_tokens_map,
        }
        try:
            [text], [spans] = render_jinja_template(**given)
        except Exception as error:  # a template raises what its author likes
            raise NotUnderstood(f"the template refuses ({_first_line(error)})") from None
        return text, [(begin, end) for begin, end in spans]

    def _text(self, turns: Sequence[Turn], template: str, open_: bool = False) -> str:
        try:
            return str(
                self._read.apply_chat_template(
                    [turn.plain for turn in turns],
                    chat_template=template,
                    add_generation_prompt=open_,
                    tokenize=False,
                    date_string=DAY,
                )
            )
        except Exception as error:  # a template raises what its author likes
            raise NotUnderstood(f"the template refuses ({_first_line(error)})") from None

    def _check_beginnings(self, template: str) -> None:
        """Raises PlanError for a template that writes the first messages otherwise where others
        follow."""
        # templates of models that see have lists of parts, and may pass over a plain text
        parts = None if self.reader is None or self.name != OWN else 0
        tried = [replace(turn, pictures=parts) for turn in TRIED]
        whole = self._text(tried, template)
        for number in (1, 3):
            before = self._text(tried[:number], template, open_=True)
            after = self._text(tried[: number + 1], template)
            if whole.startswith(after) and after.startswith(before):
                continue
            other = "" if self.name != OWN else ', or set template = "chatml"'
            raise PlanError(
                f"the chat template of {self.base!r} writes earlier messages otherwise once others "
                "follow, and has no {% generation %} marks, so that nobody can tell what the "
                f"assistant says: put the marks around it in the tokenizer's template{other}"
            )


def tell_cut(made: Sequence[Rendered], most: int, subject: str) -> None:
    """Say how much lies beyond what is kept; `subject` is what the texts are, in the plural."""
    cut = [one.left for one in made if one.left[0]]
    if cut:
        tokens, said = (sum(counts) for counts in zip(*cut, strict=True))
        getLogger("fedpeft").warning(
            "%s of %s %s are longer than max_length = %s tokens: %s tokens are cut off "
            "their ends, %s of which the assistant says",
            f"{len(cut):,}", f"{len(made):,}", subject, most, f"{tokens:,}", f"{said:,}",
        )  # fmt: skip


def inside(places: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Tell of each token whether it begins within one of the spans, which are in order."""
    said, at = [], 0
    for begin, end in places:
        while at < len(spans) and spans[at][1] <= begin:
            at += 1
        said.append(at < len(spans) and spans[at][0] <= begin < end)
    return said


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
