"""Conversations as data sets have them: lists of messages, or JSON of such lists."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from fedpeft.core.types import Table

ROLES: Mapping[str, str] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "human": "user",
    "gpt": "assistant",
}
"""What a role is called, here and in ShareGPT's files, and what it is."""


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Attributes:
      role: "system", "user" or "assistant".
    """

    role: str
    content: str

    @property
    def plain(self) -> dict[str, str]:
        """The message as templates read it."""
        return {"role": self.role, "content": self.content}


Conversation: TypeAlias = tuple[Turn, ...]


class NotUnderstood(ValueError):
    """An example that nothing is learned from; its text says why, after a plural subject."""


def read_turns(value: Any) -> Conversation:
    """A list of messages, or the JSON text of one. A message has `role` and `content`, or `from`
    and `value` as ShareGPT has it.

    Raises:
      NotUnderstood: it is none.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value.removeprefix("\ufeff"))
        except ValueError:
            raise NotUnderstood("are no JSON") from None
    if isinstance(value, Mapping):
        value = value.get("messages", value.get("conversations"))
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise NotUnderstood("are no list of messages, or an empty one")
    return tuple(_read_turn(message) for message in value)


def read_conversation(value: Any) -> Conversation:
    """The same with an answer: at least one message is the assistant's, and a system's is the
    first.

    Raises:
      NotUnderstood: it is none.
    """
    turns = read_turns(value)
    if all(turn.role != "assistant" for turn in turns):
        raise NotUnderstood("have no message of the assistant")
    if any(turn.role == "system" for turn in turns[1:]):
        raise NotUnderstood("have a message of the system after the first one")
    return turns


def _read_turn(message: Any) -> Turn:
    if not isinstance(message, Mapping):
        raise NotUnderstood("have a message without role and content")
    role, content = (
        message.get(name) if message.get(name) is not None else message.get(other)
        for name, other in (("role", "from"), ("content", "value"))
    )
    if not isinstance(role, str) or role not in ROLES:
        raise NotUnderstood(f"have a message whose role is none of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise NotUnderstood("have a message whose content is no text")
    return Turn(ROLES[role], content)


def ask_and_answer(asked: str, context: str | None, answer: str) -> Conversation:
    """An instruction, with its context if any, and its answer as a conversation of two turns."""
    question = f"{asked}\n\n{context}" if context else asked
    return (Turn("user", question), Turn("assistant", answer))


def unfit_rows(table: Table, read: Callable[[int], object], subject: str) -> dict[str, list[int]]:
    """By reason the rows of which nothing is learned.

    Args:
      read: is called with each row's number, and raises `NotUnderstood` for such a row.
      subject: what the rows are, in the plural.
    """
    found: dict[str, list[int]] = {}
    for row in range(len(table)):
        try:
            read(row)
        except NotUnderstood as why:
            found.setdefault(f"{subject} that {why}", []).append(row)
    return found
