"""Conversations as data sets have them: lists of messages, or JSON of such lists."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from typing import Any, TypeAlias

from fedpeft.core.types import Table
from fedpeft.errors import DataError

ROLES: Mapping[str, str] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "human": "user",
    "gpt": "assistant",
}
"""What a role is called, here and in ShareGPT's files, and what it is."""
PICTURE = "<image>"
"""What stands in a text where a picture is shown, as in LLaVA's files."""


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Attributes:
      role: "system", "user" or "assistant".
      pictures: how many pictures it shows before its text; None where messages are plain texts.
    """

    role: str
    content: str
    pictures: int | None = None

    @property
    def plain(self) -> dict[str, Any]:
        """The message as templates read it: a text, or a list of pictures and a text."""
        if self.pictures is None:
            return {"role": self.role, "content": self.content}
        shown: list[dict[str, str]] = [{"type": "image"}] * self.pictures
        return {"role": self.role, "content": [*shown, {"type": "text", "text": self.content}]}


Conversation: TypeAlias = tuple[Turn, ...]


class NotUnderstood(ValueError):
    """An example that nothing is learned from; its text says why, after a plural subject."""


def read_turns(value: Any, pictured: bool = False) -> Conversation:
    """A list of messages, or the JSON text of one. A message has `role` and `content`, or `from`
    and `value` as ShareGPT has it.

    Args:
      pictured: whether a content may be a list of parts, of texts and of places of pictures, which
        become `PICTURE` in the text.

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
    return tuple(_read_turn(message, pictured) for message in value)


def read_conversation(value: Any, pictured: bool = False) -> Conversation:
    """The same with an answer: at least one message is the assistant's, and a system's is the
    first.

    Raises:
      NotUnderstood: it is none.
    """
    turns = read_turns(value, pictured)
    if all(turn.role != "assistant" for turn in turns):
        raise NotUnderstood("have no message of the assistant")
    if any(turn.role == "system" for turn in turns[1:]):
        raise NotUnderstood("have a message of the system after the first one")
    return turns


def _read_turn(message: Any, pictured: bool) -> Turn:
    if not isinstance(message, Mapping):
        raise NotUnderstood("have a message without role and content")
    role, content = (
        message.get(name) if message.get(name) is not None else message.get(other)
        for name, other in (("role", "from"), ("content", "value"))
    )
    if not isinstance(role, str) or role not in ROLES:
        raise NotUnderstood(f"have a message whose role is none of {', '.join(ROLES)}")
    if pictured:
        content = _read_parts(content)
    if not isinstance(content, str):
        raise NotUnderstood("have a message whose content is no text")
    return Turn(ROLES[role], content)


def _read_parts(content: Any) -> Any:
    """The text of a list of parts; anything else as it is."""
    if isinstance(content, str) or not isinstance(content, Sequence):
        return content
    return "".join(_read_part(part) for part in content)


def _read_part(part: Any) -> str:
    """The text of a part of a message, or the mark of a picture."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "image":
        return PICTURE
    text = part.get("text") if kind == "text" else None
    if not isinstance(text, str):
        raise NotUnderstood(f"have a part of a message that is no text and no picture ({kind})")
    return text


def ask_and_answer(asked: str, context: str | None, answer: str) -> Conversation:
    """An instruction, with its context if any, and its answer as a conversation of two turns."""
    question = f"{asked}\n\n{context}" if context else asked
    return (Turn("user", question), Turn("assistant", answer))


def unfit_rows(table: Table, read: Callable[[int], object], subject: str) -> dict[str, list[int]]:
    """By reason the rows of which nothing is learned; of a reason that has a cause in the data the
    log names the first.

    Args:
      read: is called with each row's number, and raises `NotUnderstood` for such a row.
      subject: what the rows are, in the plural.
    """
    found: dict[str, list[int]] = {}
    for row in range(len(table)):
        try:
            read(row)
        except NotUnderstood as why:
            reason = f"{subject} that {why}"
            if reason not in found and isinstance(why.__cause__, DataError):
                getLogger("fedpeft").warning("%s, the first: %s", reason, why.__cause__)
            found.setdefault(reason, []).append(row)
    return found
