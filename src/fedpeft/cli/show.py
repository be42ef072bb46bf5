"""`fedpeft show`: a plan with everything that it leaves to defaults."""

import sys

import typer

from fedpeft.cli.options import Debug, PlanFile, Settings, resolve

EXAMPLES = """\
  fedpeft show                                    the plan of `fedpeft run`
  fedpeft show plan.toml --set method=prompt      what another method's settings are
  fedpeft show > mine.toml                        a plan to begin with
"""


def show(plan: PlanFile = None, settings: Settings = None, debug: Debug = False) -> None:
    """Show a plan with all its defaults.

    What is printed reads back to the same plan. Without PLAN.toml: the plan of `fedpeft run`.
    """
    text = resolve(plan, settings).toml()
    if not sys.stdout.isatty():
        typer.echo(text, nl=False)
        return
    from rich.console import Console
    from rich.syntax import Syntax

    Console().print(Syntax(text, "toml", background_color="default"))
