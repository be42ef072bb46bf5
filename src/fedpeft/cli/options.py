"""Options that several commands share, and the plan that they add up to."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from logging import LogRecord, getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

if TYPE_CHECKING:
    from fedpeft.plan.plan import Plan
    from fedpeft.registry import Code

_DEBUG = "fedpeft.debug"
READERS = ("data", "tasks")
"""The packages that read examples, which a rehearsal and a doctor do several times."""


@contextmanager
def said_once() -> Iterator[None]:
    """Let equal lines of `READERS` through once. All other lines come as often as they are said."""
    seen: set[str] = set()

    def is_new(record: LogRecord) -> bool:
        if Path(record.pathname).parent.name not in READERS:
            return True
        words, known = record.getMessage(), len(seen)
        seen.add(words)
        return len(seen) > known

    log = getLogger("fedpeft")
    log.addFilter(is_new)
    try:
        yield
    finally:
        log.removeFilter(is_new)


def is_debugging(ctx: click.Context) -> bool:
    """Whether --debug was given, to the command or before it."""
    return bool(ctx.meta.get(_DEBUG))


def _remember(ctx: typer.Context, wanted: bool) -> bool:
    ctx.meta[_DEBUG] = wanted or is_debugging(ctx)
    return wanted


def _engines() -> list[str]:
    from fedpeft.registry import names

    return sorted(names("engine"))


PlanFile = Annotated[Path | None, typer.Argument(metavar="[PLAN.toml]", hidden=True)]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="Change a key of the plan; dots between keys. Repeatable.",
    ),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", hidden=True)]
Engine = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="How clients are run: auto, cohort, flower, inprocess, processes.",
        autocompletion=_engines,
    ),
]
AllowCode = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Let the plan run the Python module NAME. Somebody else may have written the plan, so "
        "that it may name registered parts only without this. Repeatable.",
    ),
]
Device = Annotated[
    str, typer.Option(metavar="NAME", show_default=False, help="cpu (the default), cuda or mps.")
]
Seed = Annotated[int | None, typer.Option(metavar="N", help="The root of all random draws.")]
AsJson = Annotated[bool, typer.Option("--json", help="Nothing but JSON on standard output.")]
Debug = Annotated[
    bool,
    typer.Option("--debug", help="Errors with their traceback.", callback=_remember, is_eager=True),
]


def check_owner(
    data: str | None, name: str | None, client: int | None, settings: Sequence[str] = ()
) -> None:
    """Either an owner's data and its name are given, or a client of the plan's partition.

    Args:
      settings: of how an owner's data are read.

    Raises:
      UsageError: both are, or neither, or one half.
    """
    if (client is None) == (data is None) or (data is None) != (name is None):
        raise click.UsageError("give --data and --name, or --client")
    if settings and data is None:
        raise click.UsageError("--set is for your own data: give --data and --name too")


def allowed_code(allow_code: list[str] | None) -> "Code":
    """The modules that the user lets somebody else's plan name."""
    from fedpeft.registry import Code

    return Code.of(allow_code or ())


def resolve(
    plan: Path | None,
    settings: list[str] | None,
    own: str = "digits",
    code: "Code | None" = None,
) -> "Plan":
    """The plan at a path, or the package's `own`, with `key=value` pairs set.

    Args:
      code: which modules the plan may name; left out, any, as the plan is the user's own.

    Raises:
      PlanError: see `read_plan`.
    """
    from fedpeft.plan.reading import read_plan
    from fedpeft.registry import OWN

    default = files("fedpeft") / "assets" / "plans" / f"{own}.toml"
    spec = default.read_text(encoding="utf-8") if plan is None else plan
    given = list(settings or ())
    if plan is None and (name := _name_of_data(given)):
        given = [f"name={name}", *given]
    return read_plan(spec, given, OWN if code is None else code)


def _name_of_data(settings: Sequence[str]) -> str:
    """A name for a run of the package's own plan on other data; empty where it keeps its own."""
    pairs = dict(one.partition("=")[::2] for one in settings)
    other = pairs.get("data", pairs.get("data.path", ""))
    if not other or "name" in pairs:
        return ""
    stem = Path(other.strip("\"'")).stem
    return stem if re.fullmatch(r"\w[\w.-]{0,40}", stem) else "run"
