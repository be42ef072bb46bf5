"""Pairs of answers as data sets have them: texts, or lists of messages."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedpeft.core.types import Table
from fedpeft.tasks import scoring
from fedpeft.tasks.conversations import Conversation, NotUnderstood, Turn, read_turns


@dataclass(frozen=True)
class Pair:
    """Two conversations that begin alike and end with different answers.

    Attributes:
      common: how many turns they have in common.
    """

    chosen: Conversation
    rejected: Conversation
    common: int


def pair_at(columns: tuple[str, str, str], table: Table, row: int) -> Pair:
    """The pair of a row.

    Args:
      columns: the names of the prompt, the chosen and the rejected answer.

    Raises:
      NotUnderstood: it is none.
      DataError: there is no such column.
    """
    prompt, *answers = columns
    begun = _turns(table.columns[prompt][row], "user") if prompt in table.columns else ()
    chosen, rejected = (
        _after(begun, _turns(scoring.column(table, name, "preference tuning")[row], "assistant"))
        for name in answers
    )
    common = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        common += 1
    if common in (len(chosen), len(rejected)):
        raise NotUnderstood("are the same, or one goes on from the other")
    if not common:
        raise NotUnderstood("have no prompt in common")
    if {turns[common].role for turns in (chosen, rejected)} != {"assistant"}:
        raise NotUnderstood("differ in what the assistant does not say")
    return Pair(chosen, rejected, common)


def _turns(value: Any, role: str) -> Conversation:
    """A text as a message of this role; messages, or JSON of them, as they are."""
    if value is None or value == "":
        raise NotUnderstood("lack a prompt or an answer")
    if not isinstance(value, str):
        return (_only(value),) if isinstance(value, Mapping) else read_turns(value)
    if value.removeprefix("\ufeff").lstrip().startswith('[{"'):
        return read_turns(value)
    return (Turn(role, value),)


def _only(value: Mapping[str, Any]) -> Turn:
    [turn] = read_turns([value])
    return turn


def _after(begun: Conversation, answer: Conversation) -> Conversation:
    """The prompt and the answer, which may begin with the prompt."""
    return answer if answer[: len(begun)] == begun else (*begun, *answer)
