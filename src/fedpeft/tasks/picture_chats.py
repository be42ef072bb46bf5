"""Conversations about a picture each, as the inputs that a model's processor makes of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from fedpeft.core.types import Table
from fedpeft.errors import DataError
from fedpeft.tasks import scoring
from fedpeft.tasks.chat_templates import OWN
from fedpeft.tasks.conversations import (
    PICTURE,
    Conversation,
    NotUnderstood,
    Turn,
    ask_and_answer,
    read_conversation,
    unfit_rows,
)
from fedpeft.tasks.picture_processor import picture_processor, placeholder, special_tokens
from fedpeft.tasks.picture_rows import PER_TOKEN
from fedpeft.tasks.rendering import Rendered, Renderer, inside, tell_cut
from fedpeft.tasks.token_rows import UNCOUNTED

TASK, TEXT = "a task on pictures and texts", "text"


@dataclass(frozen=True)
class PictureChats:
    """How a row of a table becomes an example: its picture, what is asked of it and the answers.

    Attributes:
      base, template, max_length: see `Renderer`; `max_length` is of the text without the tokens of
        the picture.
      most: tokens that the model takes, the picture's among them; 0 for any number.
      messages: the column of conversations; without it they are made of the columns `question`, or
        `prompt` where there is none, and `answer`.
    """

    base: str
    template: str
    max_length: int
    most: int
    messages: str
    question: str
    answer: str
    prompt: str

    @cached_property
    def render(self) -> Renderer:
        """The renderer that makes a text of a conversation."""
        return Renderer(self.base, self.template, self.max_length, self._processor.tokenizer)

    @property
    def _processor(self) -> Any:
        return picture_processor(self.base)

    def at(self, table: Table, row: int) -> Conversation:
        """The conversation of a row, with its picture in its place.

        Raises:
          NotUnderstood: it is none.
          DataError: there is no such column.
        """
        if self.messages in table.columns:
            turns = read_conversation(table.columns[self.messages][row], pictured=True)
            return self.show_once(turns)
        answer = scoring.column(table, self.answer, TASK)[row]
        asked = self.questions(table)
        question = self.prompt if asked is None else asked[row]
        for name, text in ((self.question, question), (self.answer, answer)):
            if not (isinstance(text, str) and text.strip()):
                raise NotUnderstood(f"have no {name!r}")
        return self.show_once(ask_and_answer(question, None, answer))

    def questions(self, table: Table) -> Any:
        """The column of what is asked, if there is one: a table may have made it its `text`.

        Raises:
          DataError: it would be taken for the answers.
        """
        if self.question in table.columns:
            return table.columns[self.question]
        if self.answer != TEXT:
            return table.columns.get(TEXT)
        if "answer" in table.columns:
            raise DataError(
                "the data have a column 'answer', and 'text' would be learned: set data.text, or "
                "task.answer, to the column of answers"
            )
        return None

    def show_once(self, turns: Conversation) -> Conversation:
        """The conversation with the picture where the user's text has its mark, or in the user's
        first message.

        Raises:
          NotUnderstood: there are several marks, or one outside of what the user says.
        """
        own = placeholder(self._processor)
        marks = {PICTURE, own} - {""}
        place = _place_of(turns, marks)
        plain = [replace(turn, content=_without(turn.content, marks)) for turn in turns]
        return tuple(self._shown(turn, k == place, own) for k, turn in enumerate(plain))

    def _shown(self, turn: Turn, here: bool, mark: str) -> Turn:
        if self.template == OWN:
            return replace(turn, pictures=int(here))
        return replace(turn, content=f"{mark}\n{turn.content}") if here else turn

    def read(self, turns: Conversation, picture: Any) -> tuple[dict[str, Any], Rendered]:
        """What the processor makes of an example, with `labels` (tokens,), and what of its text is
        kept.

        The assistant's tokens are found in the text before the processor puts those of the picture
        into it. That changes nothing before the picture and behind it, which is checked.

        Raises:
          NotUnderstood: it makes nothing of it, or no answer is left.
        """
        text, spans = self.render.spans(turns)
        how = special_tokens(self._processor, text)
        tokens = self._processor.tokenizer(text, return_offsets_mapping=True, verbose=False, **how)
        ids, said = list(tokens["input_ids"]), inside(tokens["offset_mapping"], spans)
        most = self.max_length
        kept = Rendered(ids[:most], said[:most], (len(ids[most:]), sum(said[most:])))
        if not any(kept.said[1:]):
            raise NotUnderstood(f"have no answer within max_length = {most} tokens")
        made = self._processed(text, picture, how)
        return self._labelled(made, ids, kept), kept

    def _labelled(self, made: dict[str, Any], ids: list[int], kept: Rendered) -> dict[str, Any]:
        """The processor's inputs, cut to what is kept, with labels."""
        whole = made["input_ids"][0].tolist()
        before, behind = _alike(ids, whole)
        added, length = len(whole) - len(ids), len(whole) - kept.left[0]
        if len(kept.ids) < behind:
            raise NotUnderstood(f"have no picture within max_length = {self.max_length} tokens")
        if self.most and length > self.most:
            raise NotUnderstood(
                f"are longer than the model's {self.most} tokens with their picture"
            )
        told = torch.full((length,), UNCOUNTED)
        for place, (token, said) in enumerate(zip(kept.ids, kept.said, strict=True)):
            if not said:
                continue
            if before <= place < behind:
                raise NotUnderstood(
                    "the processor changes, so that nobody can tell what the assistant says"
                )
            told[place if place < before else place + added] = token
        cut = {name: x[:, :length] if name in PER_TOKEN else x for name, x in made.items()}
        return {**cut, "labels": told}

    def unfit(self, table: Table) -> dict[str, list[int]]:
        """By reason the rows of which nothing is learned.

        Raises:
          PlanError: nobody can tell what the assistant says by this template.
          DataError: the data have no pictures, or no answers.
        """
        _ = self.render.template  # what is wrong with it is no row's failure
        return unfit_rows(table, lambda row: self._read_at(table, row), "examples")

    def examples(self, table: Table) -> list[dict[str, Any]]:
        """What the processor makes of all rows; what is cut off is counted and told.

        Raises:
          DataError: a row is no example; `unfit` names such rows.
        """
        made = []
        for row in range(len(scoring.column(table, "image", TASK))):
            try:
                made.append(self._read_at(table, row))
            except NotUnderstood as why:
                raise DataError(f"row {row:,} is one of those that {why}: leave it out") from None
        tell_cut([kept for _, kept in made], self.max_length, "conversations")
        return [one for one, _ in made]

    def _read_at(self, table: Table, row: int) -> tuple[dict[str, Any], Rendered]:
        return self.read(self.at(table, row), picture_at(table, row))

    def opening_at(self, table: Table, row: int) -> tuple[dict[str, Any], str]:
        """The inputs after which the assistant is to give its last answer, and that answer."""
        turns = self.at(table, row)
        last = max(k for k, turn in enumerate(turns) if turn.role == "assistant")
        text = self.render.opening_text(turns[:last])
        how = special_tokens(self._processor, text)
        return self._processed(text, picture_at(table, row), how), turns[last].content

    def _processed(self, text: str, picture: Any, how: Mapping[str, bool]) -> dict[str, Any]:
        try:
            made = self._processor(
                text=[text], images=[picture], return_tensors="pt", verbose=False, **how
            )
            return dict(made)
        except Exception as error:  # foreign code, which raises what its author likes
            why = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise NotUnderstood(f"the model's processor refuses ({why})") from None


