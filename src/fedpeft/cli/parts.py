"""`fedpeft list`: the parts that a plan can name."""

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from fedpeft.cli.options import Debug

EXAMPLES = """\
  fedpeft list                every part, by kind
  fedpeft list method         the ways of fine-tuning
"""


def _kinds() -> list[str]:
    from fedpeft.catalogue import CATALOGUE

    return sorted(CATALOGUE)


def list_parts(
    kind: Annotated[str | None, typer.Argument(hidden=True, autocompletion=_kinds)] = None,
    debug: Debug = False,
) -> None:
    """List the parts that a plan can name.

    KIND, e.g. method or codec, leaves the others out.
    """
    from fedpeft.errors import PlanError, unknown
    from fedpeft.registry import names

    if kind is not None and kind not in _kinds():
        raise PlanError(unknown("kind of part", kind, _kinds()))
    for one in _kinds() if kind is None else [kind]:
        typer.secho(one, bold=True)
        for name, target in sorted(names(one).items()):
            typer.echo(f"  {name:<22}{sentence(target)}")


def sentence(target: str) -> str:
    """The first line of what the module, or else the class, says of itself. Importing it would load
    torch."""
    module, _, attribute = target.partition(":")
    try:
        spec = find_spec(module)
        tree = ast.parse(Path(spec.origin).read_bytes()) if spec and spec.origin else None
    except (ImportError, OSError, SyntaxError, ValueError):
        tree = None
    if tree is None:
        return "(cannot be loaded)"
    classes = [
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == attribute
    ]
    texts = [ast.get_docstring(tree), *map(ast.get_docstring, classes)]
    return next((text.splitlines()[0] for text in texts if text), "")
