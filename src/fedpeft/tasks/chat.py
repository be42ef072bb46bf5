"""Conversations of a table as the rows that a language model learns from."""

from dataclasses import dataclass

from torch import Tensor

from fedpeft.core.types import Table
from fedpeft.tasks import scoring
from fedpeft.tasks.chat_templates import NAMED, OWN
from fedpeft.tasks.conversations import (
    Conversation,
    NotUnderstood,
    ask_and_answer,
    read_conversation,
    unfit_rows,
)
from fedpeft.tasks.rendering import Renderer, tell_cut
from fedpeft.tasks.text_classification import padding_token
from fedpeft.tasks.token_rows import token_rows

CHAT_TEMPLATES = (OWN, *NAMED)


@dataclass(frozen=True)
class Chats:
    """How conversations become rows.

    Attributes:
      base, template, max_length: see `Renderer`.
      messages: the column of conversations; without it they are made of an instruction, its context
        and its answer, which are the other columns.
    """

    base: str
    template: str
    max_length: int
    messages: str
    instruction: str
    context: str
    response: str

    @property
    def render(self) -> Renderer:
        """The renderer that makes tokens of a conversation."""
        return Renderer(self.base, self.template, self.max_length)

    def at(self, table: Table, row: int) -> Conversation:
        """The conversation of a row.

        Raises:
          NotUnderstood: it is none.
          DataError: there is no such column.
        """
        if self.messages in table.columns:
            return read_conversation(table.columns[self.messages][row])
        task = f"a chat template without conversations in a column {self.messages!r}"
        asked, answer = (
            scoring.column(table, name, task)[row] for name in (self.instruction, self.response)
        )
        if not asked or not answer:
            raise NotUnderstood(f"have no {self.instruction!r} or no {self.response!r}")
        contexts = table.columns.get(self.context)
        return ask_and_answer(str(asked), contexts and contexts[row], str(answer))

    def unfit(self, table: Table) -> dict[str, list[int]]:
        """By reason the rows of which nothing is learned.

        Raises:
          PlanError: nobody can tell what the assistant says by this template.
        """
        render, most = self.render, self.max_length
        _ = render.template  # what is wrong with it is no row's failure

        def read(row: int) -> None:
            if not any(render(self.at(table, row)).said[1:]):
                raise NotUnderstood(f"have no answer within max_length = {most} tokens")

        return unfit_rows(table, read, "conversations")

    def rows(self, table: Table, answers_alone: bool) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and `labels` of all rows; what is cut off is counted and
        told.

        Args:
          answers_alone: whether what the assistant says is all that counts.
        """
        render = self.render
        made = [render(self.at(table, row)) for row in range(len(table))]
        tell_cut(made, self.max_length, "conversations")
        counted = [
            [place > 0 and (said or not answers_alone) for place, said in enumerate(one.said)]
            for one in made
        ]
        return token_rows([one.ids for one in made], counted, padding_token(self.base))

    def openings(self, table: Table, number: int) -> list[tuple[list[int], str]]:
        """The tokens up to the last answer, and that answer, for the first conversations."""
        found = []
        for row in range(min(number, len(table))):
            turns = self.at(table, row)
            last = max(k for k, turn in enumerate(turns) if turn.role == "assistant")
            found.append((self.render.opening(turns[:last]), turns[last].content))
        return found