def picture_at(table: Table, row: int) -> Any:
    """The picture of a row, in colours.

    Raises:
      NotUnderstood: there is none, or it cannot be read.
      DataError: the data have no pictures.
    """
    pictures = scoring.column(table, "image", TASK)
    count: Callable[[int], int] | None = getattr(pictures, "number_at", None)
    number = 1 if count is None else count(row)
    if number != 1:
        raise NotUnderstood("have more pictures than one" if number else "have no picture")
    try:
        found = pictures[row]
    except DataError as error:
        raise NotUnderstood("have a picture that cannot be read") from error
    if not hasattr(found, "convert"):
        raise NotUnderstood(f"have no picture, but {type(found).__name__}")
    return found.convert("RGB")


def _place_of(turns: Conversation, marks: set[str]) -> int:
    """The message that shows the picture.

    Raises:
      NotUnderstood: there are several marks, or one outside of what the user says, or no answer
        follows it.
    """
    shown = [sum(turn.content.count(mark) for mark in marks) for turn in turns]
    if sum(shown) > 1:
        raise NotUnderstood("show more pictures than one")
    roles = [turn.role for turn in turns]
    if "user" not in roles:
        raise NotUnderstood("have no message of the user")
    place = shown.index(1) if any(shown) else roles.index("user")
    if roles[place] != "user":
        raise NotUnderstood("show their picture outside of what the user says")
    if "assistant" not in roles[place:]:
        raise NotUnderstood("show their picture after the last answer")
    return place


def _alike(ids: list[int], whole: list[int]) -> tuple[int, int]:
    """How far the tokens of a text are those that a processor made of it, and from where on they
    are again: in between lies the place of the picture."""
    most = min(len(ids), len(whole))
    before = next((k for k in range(most) if ids[k] != whole[k]), most)
    rest = most - before
    behind = next((k for k in range(1, rest + 1) if ids[-k] != whole[-k]), rest + 1)
    return before, len(ids) - (behind - 1)


def _without(text: str, marks: set[str]) -> str:
    if not any(mark in text for mark in marks):
        return text
    for mark in marks:
        text = text.replace(mark, "")
    return text.strip()
