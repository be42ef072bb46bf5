"""Conversations of a table as the rows that a language model learns from."""

from typing import TypeAlias

from torch import Tensor

from fedpeft.core.types import Table
from fedpeft.tasks import scoring
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

Columns: TypeAlias = tuple[str, str, str, str]
"""The names of the columns: conversations; or an instruction, its context and its answer."""


def conversation_at(columns: Columns, table: Table, row: int) -> Conversation:
    """The conversation of a row; without a column of them, that of an instruction and its answer.

    Raises:
      NotUnderstood: it is none.
      DataError: there is no such column.
    """
    messages, instruction, context, response = columns
    if messages in table.columns:
        return read_conversation(table.columns[messages][row])
    asked, answer = (
        scoring.column(table, name, "a chat template (or from conversations)")[row]
        for name in (instruction, response)
    )
    if not asked or not answer:
        raise NotUnderstood(f"have no {instruction!r} or no {response!r}")
    contexts = table.columns.get(context)
    return ask_and_answer(str(asked), contexts and contexts[row], str(answer))


def chat_unfit(render: Renderer, columns: Columns, table: Table) -> dict[str, list[int]]:
    """By reason the rows of which nothing is learned.

    Raises:
      PlanError: nobody can tell what the assistant says by this template.
    """
    _ = render.template  # what is wrong with it is no row's failure

    def read(row: int) -> None:
        if not any(render(conversation_at(columns, table, row)).said[1:]):
            raise NotUnderstood(f"have no answer within max_length = {render.max_length} tokens")

    return unfit_rows(table, read, "conversations")


def chat_rows(
    render: Renderer, columns: Columns, table: Table, answers_alone: bool
) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and `labels` of all rows; what is cut off is counted and told.

    Args:
      answers_alone: whether what the assistant says is all that counts.
    """
    made = [render(conversation_at(columns, table, row)) for row in range(len(table))]
    tell_cut(made, render.max_length, "conversations")
    counted = [
        [place > 0 and (said or not answers_alone) for place, said in enumerate(one.said)]
        for one in made
    ]
    return token_rows([one.ids for one in made], counted, padding_token(render.base))


def last_question(
    render: Renderer, columns: Columns, table: Table, number: int
) -> list[tuple[list[int], str]]:
    """Of the first conversations, the tokens up to the last answer, and that answer."""
    found = []
    for row in range(min(number, len(table))):
        turns = conversation_at(columns, table, row)
        last = max(k for k, turn in enumerate(turns) if turn.role == "assistant")
        found.append((render.opening(turns[:last]), turns[last].content))
    return found
