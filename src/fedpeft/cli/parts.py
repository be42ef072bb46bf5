"""`fedpeft list`: the parts that a plan can name, and their keys."""

import ast
import re
from textwrap import wrap
from typing import Annotated

import typer

from fedpeft.cli.options import Debug
from fedpeft.cli.part_keys import PartKey, keys_of, read_source

EXAMPLES = """\
  fedpeft list                every part, by kind
  fedpeft list method         the ways of fine-tuning
  fedpeft list data images    the keys of one part, and what they mean
"""
WIDTH, NAMES = 100, 22
SENTENCE_END = re.compile(r"(?<=\.)(?<!\bal\.)(?<!\be\.g\.)\s+(?=[A-Z`])")
ENGINE = "engine"
"""Parts that a plan names, and gives no keys."""


def _kinds() -> list[str]:
    from fedpeft.catalogue import CATALOGUE

    return sorted(CATALOGUE)


def list_parts(
    kind: Annotated[str | None, typer.Argument(hidden=True, autocompletion=_kinds)] = None,
    name: Annotated[str | None, typer.Argument(hidden=True)] = None,
    debug: Debug = False,
) -> None:
    """List the parts that a plan can name, or the keys of one.

    KIND, e.g. method or codec, leaves the others out. KIND NAME, e.g. data images, prints the keys
    of that part, their defaults and what they mean.
    """
    from fedpeft.errors import PlanError, unknown
    from fedpeft.registry import names

    if kind is not None and kind not in _kinds():
        raise PlanError(unknown("kind of part", kind, _kinds()))
    if kind is not None and name is not None:
        known = names(kind)
        if name not in known:
            raise PlanError(unknown(kind, name, known))
        _list_keys(kind, name, known[name])
        return
    for one in _kinds() if kind is None else [kind]:
        typer.secho(one, bold=True)
        for called, target in sorted(names(one).items()):
            _show_part(called, target)


def _show_part(name: str, target: str) -> None:
    first, *more = wrap(sentence(target), WIDTH) or [""]
    typer.echo(f"  {name:<{NAMES}}{first}")
    for line in more:
        typer.echo(f"  {'':<{NAMES}}{line}")


def _list_keys(kind: str, name: str, target: str) -> None:
    """One part, with a line or more for each of its keys."""
    typer.secho(f"{kind} {name}", bold=True)
    for line in wrap(_first_paragraph(target), WIDTH - 2):
        typer.echo(f"  {line}")
    found = read_source(target)
    keys = keys_of(found[0], found[1]) if found and found[1] and kind != ENGINE else []
    for key in keys:
        _show_key(key)
    if not keys:
        typer.echo("  It has no keys.")


def _show_key(key: PartKey) -> None:
    default = f"default {key.default}" if key.default else "must be given"
    typer.echo(f"  {key.name} ({default})")
    for line in wrap(key.meaning, WIDTH - 6):
        typer.echo(f"      {line}")


def sentence(target: str) -> str:
    """The first sentence of what the module, or else the class, says of itself. Importing it would
    load torch."""
    return SENTENCE_END.split(" ".join(_first_paragraph(target).split()))[0]


def _first_paragraph(target: str) -> str:
    found = read_source(target)
    if found is None:
        return "(cannot be loaded)"
    texts = [ast.get_docstring(one) for one in found if one is not None]
    return next((text.partition("\n\n")[0] for text in texts if text), "")
