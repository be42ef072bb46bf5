"""What was read of the data of a site, shown before anything is trained on it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fedpeft.errors import FedpeftError

if TYPE_CHECKING:
    from fedpeft.core.types import Examples
    from fedpeft.rounds.site import Site

LOOKED_AT = 400
"""Pictures of each side that are decoded for this; training decodes all of them anyway, and says
which cannot be read. `fedpeft doctor` looks at all."""
PIXELS = 200e6
"""Of each side, after which no further picture is decoded: some seconds of a camera's pictures, of
which 400 would take minutes."""


def describe_data(lines: list[str]) -> "Callable[[Examples, Any], None]":
    """What writes the report of `fedpeft doctor` into `lines`, on one screen, as a site is opened.

    It is shown once the site is open: data that are no good are one line, which is an error.
    """

    def write(examples: "Examples", task: Any) -> None:
        from fedpeft.data.inspect import inspect, second_text

        try:
            report = inspect(examples, LOOKED_AT, PIXELS, second_text(task))
            lines.extend(line for line in report.lines if line)
        except FedpeftError:  # no picture can be read: the site will say so, and what to do
            lines.clear()

    return write


def show_data(say: Callable[[str], object], lines: Sequence[str], site: "Site") -> None:
    """The report, and how many texts are cut off, where there are texts."""
    from fedpeft.data.inspect import describe_full_texts

    say("data, as they were read here")
    for line in lines:
        say(f"  {line}")
    if words := describe_full_texts(site.plan.task, site.data):
        say(f"  tokens: {words}")
