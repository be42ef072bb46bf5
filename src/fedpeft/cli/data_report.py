"""What was read of the data of a site, shown before anything is trained on it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from fedpeft.errors import FedpeftError

if TYPE_CHECKING:
    from fedpeft.core.types import Examples
    from fedpeft.rounds.site import Site

LOOKED_AT = 400
"""Pictures of each side that are decoded for this; training decodes all of them anyway, and says
which cannot be read. `fedpeft doctor` looks at all."""


def show_data(say: Callable[[str], object]) -> "Callable[[Examples], None]":
    """What shows the report of `fedpeft doctor` on one screen, with `say` for a line."""

    def show(examples: "Examples") -> None:
        from fedpeft.data.inspect import inspect

        try:
            lines = inspect(examples, LOOKED_AT).lines
        except FedpeftError:  # what then reads all of them says it, with what to do
            return
        say("data, as they were read here")
        for line in lines:
            if line:  # a screen is short
                say(f"  {line}")

    return show


def show_tokens(say: Callable[[str], object], site: "Site") -> None:
    """How many texts are cut off; nothing where there are none."""
    from fedpeft.data.inspect import describe_full_texts

    if words := describe_full_texts(site.plan.task, site.data):
        say(f"  tokens: {words}")
